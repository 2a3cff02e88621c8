"""The machine is read rightly, what it lacks is said in a sentence, and derived seeds are unrelated."""

import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from typing import NoReturn

import pytest
import torch
from imports import ROOT

from imageclf.core import cores, memory, spinning
from imageclf.core.errors import UserError
from imageclf.training import runtime

CPU = torch.device("cpu")


def test_auto_is_the_best_device_there_is() -> None:
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert runtime.choose_device("auto") == torch.device(best)


def test_cpu_is_always_there() -> None:
    assert runtime.choose_device("cpu") == CPU


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(name: str) -> None:
    if (torch.cuda if name == "cuda" else torch.backends.mps).is_available():
        pytest.skip(f"this machine has {name}")
    with pytest.raises(UserError, match=rf"runtime.device: torch sees no {name} here; there is .*cpu"):
        runtime.choose_device(name)


NO_KERNELS = "CUDA error: no kernel image is available for execution on the device\nFor debugging consider ..."
FULL = "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.19 GiB"


@pytest.fixture
def broken_gpu(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A device that torch sees, on which the first computation fails with a message of torch's."""

    def fail(*_: object, device: torch.device | str, **__: object) -> NoReturn:
        kind = torch.OutOfMemoryError if "out of memory" in request.param else RuntimeError
        raise kind(request.param)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", fail)


@pytest.mark.usefixtures("broken_gpu")
@pytest.mark.parametrize("broken_gpu", [NO_KERNELS], indirect=True)
def test_auto_passes_over_a_device_that_does_not_compute_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert runtime.choose_device("auto") == CPU
    reason = "CUDA error: no kernel image is available for execution on the device"
    assert capsys.readouterr().out.splitlines() == [
        f"runtime.device: {device} cannot be used ({reason}); auto takes the next device" for device in ("cuda", "mps")
    ]
    assert not torch.cuda.is_available()  # or Adam would ask it


@pytest.mark.usefixtures("broken_gpu")
@pytest.mark.parametrize("broken_gpu", [NO_KERNELS], indirect=True)
@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_a_device_asked_for_by_name_that_does_not_compute_is_refused(name: str) -> None:
    with pytest.raises(
        UserError, match=rf"^runtime.device: {name} cannot be used \(CUDA error: no .* device\); set it"
    ):
        runtime.choose_device(name)


@pytest.mark.usefixtures("broken_gpu")
@pytest.mark.parametrize(
    "broken_gpu", [FULL, "CUDA error: CUDA-capable device(s) is/are busy or unavailable"], indirect=True
)
@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_a_device_that_others_fill_is_refused_even_with_auto(name: str) -> None:
    with pytest.raises(UserError, match=r"^runtime.device: cuda is in use by other programs \(CUDA .*\); .* cpu in"):
        runtime.choose_device(name)


def test_a_device_that_computes_has_no_problem() -> None:
    assert runtime.device_problem(CPU) is None


@pytest.mark.parametrize(("asked", "given"), [(1, 1), (2, 2), ("auto", 3)])
def test_torch_gets_the_threads(asked: int | str, given: int, monkeypatch: pytest.MonkeyPatch) -> None:
    adapting: list[object] = []
    monkeypatch.setattr(cores, "allowed_cores", lambda: 3)
    monkeypatch.setattr(spinning, "adapt", adapting.append)
    before = torch.get_num_threads()
    try:
        assert runtime.set_threads(asked) == given
        assert torch.get_num_threads() == given
        assert len(adapting) == (given > 1)  # a single thread waits for no other
    finally:
        torch.set_num_threads(before)


def test_float32_is_no_autocast() -> None:
    with runtime.autocast("float32", CPU):
        assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("flags", [{"avx512_bf16"}, {"amx_bf16", "sse"}])
def test_bfloat16_is_autocast(flags: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "processor_flags", lambda: flags)
    with runtime.autocast("bfloat16", CPU):
        assert torch.is_autocast_enabled("cpu")
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16


@pytest.mark.parametrize("flags", [set(), {"avx512f", "amx_tile"}])
def test_bfloat16_is_refused_where_it_would_crawl(flags: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "processor_flags", lambda: flags)
    with pytest.raises(UserError, match=r"precision: .*use float32"):
        runtime.autocast("bfloat16", CPU)


@pytest.fixture
def products_as_before() -> Iterator[None]:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.usefixtures("products_as_before")
@pytest.mark.parametrize(("device", "precision", "convolutions"), [("cuda", "high", True), ("cpu", "highest", False)])
def test_a_gpu_may_compute_in_tf32_and_nothing_else_changes(device: str, precision: str, convolutions: bool) -> None:
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    runtime.allow_tf32(torch.device(device))
    assert torch.get_float32_matmul_precision() == precision
    assert torch.backends.cudnn.allow_tf32 == convolutions


def test_denormal_numbers_are_zero_in_every_thread() -> None:
    """The flag belongs to a thread, so it must be set before torch starts its threads."""
    program = """
import torch
from imageclf.training import runtime

runtime.set_threads(4)
values = torch.full((4_000_000,), 1e-38) * torch.tensor(1e-3)
print(torch.get_num_threads(), values.count_nonzero().item())
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "4 0\n"


def test_free_memory_of_the_cpu_is_that_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda: 123)
    assert runtime.free_memory(CPU) == 123


def test_filters_lie_channels_last_and_the_maps_follow() -> None:
    net = torch.nn.Conv2d(3, 4, 3)
    assert runtime.place(net, CPU) is net
    assert net.weight.is_contiguous(memory_format=torch.channels_last)
    assert net(torch.ones(2, 3, 8, 8)).is_contiguous(memory_format=torch.channels_last)


def test_a_derived_seed_is_a_function_of_its_path() -> None:
    assert runtime.derive(3, 1, 4) == runtime.derive(3, 1, 4)


def test_seeds_derived_along_different_paths_differ() -> None:
    """All that one training draws, and those of other seeds."""
    paths = list(product(range(20), range(1, 30), range(4)))
    starts = [(seed, 0) for seed in range(20)]
    assert len({runtime.derive(*path) for path in paths + starts}) == len(paths) + len(starts)


def test_derived_seeds_are_stable() -> None:
    """Published results name a seed: its draws must outlive a refactoring."""
    assert runtime.derive(0, 0) == 4_334_430_513_956_379_144
    assert runtime.derive(1, 2, 3) == 5_464_283_449_182_725_445


def test_derived_seeds_are_what_torch_takes() -> None:
    derived = [runtime.derive(seed, epoch) for seed in (0, 2**32 - 1) for epoch in range(500)]
    assert all(0 <= seed < 2**63 for seed in derived)
    assert max(derived) > 2**62, "all bits are used"
    torch.Generator().manual_seed(max(derived))
