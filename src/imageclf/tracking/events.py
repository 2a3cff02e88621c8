"""The content of the record in MLflow: one function per event of a run, called by the stages.

A change here retrains nothing: `dvc.yaml` does not list this folder.
"""

import json
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from imageclf.contracts import history
from imageclf.core import paths
from imageclf.params import Params
from imageclf.tracking.client import Recorder, recording

if TYPE_CHECKING:
    from imageclf.contracts.dataset import DatasetManifest
    from imageclf.contracts.model import ModelSpec
    from imageclf.training.fit import Epoch


def training_run(key: str, *, resumes: bool, enabled: bool) -> AbstractContextManager[Recorder]:
    """Open the run of a training; if it `resumes`, the run of the interrupted training with the same key."""
    return recording("train", training=key, resumes=resumes, enabled=enabled)


def evaluation_run(spec: "ModelSpec", *, enabled: bool) -> AbstractContextManager[Recorder]:
    """Open the run of the training that wrote this model."""
    return recording("evaluate", model_sha256=spec.weights_sha256, enabled=enabled)


def training_started(recorder: Recorder, settings: Params, data: "DatasetManifest") -> None:
    """Record the parameters and the data of a training."""
    recorder.params(settings.model_dump(exclude={"runtime"}))
    recorder.dataset(data.dataset, data.sha256)
    recorder.tags({"data_sha256": data.sha256})


def net_built(recorder: Recorder, layers: str, machine: dict[str, str]) -> None:
    """Record the table of layers, and tags for what the weights depend on: device, threads, version of torch."""
    recorder.tags(machine)
    recorder.text("net.txt", layers)


def epoch_ended(recorder: Recorder, *epochs: "Epoch") -> None:
    """Record the scores of one or more epochs. Epochs that the run already has are not written again."""
    for epoch in epochs:
        values = asdict(epoch)
        _history_row(recorder, values.pop("number"), values)


def training_ended(recorder: Recorder, spec: "ModelSpec") -> None:
    """Record the output files of a training: scores, history and model."""
    recorder.tags({"model_sha256": spec.weights_sha256})
    if spec.pretrained_sha256 is not None:
        recorder.tags({"pretrained_sha256": spec.pretrained_sha256})
    scores = json.loads(paths.TRAIN_SCORES.read_text(encoding="utf-8"))
    best = {split: scores[split] for split in ("train", "val") if split in scores}
    recorder.metrics(flatten({"best": best}), spec.epoch)
    recorder.artifacts([paths.HISTORY, paths.TRAIN_SCORES])
    recorder.model(paths.MODEL, spec.epoch)


def training_restored(recorder: Recorder, settings: Params, data: "DatasetManifest", spec: "ModelSpec") -> None:
    """Record a training from its outputs, if its run is not in MLflow: DVC restored it from its cache."""
    with recorder.if_restored():
        training_started(recorder, settings, data)
        for row in history.read(paths.HISTORY):
            _history_row(recorder, int(row.pop("epoch")), row)
        training_ended(recorder, spec)


def evaluated(recorder: Recorder, scores: dict[str, float], epoch: int) -> None:
    """Record the scores, tables and plots of the test split."""
    recorder.metrics(flatten({"test": scores}), epoch)
    recorder.artifacts([paths.TEST_SCORES, paths.PREDICTIONS, paths.PER_CLASS, paths.MODEL_CARD, paths.DATA_REPORT])
    recorder.artifacts(sorted(paths.PLOTS.glob("*.png")), folder="plots")


def _history_row(recorder: Recorder, epoch: int, values: dict[str, Any]) -> None:
    """Record a row of the history: `train_loss` becomes the metric `train/loss`. Missing values are left out."""
    recorder.metrics({key.replace("_", "/", 1): value for key, value in values.items() if value is not None}, epoch)


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Return nested metrics with MLflow's names, `{"test/loss": 0.1}` for `{"test": {"loss": 0.1}}`; numbers only."""
    flat: dict[str, float] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)):
            flat[prefix + key] = float(value)
    return flat
