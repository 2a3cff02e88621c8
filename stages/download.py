"""Bring the raw files of `dataset` to data/raw: published archives, checked, or one's own images.

python -m stages.download
"""

from imageclf import errors, fetch, listing, origins, pack, params, paths
from imageclf.datasets import DATASETS
from imageclf.raw import IMAGES_MANIFEST, list_skipped


def main() -> None:
    """Fill data/raw."""
    settings = params.load()
    knobs, progress = settings.of(params.DownloadParams), settings.runtime.progress
    if knobs.dataset == "folder":
        manifest = pack.pack(origins.locate(knobs.folder), paths.RAW, progress)
        listing.check(paths.LISTING, knobs.folder, progress)  # else DVC would keep what was packed for what was listed
        print(f"{len(manifest['members']):,} of {manifest['found']:,} files; {_classes(manifest['classes'])}")
        print(list_skipped(manifest["skipped"], paths.RAW / IMAGES_MANIFEST), end="")
    else:
        fetch.fetch(knobs.dataset, DATASETS[knobs.dataset], paths.RAW, settings.runtime.mirror, progress)


def _classes(names: list[str], most: int = 10) -> str:
    return f"{len(names)} classes: {', '.join(map(repr, names[:most]))}{', ...' if len(names) > most else ''}"


if __name__ == "__main__":
    errors.run(main)
