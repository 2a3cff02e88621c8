"""Check params.yaml, and write to data/source.yaml whether there is a folder to watch: `python -m stages.check`."""

from imageclf import params
from imageclf.core import files, paths, process

FOLDER = "# NaN is not equal to itself, so DVC always finds it changed, and lists the folder again.\nwatched: .nan\n"
PUBLISHED = "# A published data set never changes.\nwatched: false\n"


def main() -> None:
    """Write data/source.yaml."""
    options = params.load().of(params.CheckParams)
    files.write_text(paths.SOURCE, FOLDER if options.dataset == "folder" else PUBLISHED)


if __name__ == "__main__":
    process.run(main)
