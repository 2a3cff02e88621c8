"""Speed of training: images per second of three loops, measured in turn, compared with a large matrix product."""

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import gpu_loops, gpu_training
from benchmarks.gpu_training import PRECISIONS, Job, Precision, Rows, Values, synchronize, train

ENDLESS = 10_000
"""A number of epochs that is never reached: the learning rate stays at the start of its schedule."""

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
"""Measured nets: a recipe, and the parameters that differ from it."""

Loop = Callable[[nn.Module, Job], Iterator[object]]

LOOPS: dict[str, tuple[Loop, Precision]] = {
    "imageclf": (train, "bfloat16"),
    "optimized": (gpu_loops.optimized, "bfloat16"),
    "imageclf in tf32": (train, "tf32"),
    "tutorial": (gpu_loops.tutorial, "float32"),
}


@dataclass(frozen=True)
class Size:
    """Amount of measurement: images per epoch, least seconds per round, rounds, side of the square matrices."""

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
    """Return a row for each matrix product, and for each net and loop: median, lowest and highest of the rounds.

    `imageclf_speedup` is the speed of imageclf's loop in bfloat16 divided by the speed of the row's loop.
    """
    size = QUICK if quick else FULL
    teraflops: dict[Precision, float] = {precision: _product(precision, size, device) for precision in PRECISIONS}
    rows: Rows = [
        {"net": f"{size.product}x{size.product} matrix product", "precision": precision, "teraflops": rate}
        for precision, rate in teraflops.items()
    ]
    for name, (recipe, changes) in NETS.items():
        parameters = {**recipes[recipe], **changes, "epochs": ENDLESS, **(gpu_training.SMALL if quick else {})}
        if reason := gpu_training.why_skipped(parameters["model"]):
            rows.append({"net": name, "skipped": reason})
            continue
        data = gpu_training.read(folder, parameters)
        images = gpu_training.some(data["train"], size.images)
        rows += _compare(name, Job(parameters, data, images, device, "float32"), size, teraflops)
    return rows


def _product(precision: Precision, size: Size, device: torch.device) -> float:
    """Return the speed of a square matrix product, in 10^12 operations per second."""
    gpu_training.set_precision(precision, device)
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


def _compare(name: str, job: Job, size: Size, teraflops: dict[Precision, float]) -> Rows:
    """Measure all loops in every round, so that other load on the machine affects all of them."""
    jobs = {loop: replace(job, precision=precision) for loop, (_, precision) in LOOPS.items()}
    rounds: dict[str, list[_Round]] = {loop: [] for loop in LOOPS}
    for _ in range(size.rounds):
        for loop, (start_loop, _precision) in LOOPS.items():
            rounds[loop].append(_round(start_loop, jobs[loop], size.seconds))
    operations = _operations(job)
    rows = [_row(name, loop, jobs[loop].precision, found) for loop, found in rounds.items()]
    for row in rows:
        rate = row["images_per_second"]
        row["imageclf_speedup"] = rows[0]["images_per_second"] / rate
        row["share_of_matrix_product"] = rate * operations / 1e12 / teraflops[row["precision"]]
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


def _round(start_loop: Loop, job: Job, seconds: float) -> _Round:
    """Train one epoch to warm up, then whole epochs for at least `seconds`."""
    gc.collect()
    device = job.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    running = start_loop(gpu_training.new_net(job), job)
    next(running)
    synchronize(device)
    start, epochs = time.perf_counter(), 0
    while epochs == 0 or time.perf_counter() - start < seconds:
        next(running)
        epochs += 1
    synchronize(device)
    rate = epochs * len(job.images) / (time.perf_counter() - start)
    return _Round(rate, torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None)


def _operations(job: Job) -> int:
    """Return torch's count of floating-point operations per image, forward and backward: products and convolutions."""
    net = gpu_training.new_net(replace(job, device=torch.device("cpu")))
    images = torch.zeros(2, *job.data.manifest.image_shape)
    with FlopCounterMode(display=False) as counter:
        net(images).sum().backward()
    return counter.get_total_flops() // 2
