"""Paths that `dvc.yaml` names, relative to the project's root, in which stages run."""

import os
from pathlib import Path

PARAMS = Path("params.yaml")
PIPELINE = Path("dvc.yaml")

SOURCE = Path("data/source.yaml")
LISTING = Path("data/listing.json")
RAW = Path("data/raw")
PROCESSED = Path("data/processed")
PRETRAINED = Path("data/pretrained")
MODEL = Path("data/model")
WEIGHTS = MODEL / "model.safetensors"
MODEL_SPEC = MODEL / "model.json"

METRICS = Path("metrics")
DATA_REPORT = METRICS / "data.json"
HISTORY = METRICS / "history.csv"
TRAIN_SCORES = METRICS / "train.json"
TEST_SCORES = METRICS / "test.json"
PREDICTIONS = METRICS / "predictions.csv"
PER_CLASS = METRICS / "per_class.csv"
MODEL_CARD = METRICS / "model_card.md"
PLOTS = METRICS / "plots"


def repository() -> Path:
    """Return the absolute path of the user's repository.

    It is not always the working directory: DVC runs `--temp` and `--queue` experiments in a temporary copy, and sets
    `DVC_ROOT` to the path of the repository.
    """
    return Path(os.environ.get("DVC_ROOT", "")).resolve()


def cache() -> Path:
    """Return the folder of fetched files: `IMAGECLF_CACHE`, or the user's cache folder (relative without a home)."""
    if chosen := os.environ.get("IMAGECLF_CACHE"):
        return repository() / chosen
    import platformdirs  # training on a machine that has nothing but torch does not need it

    try:
        return platformdirs.user_cache_path("imageclf")
    except RuntimeError:  # without HOME and an entry for the user; some versions return "~/..." instead
        return Path("~")
