"""Tests of the linear layer: the same values and gradients by oneDNN as by torch's own layer."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from imageclf.core import cores
from imageclf.models import linear
from imageclf.models.linear import Linear

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def onednn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Act as on an AMD processor; return the list of the shapes that oneDNN was given."""
    calls: list[tuple[int, ...]] = []

    def record(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        calls.append((*left.shape, *right.shape))
        return product(left, right)

    product = linear._product
    monkeypatch.setattr(linear, "mkl_is_slow", lambda: True)
    monkeypatch.setattr(linear, "_product", record)
    return calls


def new_layers() -> tuple[Linear, nn.Linear]:
    ours, torchs = Linear(784, 500), nn.Linear(784, 500)
    torchs.load_state_dict(ours.state_dict())
    return ours, torchs


def test_values_and_gradients_are_those_of_torch(onednn: list[tuple[int, ...]]) -> None:
    ours, torchs = new_layers()
    x = torch.randn(100, 784)
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    weights = torch.randn(100, 500)
    for layer, batch in zip((ours, torchs), inputs, strict=True):
        (layer(batch) * weights).sum().backward()
    assert onednn == [(100, 784, 500, 784), (100, 500, 784, 500), (500, 100, 784, 100)]
    torch.testing.assert_close(ours(inputs[0]), torchs(inputs[1]))
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-4, atol=1e-4)
    for found, expected in zip(ours.parameters(), torchs.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=1e-4)


def test_the_first_layer_computes_no_gradient_of_the_images(onednn: list[tuple[int, ...]]) -> None:
    Linear(784, 500)(torch.randn(100, 784)).sum().backward()
    assert len(onednn) == 2


@pytest.mark.parametrize(("rows", "dtype"), [(2, torch.float32), (100, torch.float64)], ids=["small", "float64"])
def test_other_products_are_those_of_torch_to_the_bit(
    rows: int, dtype: torch.dtype, onednn: list[tuple[int, ...]]
) -> None:
    ours, torchs = (layer.to(dtype) for layer in new_layers())
    x = torch.randn(rows, 784, dtype=dtype)
    assert torch.equal(ours(x), torchs(x))
    assert onednn == []


def test_under_autocast_the_layer_is_that_of_torch(onednn: list[tuple[int, ...]]) -> None:
    ours, torchs = new_layers()
    x = torch.randn(100, 784)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ours(x), torchs(x))
    assert onednn == []


def test_an_exported_net_has_the_operators_of_torch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "mkl_is_slow", lambda: True)
    program = torch.export.export(Linear(784, 500), (torch.randn(100, 784),))
    assert "imageclf" not in program.graph_module.code


@pytest.fixture
def fresh_answer() -> Iterator[None]:
    linear.mkl_is_slow.cache_clear()
    yield
    linear.mkl_is_slow.cache_clear()


@pytest.mark.usefixtures("fresh_answer")
@pytest.mark.parametrize(
    ("vendor", "flags", "slow"),
    [
        ("AuthenticAMD", {"avx512f"}, torch.backends.mkldnn.is_available()),
        ("AuthenticAMD", {"avx2"}, False),
        ("GenuineIntel", {"avx512f"}, False),
        ("", set(), False),
    ],
)
def test_mkl_is_slow_on_amd_with_avx512_alone(
    vendor: str, flags: set[str], slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cores, "processor_vendor", lambda: vendor)
    monkeypatch.setattr(cores, "processor_flags", lambda: flags)
    assert linear.mkl_is_slow() == slow
