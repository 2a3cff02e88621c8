"""Correctness of training on a device: equal to float32 on the CPU, repeatable, and without waiting for the device."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks import gpu_training
from benchmarks.gpu_training import Job, Precision, Rows, Values
from imageclf.training.fit import Position
from imageclf.training.runtime import choose_device

STEPS, QUICK_STEPS = 20, 5

Trained = tuple[list[float], list[Tensor]]
"""The loss of each step, and the weights after the last step, on the CPU."""

BOUNDS: dict[Precision, dict[int, float]] = {
    "float32": {1: 1e-5, 5: 2e-3, 20: 0.1},
    "tf32": {1: 1e-3, 5: 1e-2, 20: 0.2},
    "bfloat16": {1: 1e-2, 5: 0.1, 20: 0.3},
}
"""Largest relative difference from float32 on the CPU that is allowed for the loss of steps 1, 5 and 20.

Step 1 is one forward pass, so only rounding differs. Training then amplifies the differences: if several pixels of a
max-pool window are equal, as in the blank parts of MNIST, rounding decides which one receives the gradient. The
bounds are two to fifty times the largest differences measured on a CPU, over all recipes except torchvision's, some
with smaller batches and VGG also narrower: float32 with other convolutions (without oneDNN) 2e-7, 1e-4, 0.05;
bfloat16 7e-4, 6e-3, 0.09. TF32 has eight times the resolution of bfloat16. GoogLeNet with batches of 4 has the
largest differences in bfloat16: 4e-3, 0.05.
"""


def measure(folder: Path, device: torch.device, recipes: dict[str, Values], quick: bool) -> Rows:
    """Return a row for each check of each recipe; `ok` is True if it passed."""
    return [row for name, parameters in recipes.items() for row in _check(folder, device, name, parameters, quick)]


def _check(folder: Path, device: torch.device, name: str, parameters: Values, quick: bool) -> Iterator[Values]:
    if reason := gpu_training.why_skipped(parameters["model"]):
        yield {"recipe": name, "skipped": reason}
        return
    if quick:
        parameters = {**parameters, **gpu_training.SMALL}
    steps = partial(_steps, folder, parameters, QUICK_STEPS if quick else STEPS)
    expected, _ = steps(choose_device("cpu"), "float32")
    for precision in gpu_training.PRECISIONS:
        losses, _ = steps(device, precision)
        yield from _compare(name, precision, losses, expected)
    same = _same_bits_twice(steps, device)
    yield {"recipe": name, "check": "bfloat16, default mode: same bits twice", "same": same}
    with _deterministic() as caught:
        same = _same_bits_twice(steps, device)
    texts = [str(warning.message) for warning in caught]
    yield {
        "recipe": name,
        "check": "bfloat16, deterministic mode: same bits twice",
        "same": same,
        "ok": same,
        "not_deterministic": sorted({text.split()[0] for text in texts if "deterministic" in text}),
    }


def _compare(name: str, precision: Precision, losses: list[float], expected: list[float]) -> Iterator[Values]:
    for step, bound in BOUNDS[precision].items():
        if step <= len(losses):
            difference = abs(losses[step - 1] / expected[step - 1] - 1)
            yield {
                "recipe": name,
                "check": f"{precision}: loss of step {step} equals the CPU's",
                "loss": losses[step - 1],
                "difference": difference,
                "bound": bound,
                "ok": difference <= bound,
            }


def _same_bits_twice(steps: Callable[[torch.device, Precision], Trained], device: torch.device) -> bool:
    losses, weights = steps(device, "bfloat16")
    losses_again, weights_again = steps(device, "bfloat16")
    return losses == losses_again and all(map(torch.equal, weights, weights_again))


def _steps(folder: Path, parameters: Values, steps: int, device: torch.device, precision: Precision) -> Trained:
    """Train the first `steps` steps of a recipe.

    On a GPU, raises `RuntimeError` if the program waits for the device between the first step and the last.
    """
    data = gpu_training.read(folder, parameters)
    images = gpu_training.some(data["train"], steps * parameters["batch_size"])
    job = Job(parameters, data, images, device, precision)
    net = gpu_training.new_net(job)
    losses = torch.zeros(0)

    def on_step(at: Position) -> None:
        nonlocal losses
        assert at.losses is not None
        losses = at.losses
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("error" if at.step < steps else "default")

    try:
        next(gpu_training.train(net, job, on_step))
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    return losses.tolist(), _state(net)


def _state(net: nn.Module) -> list[Tensor]:
    return [tensor.detach().cpu() for tensor in net.state_dict().values()]


@contextmanager
def _deterministic() -> Iterator[list[warnings.WarningMessage]]:
    """Turn on torch's deterministic mode; yield its warnings, one for each operation without a deterministic version.

    It warns instead of raising an error, because the caller compares the bits that all operations give.
    """
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield caught
    finally:
        torch.use_deterministic_algorithms(mode=False)
