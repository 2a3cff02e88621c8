"""The trained model as an MLflow model that loads without pickle and without this project."""

import base64
import io
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
from mlflow.models import ModelSignature
from mlflow.pyfunc import log_model
from mlflow.types.schema import ColSpec, DataType, Map, Schema, TensorSpec
from PIL import Image

from imageclf.contracts import model
from imageclf.contracts.model import ModelSpec

PACKAGE = Path(__file__).resolve().parents[1]
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


def log_served_model(folder: Path, epoch: int) -> None:
    """Log the checkpoint in `folder` to the active run, with the part of the package that serves it."""
    spec = model.read_spec(folder)
    with tempfile.TemporaryDirectory() as work:
        code = Path(work, PACKAGE.name)
        for name in NEEDED:
            shutil.copytree(PACKAGE / name, code / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(PACKAGE / "__init__.py", code)
        log_model(
            name="model",
            step=epoch,
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
