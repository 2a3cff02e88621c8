"""Turn data/raw into the splits of data/processed: `python -m stages.preprocess`."""

from imageclf import cores, errors, files, folder, params, paths, splits
from imageclf.datasets import DATASETS
from imageclf.prepare import prepare
from imageclf.raw import RawData, list_skipped


def read_raw(knobs: params.PreprocessParams, machine: params.RuntimeParams) -> RawData:
    """What data/raw holds; raises `UserError` where it is not what download wrote."""
    if knobs.dataset == "folder":
        workers = cores.allowed_cores() if machine.threads == "auto" else machine.threads
        return folder.read(paths.RAW, knobs.image_size, workers, machine.progress)
    source = DATASETS[knobs.dataset]
    for name, archive in source.files.items():
        files.verify(paths.RAW / name, archive.sha256, made_by="download")
    return source.read(paths.RAW)


def main() -> None:
    """Fill data/processed."""
    settings = params.load()
    knobs = settings.of(params.PreprocessParams)
    manifest = prepare(
        read_raw(knobs, settings.runtime),
        paths.PROCESSED,
        dataset=knobs.dataset,
        classes=None if knobs.classes is None else [str(name) for name in knobs.classes],
        val_fraction=knobs.val_fraction,
        split_seed=knobs.split_seed,
        grayscale=knobs.grayscale,
        image_size=knobs.image_size,
        pad=knobs.pad,
        normalize=knobs.normalize,
        permute_seed=knobs.permute_seed if knobs.permute else None,
        one_hot=knobs.one_hot,
    )
    counts = ", ".join(f"{count:,} {split}" for split, count in sorted(manifest["counts"].items()))
    print(f"{counts} images of {'x'.join(map(str, manifest['image_shape']))}")
    print("".join(f"{note}\n" for note in manifest.get("notes", ())), end="")
    print(list_skipped(manifest["skipped"], paths.PROCESSED / splits.MANIFEST), end="")


if __name__ == "__main__":
    errors.run(main)
