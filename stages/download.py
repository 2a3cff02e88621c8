"""Bring the raw files of `dataset` to data/raw: published archives, checked, or one's own images.

python -m stages.download
"""

from pathlib import Path

from imageclf import errors, fetch, pack, params, paths
from imageclf.datasets import DATASETS
from imageclf.raw import IMAGES_MANIFEST, list_skipped


def main() -> None:
    """Fill data/raw."""
    settings = params.load()
    knobs, progress = settings.of(params.DownloadParams), settings.runtime.progress
    if knobs.dataset == "folder":
        # As DVC sees it, from here: read from elsewhere, a copy of the project would reuse what has changed there.
        manifest = pack.pack(Path(knobs.folder), paths.RAW, progress)
        print(f"{len(manifest['members']):,} files of {len(manifest['classes'])} classes")
        print(list_skipped(manifest["skipped"], paths.RAW / IMAGES_MANIFEST), end="")
    else:
        fetch.fetch(knobs.dataset, DATASETS[knobs.dataset], paths.RAW, settings.runtime.mirror, progress)


if __name__ == "__main__":
    errors.run(main)
