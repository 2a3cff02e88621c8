"""Write the verified archives of a data set, or your own images, to data/raw: `python -m stages.download`."""

from imageclf import params
from imageclf.contracts.raw import IMAGES_MANIFEST, list_skipped
from imageclf.core import paths, process
from imageclf.download import fetch, listing, origins, pack
from imageclf.download.datasets import DATASETS


def main() -> None:
    """Write data/raw."""
    settings = params.load()
    options, progress = settings.of(params.DownloadParams), settings.runtime.progress
    if options.dataset == "folder":
        manifest = pack.pack(origins.locate(options.folder), paths.RAW, progress)
        # If the folder changed since `list` ran, DVC would store these images as those of the older listing.
        listing.check(paths.LISTING, options.folder, progress)
        print(f"{len(manifest.members):,} of {manifest.found:,} files; {_classes(manifest.classes)}")
        print(list_skipped(manifest.skipped, paths.RAW / IMAGES_MANIFEST), end="")
    else:
        fetch.fetch(options.dataset, DATASETS[options.dataset], paths.RAW, settings.runtime.mirror, progress)


def _classes(names: list[str], most: int = 10) -> str:
    return f"{len(names)} classes: {', '.join(map(repr, names[:most]))}{', ...' if len(names) > most else ''}"


if __name__ == "__main__":
    process.run(main)
