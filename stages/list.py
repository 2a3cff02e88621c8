"""Write a digest of your own folder of images to data/listing.json: `python -m stages.list`."""

from imageclf import params
from imageclf.core import paths, process
from imageclf.download import listing


def main() -> None:
    """Write data/listing.json."""
    settings = params.load()
    options = settings.of(params.DownloadParams)
    folder = options.folder if options.dataset == "folder" else None
    listing.write(paths.LISTING, folder, settings.runtime.progress)


if __name__ == "__main__":
    process.run(main)
