"""What the training does on a GPU: is it right, how fast is it, when does it reach an accuracy.

    python -m benchmarks.gpu --prepare <folder>              # once, where the project is installed
    python -m benchmarks.gpu --data <folder> --out gpu.json  # on the GPU: needs python 3.11, torch and numpy, no more
    python -m benchmarks.gpu --data <folder> --device cpu --quick

`<folder>` holds prepared sets, `mnist` and `cifar10`, as `imageclf.splits` reads them. Nets of torchvision are
skipped by name where it is missing. The exit code is 1 if a check of `correct` fails.
"""

import argparse
import os
import platform
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# cuBLAS gives the same bits twice only with a workspace of fixed size, and reads this once: 8 of 4 MiB, as much as it
# takes by default on Hopper. See torch.use_deterministic_algorithms.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch

from benchmarks import gpu_accuracy, gpu_correct, gpu_speed
from benchmarks.gpu_training import Rows, Values
from imageclf import errors, files, runtime, splits

COMMON: Values = {
    "width": 1.0,
    "dropout": 0.0,
    "kernel_size": 3,
    "conv_padding": "same",
    "loss": "cross_entropy",
    "label_smoothing": 0.0,
    "momentum": 0.0,
    "nesterov": False,
    "weight_decay": 0.0,
    "schedule": "constant",
    "warmup": 0.0,
    "normalize": "standard",
    "shift": 0,
    "flip": False,
    "cutout": 0,
    "seed": 0,
}
ADAM: Values = {**COMMON, "optimizer": "adam", "lr": 0.001}
MOMENTUM: Values = {**COMMON, "optimizer": "sgd", "lr": 0.01, "momentum": 0.5}
TUTORIAL_CNN: Values = {"model": "cnn", "kernel_size": 5, "conv_padding": "valid", "batch_size": 64}
RECIPES: dict[str, Values] = {
    "fc500": {
        **ADAM,
        "dataset": "mnist",
        "normalize": "unit",
        "model": "mlp",
        "hidden": [500],
        "batch_size": 100,
        "epochs": 5,
    },
    "mlp5": {
        **MOMENTUM,
        "dataset": "mnist",
        "model": "mlp",
        "hidden": [512, 256, 128, 64],
        "batch_size": 64,
        "epochs": 10,
    },
    "cnn6": {
        **MOMENTUM,
        **TUTORIAL_CNN,
        "dataset": "mnist",
        "channels": [6, 6],
        "hidden": [50],
        "loss": "nll",
        "epochs": 1,
    },
    "cifar-cnn": {
        **ADAM,
        **TUTORIAL_CNN,
        "dataset": "cifar10",
        "normalize": "symmetric",
        "channels": [6, 16],
        "hidden": [120, 84],
        "epochs": 10,
    },
    "vgg-cifar10": {
        **COMMON,
        "dataset": "cifar10",
        "model": "vgg11",
        "label_smoothing": 0.1,
        "optimizer": "sgd",
        "lr": 0.1,
        "momentum": 0.9,
        "nesterov": True,
        "weight_decay": 0.0005,
        "schedule": "one_cycle",
        "shift": 4,
        "flip": True,
        "batch_size": 256,
        "epochs": 60,
    },
    "mnist-cnn": {
        **ADAM,
        **TUTORIAL_CNN,
        "dataset": "mnist",
        "channels": [32, 64],
        "hidden": [256],
        "lr": 0.01,
        "schedule": "one_cycle",
        "batch_size": 256,
        "epochs": 4,
    },
    "googlenet": {**ADAM, "dataset": "cifar10", "model": "googlenet", "batch_size": 64, "epochs": 1},
    "resnet18": {**ADAM, "dataset": "cifar10", "model": "resnet18", "batch_size": 64, "epochs": 1},
}
"""What recipes.yaml says of these, as far as training reads it: there is no YAML on the machine. A test compares."""

PARTS: dict[str, Callable[[Path, torch.device, dict[str, Values], bool], Rows]] = {
    "correct": gpu_correct.measure,
    "speed": gpu_speed.measure,
    "accuracy": gpu_accuracy.measure,
}
"""From the folder of data, the device, the recipes and whether to be quick, to a table."""


@dataclass(frozen=True)
class _Asked:
    """The command line."""

    parts: list[str]
    data: Path
    device: str
    quick: bool
    out: Path | None


def machine(device: torch.device) -> Values:
    """What the numbers depend on, beside the code."""
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }


def table(rows: Iterable[Values]) -> str:
    """Rows as aligned text; a row need not have every column."""
    rows = list(rows)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [columns, *([_cell(row.get(column)) for column in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in cells)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, list):
        return " ".join(map(_cell, value))
    return "" if value is None else str(value)


def run(asked: _Asked) -> bool:
    """Measure, print each part as it ends, write the JSON; whether every check held."""
    device = runtime.choose_device(asked.device)
    runtime.set_threads("auto")
    found: dict[str, Any] = {"machine": machine(device), "quick": asked.quick, "recipes": RECIPES}
    found["data"] = {name: splits.read(asked.data / name).sha256 for name in ("mnist", "cifar10")}
    print(table([found["machine"]]))
    for part in asked.parts:
        found[part] = PARTS[part](asked.data, device, RECIPES, asked.quick)
        print(f"\n{part}\n{table(found[part])}", flush=True)
        if asked.out is not None:  # after each part: what is done is kept if the next is cut short
            files.write_json(asked.out, found)
    return all(row.get("ok", True) for row in found.get("correct", []))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--data", type=Path, help="folder of the prepared sets mnist and cifar10")
    parser.add_argument("--prepare", type=Path, metavar="FOLDER", help="make these sets in FOLDER, and no more")
    parser.add_argument("--archives", type=Path, default=Path("../shared/datasets"), help="from these (%(default)s)")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="default: %(default)s")
    parser.add_argument(
        "--quick", action="store_true", help="a few steps of everything: it runs, its numbers say little"
    )
    parser.add_argument("--out", type=Path, help="write the numbers here, as JSON")
    given = parser.parse_args()
    if unknown := [part for part in given.parts if part not in PARTS]:
        parser.error(f"{unknown[0]!r} is none of {', '.join(PARTS)}")
    if given.prepare is not None:
        from benchmarks import gpu_data  # needs what decodes images

        gpu_data.make(given.archives, given.prepare)
    elif given.data is None:
        parser.error("name the prepared data with --data, or make it with --prepare")
    elif not run(_Asked(given.parts or list(PARTS), given.data, given.device, given.quick, given.out)):
        sys.exit("error: a check of `correct` failed")


if __name__ == "__main__":
    errors.run(main)
