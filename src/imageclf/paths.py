"""Every path that `dvc.yaml` names, relative to the project's root, which is where stages run."""

import os
from pathlib import Path

PARAMS = Path("params.yaml")
PIPELINE = Path("dvc.yaml")

SOURCE = Path("data/source.yaml")
LISTING = Path("data/listing.json")
RAW = Path("data/raw")
PROCESSED = Path("data/processed")
MODEL = Path("data/model")
WEIGHTS = MODEL / "model.safetensors"
RECIPE = MODEL / "model.json"

METRICS = Path("metrics")
HISTORY = METRICS / "history.csv"
TRAIN_SCORES = METRICS / "train.json"
TEST_SCORES = METRICS / "test.json"
PREDICTIONS = METRICS / "predictions.csv"
PER_CLASS = METRICS / "per_class.csv"
PLOTS = METRICS / "plots"


def repository() -> Path:
    """The user's repository, absolute.

    Not the working directory: DVC runs `--temp` and `--queue` experiments in a copy that it deletes,
    and leaves the repository's own path in `DVC_ROOT`.
    """
    return Path(os.environ.get("DVC_ROOT", "")).resolve()
