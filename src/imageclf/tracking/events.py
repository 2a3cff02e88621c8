"""The content of the record in MLflow: one function per event of a run, called by the stages.

A change here retrains nothing: `dvc.yaml` does not list this folder.
"""

import json
import shutil
import tempfile
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imageclf.contracts import history, model
from imageclf.contracts.dataset import split_files
from imageclf.core import paths
from imageclf.core.errors import UserError
from imageclf.params import Params
from imageclf.tracking import descriptions
from imageclf.tracking.client import Recorder, recording
from imageclf.tracking.opening import Opening

if TYPE_CHECKING:
    from torch import Tensor

    from imageclf.contracts.dataset import DatasetManifest, Prepared
    from imageclf.contracts.model import ModelSpec
    from imageclf.training.fit import Epoch

NOTE = "mlflow.note.content"
"""Tag of a run or a model that MLflow's pages show as its description."""


def training_run(key: str, *, resumes: bool, enabled: bool) -> AbstractContextManager[Recorder]:
    """Open the run of a training; if it `resumes`, the run of the interrupted training with the same key."""
    return recording(Opening("train", training=key, resumes=resumes) if enabled else None)


def evaluation_run(spec: "ModelSpec", *, enabled: bool) -> AbstractContextManager[Recorder]:
    """Open the run of the training that wrote this model."""
    return recording(Opening("evaluate", spec.weights_sha256) if enabled else None)


def training_started(recorder: Recorder, settings: Params, data: "DatasetManifest") -> None:
    """Record the parameters, the data and the description of a training."""
    recorder.params(settings.model_dump(exclude={"runtime"}))
    recorder.datasets(list(descriptions.datasets(settings, data).values()))
    recorder.tags({"data_sha256": data.sha256, NOTE: descriptions.of_run(settings, data, recorder.experiment)})


def net_built(recorder: Recorder, layers: str, machine: dict[str, str]) -> None:
    """Record the table of layers, and tags for what the weights depend on: device, threads, version of torch."""
    recorder.tags(machine)
    recorder.text("net.txt", layers)


def epoch_ended(recorder: Recorder, *epochs: "Epoch") -> None:
    """Record the scores of one or more epochs. Epochs that the run already has are not written again."""
    for epoch in epochs:
        values = asdict(epoch)
        _history_row(recorder, values.pop("number"), values)


def epoch_model(
    recorder: Recorder, spec: "ModelSpec", weights: "dict[str, Tensor]", data: "Prepared", keep: int
) -> None:
    """Record the model at the end of an epoch, and keep the newest `keep` of those; print a sentence if it fails."""
    if not recorder.records:
        return
    with ExitStack() as undo:
        try:
            parent = tempfile.mkdtemp(prefix="imageclf-")
            undo.callback(shutil.rmtree, parent, ignore_errors=True)
            folder = Path(parent, paths.MODEL.name)  # MLflow keeps this name
            model.write(folder, spec, weights, data.whitening)
        except (UserError, OSError) as error:
            print(f"tracking: the model of epoch {spec.epoch} is not recorded: {error}", flush=True)
            return
        undo.pop_all()  # the recorder deletes the folder
    recorder.epoch_model(folder, f"{spec.model}-epoch-{spec.epoch}", spec.epoch, keep)


def training_ended(recorder: Recorder, settings: Params, data: "DatasetManifest", spec: "ModelSpec") -> None:
    """Record the output files of a training: model, scores and history."""
    recorder.tags({"model_sha256": spec.weights_sha256})
    if spec.pretrained_sha256 is not None:
        recorder.tags({"pretrained_sha256": spec.pretrained_sha256})
    recorder.artifacts([paths.HISTORY, paths.TRAIN_SCORES])
    recorder.model(paths.MODEL, descriptions.model_name(settings), spec.epoch)
    scores = json.loads(paths.TRAIN_SCORES.read_text(encoding="utf-8"))
    for split, given in descriptions.datasets(settings, data).items():
        if split in scores:
            recorder.metrics(flatten({"selected": {split: scores[split]}}), spec.epoch, of_model_on=given)


def training_restored(recorder: Recorder, settings: Params, data: "DatasetManifest", spec: "ModelSpec") -> None:
    """Record a training from its outputs, if its run is not in MLflow: DVC restored it from its cache."""
    with recorder.if_restored():
        training_started(recorder, settings, data)
        for row in history.read(paths.HISTORY):
            _history_row(recorder, int(row.pop("epoch")), row)
        training_ended(recorder, settings, data, spec)


def evaluated(
    recorder: Recorder, settings: Params, data: "DatasetManifest", scores: dict[str, float], epoch: int
) -> None:
    """Record the scores, tables and plots of the test split; register the model if `registered_model` is set."""
    recorder.metrics(flatten({"test": scores}), epoch, of_model_on=descriptions.datasets(settings, data)["test"])
    recorder.tags({NOTE: descriptions.of_run(settings, data, recorder.experiment, scores)})
    if paths.MODEL_CARD.exists():  # `imageclf sync` also records experiments of older versions
        recorder.model_tags({NOTE: descriptions.shortened(paths.MODEL_CARD.read_text(encoding="utf-8"))})
    tables = [paths.TEST_SCORES, paths.PREDICTIONS, paths.PER_CLASS, paths.MODEL_CARD, paths.DATA_REPORT]
    recorder.artifacts([path for path in tables if path.exists()])
    recorder.artifacts(sorted(paths.PLOTS.glob("*.png")), folder="plots")
    if settings.runtime.registered_model is not None:
        test_sha256 = ",".join(data.files[name] for name in split_files("test"))
        recorder.registration(settings.runtime.registered_model, accuracy=scores["accuracy"], test_sha256=test_sha256)


def _history_row(recorder: Recorder, epoch: int, values: dict[str, Any]) -> None:
    """Record a row of the history: `train_loss` becomes the metric `epoch/train_loss`. Missing values are left out.

    MLflow sorts a run's charts by name, so the curves come before the single values of `selected/*` and `test/*`.
    """
    recorder.metrics({f"epoch/{key}": value for key, value in values.items() if value is not None}, epoch)


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Return nested metrics with MLflow's names, `{"test/loss": 0.1}` for `{"test": {"loss": 0.1}}`; numbers only."""
    flat: dict[str, float] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)):
            flat[prefix + key] = float(value)
    return flat
