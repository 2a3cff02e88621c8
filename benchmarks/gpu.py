"""Measure training on a GPU: correctness, speed, and the time to reach a test accuracy.

    python -m benchmarks.gpu --prepare <folder>              # once, on a machine with the project installed
    python -m benchmarks.gpu --data <folder> --out gpu.json  # on the GPU: needs Python 3.11, torch, numpy, safetensors
    python -m benchmarks.gpu --data <folder> --device cpu --quick

`--prepare` writes the prepared data sets `mnist` and `cifar10`, as `imageclf.contracts.dataset` reads them, and
`recipes.json`, the parameters of the measured recipes. Nets from torchvision are skipped if it is not installed. The
exit code is 1 if a check of the part `correct` fails.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

# cuBLAS gives the same bits twice only with a workspace of fixed size, and reads this variable once. Eight buffers of
# 4 MiB are what it uses by default on Hopper. See torch.use_deterministic_algorithms.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch

from benchmarks import gpu_accuracy, gpu_correct, gpu_speed, machine
from benchmarks.gpu_training import Rows, Values
from benchmarks.output import markdown_table
from imageclf.contracts import dataset
from imageclf.core import files, process
from imageclf.core.errors import UserError
from imageclf.training import runtime

RECIPES = "recipes.json"
MEASURED = list(dict.fromkeys([*(recipe for recipe, _ in gpu_speed.NETS.values()), *gpu_accuracy.TARGETS]))
"""Names of the recipes that `recipes.json` holds."""

PARTS: dict[str, Callable[[Path, torch.device, dict[str, Values], bool], Rows]] = {
    "correct": gpu_correct.measure,
    "speed": gpu_speed.measure,
    "accuracy": gpu_accuracy.measure,
}
"""Functions that take the data folder, the device, the recipes and `quick`, and return the rows of a table."""


def describe(device: torch.device) -> Values:
    """Return the machine and the versions that the numbers depend on."""
    described = {**machine.describe(("torch", "numpy", "torchvision")), "threads": torch.get_num_threads()}
    if device.type == "cuda":
        described["gpu"] = torch.cuda.get_device_name(device)
        described |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return described


def table(rows: Iterable[Values]) -> str:
    """Return rows as a table; a row may lack some columns."""
    rows = list(rows)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return markdown_table([columns, *([_cell(row.get(column)) for column in columns] for row in rows)])


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, list):
        return " ".join(map(_cell, value))
    return "" if value is None else str(value)


def read_recipes(folder: Path) -> dict[str, Values]:
    """Return the parameters of each recipe in the prepared folder; raises `UserError` if they are missing."""
    path = folder / RECIPES
    if not path.is_file():
        raise UserError(f"{path} does not exist; run `python -m benchmarks.gpu --prepare {folder}` to write it")
    return json.loads(path.read_text())


def run(parts: list[str], folder: Path, device: torch.device, quick: bool, out: Path | None) -> bool:
    """Measure, print each part when it ends, and write the JSON file; return True if every check passed."""
    runtime.set_threads("auto")
    recipes = read_recipes(folder)
    found: dict[str, Any] = {"machine": describe(device), "quick": quick, "recipes": recipes}
    found["data"] = {name: dataset.read(folder / name).manifest.sha256 for name in ("mnist", "cifar10")}
    print(", ".join(f"{key}: {value}" for key, value in found["machine"].items()))
    for part in parts:
        found[part] = PARTS[part](folder, device, recipes, quick)
        print(f"\n{part}\n{table(found[part])}", flush=True)
        if out is not None:  # after each part, so that an interrupted run keeps the parts that are finished
            files.write_json(out, found)
    return all(row.get("ok", True) for row in found.get("correct", []))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="part", help=f"one or more of {', '.join(PARTS)}; default: all")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="folder that --prepare has written")
    parser.add_argument("--prepare", type=Path, metavar="FOLDER", help="write data and recipes into FOLDER, then stop")
    parser.add_argument("--archives", type=Path, default=Path("../shared/datasets"), help="default: %(default)s")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="a few steps of each part, to see that it runs")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    given = parser.parse_args()
    if unknown := [part for part in given.parts if part not in PARTS]:
        parser.error(f"unknown part {unknown[0]!r}; choose from {', '.join(PARTS)}")
    if given.prepare is not None:
        from benchmarks import gpu_data  # needs packages that read YAML and decode images

        gpu_data.write_recipes(MEASURED, given.prepare / RECIPES)
        gpu_data.write_data(given.archives, given.prepare)
    elif given.data is None:
        parser.error("no data: give --data FOLDER, or write it with --prepare FOLDER")
    elif not run(given.parts or list(PARTS), given.data, runtime.choose_device(given.device), given.quick, given.out):
        sys.exit("error: a check of `correct` failed")


if __name__ == "__main__":
    process.run(main)
