"""List the user's own images in data/listing.json: `python -m stages.list`."""

from imageclf import errors, files, listing, params, paths


def main() -> None:
    """Write data/listing.json."""
    settings = params.load()
    knobs = settings.of(params.DownloadParams)
    own = knobs.dataset == "folder"
    content = listing.of_folder(knobs.folder, settings.runtime.progress) if own else listing.NO_FOLDER
    files.write_json(paths.LISTING, content)


if __name__ == "__main__":
    errors.run(main)
