"""Check params.yaml, and write to data/source.yaml what outside the project to watch: `python -m stages.check`."""

from imageclf import params
from imageclf.core import files, paths, process

WATCHED = """\
# NaN is not equal to itself, so DVC always finds it changed, and looks at your own files again.
watched: {}
pretrained: {}
"""


def main() -> None:
    """Write data/source.yaml."""
    options = params.load().of(params.CheckParams)
    watched = options.dataset == "folder", options.pretrained not in {None, "imagenet"}
    files.write_text(paths.SOURCE, WATCHED.format(*(".nan" if mine else "false" for mine in watched)))


if __name__ == "__main__":
    process.run(main)
