"""Bring the official archives of `dataset` to data/raw, byte for byte and checked: `python -m stages.download`."""

from imageclf import errors, fetch, params, paths
from imageclf.datasets import DATASETS


def main() -> None:
    """Fill data/raw."""
    settings = params.load()
    name = settings.of(params.DownloadParams).dataset
    fetch.fetch(name, DATASETS[name], paths.RAW, settings.runtime.mirror, settings.runtime.progress)


if __name__ == "__main__":
    errors.run(main)
