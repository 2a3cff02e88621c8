"""The trained model as an MLflow model that loads without pickle and without this project."""

import base64
import io
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput
from mlflow.models import Model, ModelSignature
from mlflow.pyfunc import save_model
from mlflow.types.schema import ColSpec, DataType, Map, Schema, TensorSpec
from PIL import Image

from imageclf.contracts import model
from imageclf.contracts.model import ModelSpec

PACKAGE = Path(__file__).resolve().parents[2]
NEEDED = ("contracts", "core", "inference", "models", "preprocess", "training")
"""Folders of the package that the served model imports; MLflow stores a copy of them with the model."""

SIGNATURE = ModelSignature(
    inputs=Schema([TensorSpec(np.dtype("O"), (-1,))]),  # base64 text, or pixels; a uint8 tensor would refuse text
    outputs=Schema(
        [
            ColSpec(DataType.string, "class"),
            ColSpec(DataType.double, "probability"),
            ColSpec(Map(DataType.double), "probabilities"),
        ]
    ),
)


OF_AN_EPOCH = "-epoch-"
"""Part of the names of the models that are not those of the selected epoch."""


def log_served_model(client: MlflowClient, run_id: str, folder: Path, *, name: str, epoch: int | None = None) -> str:
    """Log the checkpoint in `folder` as a model of the run, and return the model's id.

    With `epoch`, that of the checkpoint, it is the model that the run has produced; a run has one such model.
    `mlflow.pyfunc.log_model` does the same, but then loads the model to try it, which takes two seconds.
    """
    experiment = client.get_run(run_id).info.experiment_id
    logged = client.create_logged_model(experiment, name=name, source_run_id=run_id)
    written = Model(logged.artifact_location, run_id, model_uuid=logged.model_id, model_id=logged.model_id)
    with tempfile.TemporaryDirectory() as work:
        save_served_model(folder, Path(work, "model"), written)
        client.log_model_artifacts(logged.model_id, str(Path(work, "model")))
    client.finalize_logged_model(logged.model_id, "READY")
    if epoch is not None:
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=epoch)])
    return logged.model_id


def delete_old_models(client: MlflowClient, run_id: str, keep: int) -> None:
    """Delete the models of single epochs of the run, except the newest `keep`."""
    experiment = client.get_run(run_id).info.experiment_id
    found = client.search_logged_models([experiment], filter_string=f"source_run_id = '{run_id}'")
    of_epochs = [each for each in found if OF_AN_EPOCH in each.name]
    of_epochs.sort(key=lambda each: int(each.name.rpartition(OF_AN_EPOCH)[2]))
    for each in of_epochs[:-keep]:
        client.delete_logged_model(each.model_id)


def save_served_model(folder: Path, target: Path, written: Model | None = None) -> None:
    """Write the checkpoint in `folder` as an MLflow model, with the part of the package that serves it."""
    spec = model.read_spec(folder)
    with tempfile.TemporaryDirectory() as work:
        code = Path(work, PACKAGE.name)
        for name in NEEDED:
            shutil.copytree(PACKAGE / name, code / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(PACKAGE / "__init__.py", code)
        save_model(
            target,
            mlflow_model=written,
            loader_module="imageclf.inference.served",
            data_path=str(folder),
            code_paths=[str(code)],
            signature=SIGNATURE,
            input_example=np.array([_black_png(spec)], dtype=object),
            pip_requirements=_requirements(spec),
            metadata={"classes": spec.classes, "model_sha256": spec.weights_sha256},
        )


def _black_png(spec: ModelSpec) -> str:
    """Return a black image file of the size that the model takes, as base64 text."""
    file = io.BytesIO()
    _, height, width = spec.raw_shape
    Image.new("L", (width, height)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def _requirements(spec: ModelSpec) -> list[str]:
    """Return the packages that the served model imports, each with its version."""
    names = ["mlflow", "numpy", "pillow", "safetensors", "torch"]
    if spec.model.startswith(("resnet", "googlenet")):
        names.append("torchvision")
    return [f"{name}=={version(name).split('+')[0]}" for name in names]
