"""Tests of the model as MLflow loads it: its answers, its refusals, and that it loads without this project."""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from imports import SOURCE
from test_checkpoint import save
from test_predictor import file_of, raw_images

from imageclf.inference.predictor import Predictor
from imageclf.inference.served import ServedModel

SHAPE = (3, 8, 8)
CPU = torch.device("cpu")

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore::UserWarning")]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a model of color images."""
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    save(folder, raw_shape=SHAPE, image_shape=SHAPE, normalization=([0.5] * 3, [0.5] * 3), classes=["0", "1", "a b"])
    return folder


@pytest.fixture(scope="module")
def served(checkpoint: Path) -> ServedModel:
    return ServedModel(Predictor.load(checkpoint, CPU))


def as_text(image: np.ndarray[Any, Any]) -> str:
    return base64.b64encode(file_of(image)).decode()


def test_pixels_files_and_data_frames_give_the_same_answers(served: ServedModel, checkpoint: Path) -> None:
    images = raw_images(3, SHAPE)
    texts = [as_text(image) for image in images]
    expected = served.predict(images)
    assert served.predict(images.tolist()) == expected
    assert served.predict(images.astype(float)) == expected
    assert served.predict(texts) == expected
    assert served.predict(np.array(texts, dtype=object)) == expected
    assert served.predict(pd.DataFrame({"image": texts})) == expected
    probabilities = Predictor.load(checkpoint, CPU).probabilities(images)
    for answer, row in zip(expected, probabilities, strict=True):
        assert answer["probabilities"] == dict(zip(["0", "1", "a b"], map(float, row), strict=True))
        assert answer["probability"] == answer["probabilities"][answer["class"]] == max(row)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (np.full((2, *SHAPE), 0.5), "other values"),  # floats 0..1 would become 0
        (np.ones((2, *SHAPE)), "other values"),
        (np.full((2, *SHAPE), np.nan), "other values"),
        (np.full((1, *SHAPE), 256), "other values"),
        (np.full((1, *SHAPE), -1), "other values"),
        (np.zeros((1, 3, 9, 9), np.uint8), r"its shape is \(1, 3, 9, 9\)"),
        (np.zeros(SHAPE, np.uint8), "its shape is"),
        ([[1, 2], [3]], "must be base64 text"),
        ([], "its shape is"),
        (["%%%"], "image 0: not base64"),
        (["aGVsbG8="], "image 0: not a PNG"),
        ([1, "a"], "its shape is"),
        (None, "its shape is"),
    ],
)
def test_other_input_is_refused_with_status_400_and_one_sentence(
    given: object, reason: str, served: ServedModel
) -> None:
    with pytest.raises(Exception, match=reason) as caught:
        served.predict(given)
    error: Any = caught.value  # MLflow's exception, whose import warns
    sentence = error.message
    assert error.get_http_status_code() == 400
    assert len(sentence) < 200
    assert "\n" not in sentence


SAVE = """
import sys
from pathlib import Path
from imageclf.tracking.recorder.served_model import save_served_model
save_served_model(Path(sys.argv[1]), Path("model"))
print("saved")
"""
LOAD = """
import json, sys
sys.path = [place for place in sys.path if place != sys.argv[1]]  # this project is not installed
import mlflow, numpy
model = mlflow.pyfunc.load_model(sys.argv[2])
answers = model.predict(numpy.array(json.loads(sys.argv[3]), dtype=object))
import imageclf.inference.served as served
print(json.dumps({"answers": answers, "code": served.__file__, "classes": model.metadata.metadata["classes"]}))
"""


def python(code: str, *arguments: str, cwd: Path, **environment: str) -> str:
    """Run code in a process of its own; return the last line of its output."""
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_the_saved_model_loads_without_this_project(served: ServedModel, checkpoint: Path, tmp_path: Path) -> None:
    python(SAVE, str(checkpoint), cwd=tmp_path, PYTHONPATH=str(SOURCE))
    folder = tmp_path / "model"
    assert (folder / "MLmodel").is_file()
    assert not [path for path in folder.rglob("*") if path.suffix in {".pkl", ".pt", ".pth"}]
    texts = [as_text(image) for image in raw_images(2, SHAPE)]
    found = json.loads(python(LOAD, str(SOURCE), str(folder), json.dumps(texts), cwd=tmp_path))
    assert found["code"].startswith(str(folder))
    assert found["classes"] == ["0", "1", "a b"]
    for answer, expected in zip(found["answers"], served.predict(texts), strict=True):
        assert answer["class"] == expected["class"]
        assert answer["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-6)
