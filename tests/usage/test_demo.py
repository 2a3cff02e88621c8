"""Tests of the page on which models classify drawings: over HTTP, and in a real browser."""

import base64
import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser
import numpy as np
import pytest
import requests
import torch
import uvicorn
from browser import needs_browser
from helpers import encode, new_spec, save_model
from PIL import Image

from imageclf.core.errors import UserError
from imageclf.inference.predictor import Predictor
from imageclf.study import experiments
from imageclf.study.experiments import Experiment
from imageclf.usage import demo

NAMES = ["<b>bold</b>", "Käfer 猫"]
PERMUTATION = np.random.default_rng(0).permutation(28 * 28).tolist()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve two models of gray images of 28x28 pixels, the second with permuted pixels; yield the page's address."""
    shape = {"raw_shape": (1, 28, 28), "image_shape": (1, 28, 28), "classes": NAMES}
    predictors = {}
    for name, changes in {"plain": {}, "permuted": {"permutation": PERMUTATION}}.items():
        folder = tmp_path_factory.mktemp(name)
        save_model(folder, new_spec(**shape, **changes))
        predictors[name] = Predictor.load(folder, torch.device("cpu"))
    server = uvicorn.Server(uvicorn.Config(demo.application(predictors), port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


def seen(answer: dict[str, Any]) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["seen"].partition(",")[2]))))


def test_each_model_answers_with_its_classes_and_what_it_sees(address: str) -> None:
    image = np.random.default_rng(1).integers(256, size=(28, 28), dtype=np.uint8)
    plain, permuted = requests.post(f"{address}/predict", data=encode(image), timeout=30).json()
    assert [plain["name"], permuted["name"]] == ["plain", "permuted"]
    assert {each["class"] for each in plain["ranking"]} == set(NAMES)
    probabilities = [each["probability"] for each in plain["ranking"]]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1)
    np.testing.assert_array_equal(seen(plain), image)
    np.testing.assert_array_equal(seen(permuted).flatten(), image.flatten()[PERMUTATION])


@pytest.mark.parametrize(
    ("data", "status", "error"), [(b"text", 422, "not a PNG, "), (bytes(demo.MOST_BYTES + 1), 413, "more than 20 MiB")]
)
def test_a_bad_picture_gets_a_sentence(data: bytes, status: int, error: str, address: str) -> None:
    answer = requests.post(f"{address}/predict", data=data, timeout=30)
    assert answer.status_code == status
    assert error in answer.json()["error"]


def test_other_hosts_are_refused(address: str) -> None:
    """A page on the internet could otherwise point a name of its own at this machine."""
    assert requests.get(address, headers={"Host": "evil.example"}, timeout=30).status_code == 400


@needs_browser
def test_a_drawing_is_classified_in_a_browser(address: str, tmp_path: Path) -> None:
    with browser.opened(tmp_path / "profile") as window:
        window.open(address)
        window.draw("#pad", [(100, 60), (180, 80), (120, 220)])
        window.wait_for("document.querySelectorAll('#answers section').length === 2")
        texts = window.run("return [...document.querySelectorAll('li span')].map(each => each.textContent)")
        assert set(NAMES) <= set(texts)  # shown as text, not as HTML
        bars = window.run("return [...document.querySelectorAll('li i')].map(each => each.style.width)")
        assert sum(float(width.rstrip("%")) for width in bars) == pytest.approx(200, abs=0.1)
        sizes = window.run("return [...document.querySelectorAll('img')].map(each => each.naturalWidth)")
        assert sizes == [28, 28]
        window.run("document.getElementById('clear').click()")
        assert window.run("return document.querySelectorAll('#answers section').length") == 0
        (tmp_path / "text.png").write_text("no image")
        window.upload("#file", tmp_path / "text.png")
        window.wait_for("document.getElementById('message').textContent.includes('not a PNG, ')")
        loaded = window.run("return performance.getEntriesByType('resource').map(each => each.name)")
        assert [name for name in loaded if not name.startswith((address, "data:", "blob:"))] == []


def test_without_names_the_newest_experiment_of_each_net_is_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    kinds = {"a": ("cnn", False), "b": ("cnn", False), "c": ("cnn", True), "d": ("mlp", False)}
    found = {
        name: Experiment(name, "", "success", {"model": net, "permute": permute}, {"test": {}}, (), None)
        for name, (net, permute) in kinds.items()
    }
    found["e"] = Experiment("e", "", "failed", {"model": "vgg11", "permute": False}, {}, (), None)
    monkeypatch.setattr(experiments, "show", lambda: found)
    assert demo.chosen() == ["a", "c", "d"]
    monkeypatch.setattr(experiments, "show", dict)
    with pytest.raises(UserError, match=r"^there is no model: data/model is empty; `uv run dvc repro` trains one"):
        demo.main([])


@pytest.mark.parametrize(("shape", "box"), [((1, 28, 28), 200), ((1, 8, 8), 260), ((3, 32, 32), 0)])
def test_drawings_are_fitted_like_the_digits_of_the_training(shape: tuple[int, int, int], box: int) -> None:
    assert demo._box([shape]) == box
