"""Is training on the device right: against float32 on the CPU, against itself, and without waiting for it."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.gpu_training import (
    PRECISIONS,
    QUICK,
    Precision,
    Rows,
    Task,
    Values,
    first,
    new_net,
    read,
    train,
    why_skipped,
)
from imageclf.fit import Position
from imageclf.runtime import choose_device

STEPS, QUICK_STEPS = 20, 5

Trained = tuple[list[float], list[Tensor]]
"""The loss of each step, and the weights after the last, on the CPU."""

BOUNDS: dict[Precision, dict[int, float]] = {
    "float32": {1: 1e-5, 5: 2e-3, 20: 0.1},
    "tf32": {1: 1e-3, 5: 1e-2, 20: 0.2},
    "bfloat16": {1: 1e-2, 5: 5e-2, 20: 0.3},
}
"""How far the loss of step 1, 5 and 20 may be from float32 on the CPU, as a share of it.

The first is a forward pass, where only rounding differs. Then training drives apart what rounding began: a max-pool
sends the gradient of a tie, of which blank paper has many, to another pixel. So the bounds are two to fifty times
what was seen on the CPU, at the worst over all recipes but torchvision's, some with smaller batches and VGG also
narrower: float32 by other convolutions (without oneDNN) 2e-7, 1e-4, 0.05; bfloat16 7e-4, 6e-3, 0.09. TF32 has eight
times the resolution of bfloat16.
"""


def measure(folder: Path, device: torch.device, recipes: dict[str, Values], quick: bool) -> Rows:
    """A row for each check of each recipe; `ok` says whether it held."""
    return [row for name, recipe in recipes.items() for row in _check(folder, device, name, recipe, quick)]


def _check(folder: Path, device: torch.device, name: str, recipe: Values, quick: bool) -> Iterator[Values]:
    if reason := why_skipped(recipe["model"]):
        yield {"recipe": name, "skipped": reason}
        return
    if quick:
        recipe = {**recipe, **QUICK}
    steps = partial(_steps, folder, recipe, QUICK_STEPS if quick else STEPS)
    expected, _ = steps(choose_device("cpu"), "float32")
    for precision in PRECISIONS:
        losses, _ = steps(device, precision)
        yield from _against(name, precision, losses, expected)
    yield {
        "recipe": name,
        "check": "bfloat16, as it comes: twice the same bits",
        "same": _twice_the_same(steps, device),
    }
    with _deterministic() as told:
        same = _twice_the_same(steps, device)
    yield {
        "recipe": name,
        "check": "bfloat16, deterministic: twice the same bits",
        "same": same,
        "ok": same,
        "undetermined": sorted({text.split()[0] for text in map(_text, told) if "deterministic" in text}),
    }


def _against(name: str, precision: Precision, losses: list[float], expected: list[float]) -> Iterator[Values]:
    for step, bound in BOUNDS[precision].items():
        if step <= len(losses):
            difference = abs(losses[step - 1] / expected[step - 1] - 1)
            yield {
                "recipe": name,
                "check": f"{precision}: loss of step {step} as on the CPU",
                "loss": losses[step - 1],
                "difference": difference,
                "bound": bound,
                "ok": difference <= bound,
            }


def _text(warning: warnings.WarningMessage) -> str:
    return str(warning.message)


def _twice_the_same(steps: Callable[[torch.device, Precision], Trained], device: torch.device) -> bool:
    losses, weights = steps(device, "bfloat16")
    again, weights_again = steps(device, "bfloat16")
    return losses == again and all(map(torch.equal, weights, weights_again))


def _steps(folder: Path, recipe: Values, steps: int, device: torch.device, precision: Precision) -> Trained:
    """The first `steps` steps of a recipe.

    On a GPU it raises `RuntimeError` where anything between the first step and the last waits for the device.
    """
    data = read(folder, recipe)
    task = Task(recipe, data, first(data["train"], steps * recipe["batch_size"]), device, precision)
    net = new_net(task)
    losses = torch.zeros(0)

    def on_step(at: Position) -> None:
        nonlocal losses
        assert at.losses is not None
        losses = at.losses
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("error" if at.step < steps else "default")

    try:
        next(train(net, task, on_step))
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    return losses.tolist(), _state(net)


def _state(net: nn.Module) -> list[Tensor]:
    return [tensor.detach().cpu() for tensor in net.state_dict().values()]


@contextmanager
def _deterministic() -> Iterator[list[warnings.WarningMessage]]:
    """Torch's deterministic mode; gives its warnings, one for each operation that has no deterministic form.

    It warns and does not raise: whether the bits are the same is looked at, for all operations.
    """
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            yield told
    finally:
        torch.use_deterministic_algorithms(mode=False)
