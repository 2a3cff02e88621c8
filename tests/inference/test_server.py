"""Tests of `mlflow models serve` on a logged model: the answers, and a sentence for each bad body."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import torch
from helpers import encode, new_spec, noise, save_model

from benchmarks import served
from imageclf.inference.predictor import Predictor

pytestmark = pytest.mark.faults

SHAPE = (1, 8, 8)
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    save_model(folder, new_spec(raw_shape=SHAPE, image_shape=SHAPE))
    return folder


@pytest.fixture(scope="module")
def address(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve the model, and yield the address that takes images."""
    model = served.save_model(checkpoint, tmp_path_factory.mktemp("store"))
    with served.mlflow_server(model) as found:
        yield found


def as_text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_files_and_pixels_get_the_probabilities_of_predict(address: str, checkpoint: Path) -> None:
    images = np.stack([noise(seed, channels=1) for seed in range(3)])
    files = [as_text(encode(image)) for image in images]
    expected = Predictor.load(checkpoint, torch.device("cpu")).probabilities(images[:, None])
    for inputs in (files, [f"data:image/png;base64,{text}" for text in files], images[:, None].tolist()):
        answer = requests.post(address, json={"inputs": inputs}, timeout=60)
        assert answer.status_code == 200, answer.text
        found = [list(each["probabilities"].values()) for each in answer.json()["predictions"]]
        np.testing.assert_allclose(found, expected, atol=1e-6)


def png(changed: slice, to: bytes) -> str:
    data = bytearray(encode(noise(0, 64, 64)))
    data[changed] = to
    return as_text(bytes(data))


BAD: dict[str, Any] = {
    "no JSON": "{",
    "a number": "3",
    "no inputs": json.dumps({"images": []}),
    "no image": json.dumps({"inputs": []}),
    "a file's name": json.dumps({"inputs": ["picture.png"]}),
    "text that is not ASCII": json.dumps({"inputs": ["Käfer"]}),
    "half a file": json.dumps({"inputs": [png(slice(2000, None), b"")]}),
    "a damaged file": json.dumps({"inputs": [png(slice(60, 200), bytes(140))]}),
    "not an image": json.dumps({"inputs": [as_text(b"hello")]}),
    "a bomb": json.dumps({"inputs": [png(slice(16, 24), b"\x00\x01\x00\x00" * 2)]}),
    "pixels of another shape": json.dumps({"inputs": [[[[1, 2], [3, 4]]]]}),
    "pixels from 0 to 1": json.dumps({"inputs": np.linspace(0, 1, 64).reshape(1, *SHAPE).tolist()}),
    "pixels above 255": json.dumps({"inputs": np.full((1, *SHAPE), 256).tolist()}),
    "rows of different lengths": json.dumps({"inputs": [[1, 2], [3]]}),
    "mixed types": json.dumps({"inputs": ["text", 3]}),
    "null": json.dumps({"inputs": None}),
    "20 MB of letters": json.dumps({"inputs": ["A" * 20_000_000]}),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_body_gets_a_sentence(name: str, address: str) -> None:
    answer = requests.post(address, data=BAD[name].encode(), headers=JSON, timeout=60)
    assert 400 <= answer.status_code < 500, answer.text
    content = answer.json()
    assert 10 < len(answer.text) < 2000
    assert "Traceback" not in answer.text
    assert 'File "' not in answer.text
    assert content.get("message") or content.get("detail")


def test_another_content_type_is_refused(address: str) -> None:
    answer = requests.post(address, data=encode(noise(0)), headers={"Content-Type": "image/png"}, timeout=60)
    assert answer.status_code == 415
    assert "application/json" in answer.text
