"""Turn data/raw into the splits of data/processed: `python -m stages.preprocess`."""

from imageclf import errors, files, params, paths
from imageclf.datasets import DATASETS
from imageclf.prepare import prepare


def main() -> None:
    """Fill data/processed."""
    knobs = params.load().of(params.PreprocessParams)
    source = DATASETS[knobs.dataset]
    for name, archive in source.files.items():
        files.verify(paths.RAW / name, archive.sha256, made_by="download")
    manifest = prepare(
        source,
        source.read(paths.RAW),
        paths.PROCESSED,
        val_fraction=knobs.val_fraction,
        split_seed=knobs.split_seed,
        image_size=knobs.image_size,
        pad=knobs.pad,
        normalize=knobs.normalize,
        permute_seed=knobs.permute_seed if knobs.permute else None,
        one_hot=knobs.one_hot,
    )
    counts = ", ".join(f"{count:,} {split}" for split, count in sorted(manifest["counts"].items()))
    print(f"{counts} images of {'x'.join(map(str, manifest['image_shape']))}")


if __name__ == "__main__":
    errors.run(main)
