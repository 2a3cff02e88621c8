"""Tests of data/pretrained: the manifest, the two formats of weights, and the normalization that weights bring."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import names
from helpers import new_manifest
from safetensors.torch import save_file

from imageclf.contracts import pretrained
from imageclf.contracts.dataset import Prepared
from imageclf.contracts.pretrained import Pretrained
from imageclf.core.errors import UserError

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.zeros(2)}
COLORS = ([0.2, 0.3, 0.4], [0.1, 0.2, 0.3])


def write_weights(path: Path, content: Any = TENSORS) -> None:
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)


@pytest.mark.parametrize("file", ["weights.safetensors", "weights.pth"])
def test_weights_and_manifest_come_back_and_other_files_go(file: str, tmp_path: Path) -> None:
    (tmp_path / "old.pth").write_bytes(b"")
    write_weights(tmp_path / file)
    written = pretrained.write(tmp_path, Pretrained(source="mine", normalization=COLORS), file)
    assert pretrained.read(tmp_path) == written
    assert names(tmp_path) == sorted([pretrained.MANIFEST, file])
    found = pretrained.read_tensors(tmp_path, written)
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


def test_a_start_from_scratch_has_a_manifest_and_no_tensors(tmp_path: Path) -> None:
    written = pretrained.write(tmp_path, Pretrained())
    assert pretrained.read(tmp_path) == written
    assert written.weights_sha256 is None
    assert pretrained.read_tensors(tmp_path, written) == {}
    assert names(tmp_path) == [pretrained.MANIFEST]


def test_another_file_of_weights_is_another_identity(tmp_path: Path) -> None:
    digests = set()
    for value in (0.0, 1.0):
        write_weights(tmp_path / "weights.pth", {"a": torch.tensor(value)})
        digests.add(pretrained.write(tmp_path, Pretrained(source="mine"), "weights.pth").sha256)
    assert len(digests) == 2


class Harmful:
    """An object that would create a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("harmed"),)


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("weights.pth", {"a": Harmful()}, "mine is not a file of torch.save with tensors alone"),
        ("weights.pth", [torch.zeros(1)], "mine is not a dict of tensors by name; save net.state_dict()"),
        ("weights.pth", {"state_dict": TENSORS}, "mine is not a dict of tensors by name; save net.state_dict()"),
        ("weights.pth", b"PK garbage", "mine is not a file of torch.save with tensors alone"),
        ("weights.safetensors", b"garbage", "mine is not safetensors"),
    ],
)
def test_what_is_not_a_dict_of_tensors_is_refused_and_never_runs(
    file: str, content: Any, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if isinstance(content, bytes):
        Path(file).write_bytes(content)
    else:
        write_weights(Path(file), content)
    written = pretrained.write(tmp_path, Pretrained(source="mine"), file)
    with pytest.raises(UserError, match=f"pretrained: {sentence}"):
        pretrained.read_tensors(tmp_path, written)
    assert not Path("harmed").exists()


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    write_weights(tmp_path / "weights.pth")
    written = pretrained.write(tmp_path, Pretrained(source="mine"), "weights.pth")
    write_weights(tmp_path / "weights.pth", {"a": torch.zeros(1)})
    with pytest.raises(UserError, match=r"weights\.pth is not what weights wrote"):
        pretrained.read_tensors(tmp_path, written)


# --- normalization ---


def data(normalize: str = "standard", channels: int = 3) -> Prepared:
    manifest = new_manifest(
        image_shape=(channels, 4, 4), normalize=normalize, mean=[0.5] * channels, std=[0.25] * channels
    )
    return Prepared(Path("nowhere"), manifest)


def test_weights_bring_their_normalization() -> None:
    assert Pretrained(normalization=COLORS).normalization_for(data("unit")) == COLORS


def test_a_bare_file_of_weights_uses_the_normalization_of_the_data() -> None:
    assert Pretrained(source="mine").normalization_for(data("symmetric")) == ([0.5] * 3, [0.5] * 3)


def test_gray_images_get_the_mean_over_the_colors() -> None:
    mean, std = Pretrained(normalization=COLORS).normalization_for(data(channels=1))
    assert mean == pytest.approx([0.3])
    assert std == pytest.approx([0.2])


@pytest.mark.parametrize(("normalize", "whitened", "remedy"), [("zca", False, "standard"), ("unit", True, "zca")])
def test_whitened_and_other_images_do_not_mix(normalize: str, whitened: bool, remedy: str) -> None:
    learned = Pretrained(source="mine", normalization=([0.0] * 3, [1.0] * 3), whitened=whitened)
    with pytest.raises(UserError, match=f"pretrained: mine was trained on .*; set normalize to {remedy}"):
        learned.normalization_for(data(normalize))


def test_whitened_weights_use_the_whitening_of_the_data() -> None:
    unit = ([0.0] * 3, [1.0] * 3)
    assert Pretrained(normalization=unit, whitened=True).normalization_for(data("zca")) == unit
