"""Prepare the images in data/raw, and report on them: `python -m stages.preprocess`."""

from imageclf import params
from imageclf.contracts import dataset
from imageclf.contracts.raw import RawData, list_skipped
from imageclf.core import cores, files, paths, process
from imageclf.core.remote import RemoteFolder
from imageclf.download.datasets import DATASETS
from imageclf.preprocess import folder, shards
from imageclf.preprocess.prepare import prepare
from imageclf.preprocess.report import measure, record


def read_raw(options: params.PreprocessParams, machine: params.RuntimeParams) -> RawData:
    """Read data/raw. Raises `UserError` if a file is missing or damaged."""
    if options.dataset == "folder":
        workers = cores.allowed_cores() if machine.threads == "auto" else machine.threads
        return folder.read(paths.RAW, options.image_size, workers, machine.progress)
    source = DATASETS[options.dataset]
    for name, archive in source.files.items():
        files.verify(paths.RAW / name, archive.sha256, made_by="download")
    return source.read(paths.RAW)


def main() -> None:
    """Write data/processed and metrics/data.json."""
    settings = params.load()
    options = settings.of(params.PreprocessParams)
    server = RemoteFolder(options.shards) if options.shards else None
    if server:
        server.check()
    manifest = prepare(
        read_raw(options, settings.runtime),
        paths.PROCESSED,
        dataset=options.dataset,
        classes=None if options.classes is None else [str(name) for name in options.classes],
        val_fraction=options.val_fraction,
        split_seed=options.split_seed,
        preparation=options.preparation(),
        normalize=options.normalize,
        one_hot=options.one_hot,
    )
    counts = ", ".join(f"{count:,} {split}" for split, count in sorted(manifest.counts.items()))
    print(f"{counts} images of {'x'.join(map(str, manifest.image_shape))}", *manifest.notes, sep="\n")
    found = measure.measure(paths.PROCESSED, manifest)
    if server:
        manifest, numbers = shards.move(paths.PROCESSED, manifest, server, progress=settings.runtime.progress)
        found = found.renumbered(numbers)
    record.write(paths.DATA_REPORT, found)
    for sentence in found.warnings:
        print(f"warning: {sentence}")
    print(list_skipped(manifest.skipped, paths.PROCESSED / dataset.MANIFEST), end="")


if __name__ == "__main__":
    process.run(main)
