"""How fast a training step is: images a second of our loop and of two others, in turn, and what the chip could do."""

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import gpu_loops
from benchmarks.gpu_training import (
    PRECISIONS,
    Precision,
    Rows,
    Task,
    Values,
    first,
    mixed,
    new_net,
    read,
    synchronize,
    train,
    why_skipped,
)
from benchmarks.gpu_training import (
    QUICK as SMALL,
)

ENDLESS = 10_000
"""Epochs that nobody waits for: the learning rate stays where its schedule starts."""

NETS: dict[str, tuple[str, Values]] = {
    "fc500": ("fc500", {}),
    "mlp5": ("mlp5", {}),
    "cnn6": ("cnn6", {}),
    "cifar-cnn": ("cifar-cnn", {}),
    "vgg11": ("vgg-cifar10", {}),
    "vgg16": ("vgg-cifar10", {"model": "vgg16"}),
    "googlenet": ("googlenet", {}),
    "resnet18": ("resnet18", {}),
}
"""What is measured, as a recipe and what differs from it."""

Loop = Callable[[nn.Module, Task], Iterator[object]]

LOOPS: dict[str, tuple[Loop, Precision]] = {
    "ours": (train, "bfloat16"),
    "plain": (gpu_loops.plain, "bfloat16"),
    "ours in tf32": (train, "tf32"),
    "tutorial": (gpu_loops.tutorial, "float32"),
}


@dataclass(frozen=True)
class Size:
    """How much is measured: images of an epoch, seconds a round at least, rounds, side of the square product."""

    images: int
    seconds: float
    rounds: int
    product: int


FULL, QUICK = Size(images=20_000, seconds=1.0, rounds=5, product=8192), Size(8, 0.0, 2, 64)


@dataclass(frozen=True)
class _Round:
    rate: float
    peak_bytes: int | None


def measure(folder: Path, device: torch.device, recipes: dict[str, Values], quick: bool) -> Rows:
    """A row for each product, and for each net and loop: medians over the rounds, the lowest and the highest.

    `ours_is_faster` is how many times as fast as this loop ours is, in bfloat16.
    """
    size = QUICK if quick else FULL
    teraflops: dict[Precision, float] = {precision: _product(precision, size, device) for precision in PRECISIONS}
    rows: Rows = [
        {"net": f"product of {size.product}", "precision": precision, "teraflops": rate}
        for precision, rate in teraflops.items()
    ]
    for name, (recipe, changes) in NETS.items():
        settings = {**recipes[recipe], **changes, "epochs": ENDLESS, **(SMALL if quick else {})}
        if reason := why_skipped(settings["model"]):
            rows.append({"net": name, "skipped": reason})
            continue
        data = read(folder, settings)
        task = Task(settings, data, first(data["train"], size.images), device, "float32")
        rows += _compare(name, task, size, teraflops)
    return rows


def _product(precision: Precision, size: Size, device: torch.device) -> float:
    """10^12 operations a second of a square matrix product."""
    mixed(precision, device)
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    left, right = torch.randn(2, size.product, size.product, device=device, dtype=dtype)
    rates: list[float] = []
    for _ in range(size.rounds + 1):
        synchronize(device)
        start = time.perf_counter()
        for _ in range(10):
            torch.mm(left, right)
        synchronize(device)
        rates.append(10 * 2 * size.product**3 / (time.perf_counter() - start))
    return statistics.median(rates[1:]) / 1e12


def _compare(name: str, task: Task, size: Size, teraflops: dict[Precision, float]) -> Rows:
    """The loops in turn, round by round, so that whatever else the machine does hits all of them."""
    tasks = {loop: replace(task, precision=precision) for loop, (_, precision) in LOOPS.items()}
    rounds: dict[str, list[_Round]] = {loop: [] for loop in LOOPS}
    for _ in range(size.rounds):
        for loop, (start_loop, _precision) in LOOPS.items():
            rounds[loop].append(_round(start_loop, tasks[loop], size.seconds))
    operations = _operations(task)
    rows = [_row(name, loop, tasks[loop].precision, found) for loop, found in rounds.items()]
    for row in rows:
        rate = row["images_per_second"]
        row["ours_is_faster"] = rows[0]["images_per_second"] / rate
        row["share_of_product"] = rate * operations / 1e12 / teraflops[row["precision"]]
    return rows


def _row(name: str, loop: str, precision: Precision, found: list[_Round]) -> Values:
    rates = [one.rate for one in found]
    peaks = [one.peak_bytes / 2**20 for one in found if one.peak_bytes is not None]
    return {
        "net": name,
        "loop": loop,
        "precision": precision,
        "images_per_second": statistics.median(rates),
        "lowest": min(rates),
        "highest": max(rates),
        "n": len(rates),
        "peak_mib": max(peaks, default=None),
    }


def _round(start_loop: Loop, task: Task, seconds: float) -> _Round:
    """One epoch to warm up, then whole epochs until `seconds` are over."""
    gc.collect()
    device = task.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    running = start_loop(new_net(task), task)
    next(running)
    synchronize(device)
    start, epochs = time.perf_counter(), 0
    while epochs == 0 or time.perf_counter() - start < seconds:
        next(running)
        epochs += 1
    synchronize(device)
    rate = epochs * len(task.images) / (time.perf_counter() - start)
    return _Round(rate, torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None)


def _operations(task: Task) -> int:
    """Floating-point operations of products and convolutions for one image, forward and backward, as torch counts."""
    net = new_net(replace(task, device=torch.device("cpu")))
    images = torch.zeros(2, *task.data.image_shape)
    with FlopCounterMode(display=False) as counter:
        net(images).sum().backward()
    return counter.get_total_flops() // 2
