"""Refuse a mistake in params.yaml, and write to data/source.yaml if there is a folder to watch.

python -m stages.check
"""

from imageclf import errors, files, params, paths


def main() -> None:
    """Write data/source.yaml."""
    knobs = params.load().of(params.CheckParams)
    if knobs.dataset == "folder":
        text = "# Not a number is not equal to itself: DVC finds it changed each time, and lists the folder again.\n"
        files.write_text(paths.SOURCE, f"{text}watched: .nan\n")
    else:
        files.write_text(paths.SOURCE, "# A published data set never changes.\nwatched: false\n")


if __name__ == "__main__":
    errors.run(main)
