"""When does training reach an accuracy: seconds and test scores of several seeds, and of a process of its own."""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.gpu_training import QUICK, Rows, Task, Values, first, new_net, read, synchronize, train
from imageclf.batches import Batches, Normalize
from imageclf.losses import LOSSES
from imageclf.runtime import choose_device
from imageclf.scoring import BATCH_SIZE, score


class Target(NamedTuple):
    """A test accuracy, and the epochs that a training may have for it: the fewest that reach it in the mean count."""

    accuracy: float
    epochs: tuple[int, ...]


TARGETS = {"mnist-cnn": Target(0.99, (1, 2, 4)), "vgg-cifar10": Target(0.92, (15, 30, 60))}
ROOT = Path(__file__).resolve().parents[1]
SEEDS, QUICK_SEEDS = 5, 2
QUICK_IMAGES = 16


class Result(NamedTuple):
    """Test accuracy, and seconds from the prepared files to it."""

    accuracy: float
    seconds: float


def measure(folder: Path, device: torch.device, recipes: dict[str, Values], quick: bool) -> Rows:
    """Rows for each recipe: the seeds for each number of epochs until the mean reaches the target, and a cold start."""
    rows: Rows = []
    for name, target in TARGETS.items():
        recipe = {**recipes[name], **(QUICK if quick else {})}
        reach(folder, {**recipe, "epochs": 1}, device, quick)  # what only the first training of a process pays
        for epochs in (1, 2) if quick else target.epochs:
            recipe = {**recipe, "epochs": epochs}
            found = _seeds(folder, recipe, device, quick)
            reached = found["accuracy_mean"] >= target.accuracy
            rows.append({"recipe": name, "target": target.accuracy, "reached": reached, **found})
            if reached:
                break
        rows.append({"recipe": name, **_cold(folder, recipe, device, quick)})
    return rows


def _seeds(folder: Path, recipe: Values, device: torch.device, quick: bool) -> Values:
    seeds = range(QUICK_SEEDS if quick else SEEDS)
    found = [reach(folder, {**recipe, "seed": seed}, device, quick) for seed in seeds]
    accuracies, seconds = ([*values] for values in zip(*found, strict=True))
    return {
        "start": "warm",
        "epochs": recipe["epochs"],
        "n": len(found),
        "accuracy_mean": statistics.mean(accuracies),
        "accuracy_std": statistics.stdev(accuracies),
        "seconds_mean": statistics.mean(seconds),
        "seconds_std": statistics.stdev(seconds),
        "accuracies": accuracies,
        "seconds": seconds,
    }


def _cold(folder: Path, recipe: Values, device: torch.device, quick: bool) -> Values:
    """A process from its start to its end: imports, the device's own start, data, training and score."""
    asked = json.dumps([str(folder.resolve()), recipe, device.type, quick])
    start = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.gpu_accuracy", asked]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    seconds = time.perf_counter() - start
    return {
        "start": "cold",
        "epochs": recipe["epochs"],
        "n": 1,
        "accuracy_mean": json.loads(done.stdout)["accuracy"],
        "seconds_mean": seconds,
    }


def reach(folder: Path, recipe: Values, device: torch.device, quick: bool) -> Result:
    """Train a recipe on all training images, in bfloat16 on a GPU, and score the test images once."""
    synchronize(device)
    start = time.perf_counter()
    data = read(folder, recipe)
    parts = {split: first(data[split], QUICK_IMAGES) if quick else data[split] for split in ("train", "test")}
    task = Task(recipe, data, parts["train"], device, "bfloat16" if device.type == "cuda" else "float32")
    net = new_net(task)
    for _ in train(net, task):
        pass
    test = Batches(parts["test"], Normalize(data.normalization), BATCH_SIZE, device)
    accuracy = score(net, test, LOSSES[recipe["loss"]]).accuracy
    return Result(accuracy, time.perf_counter() - start)


def main() -> None:
    """One training, as `_cold` asks for it; prints its result as JSON."""
    parser = argparse.ArgumentParser(description="One training of the GPU benchmark, in a process of its own.")
    parser.add_argument("asked", help="JSON: folder, recipe, device, quick")
    folder, recipe, device, quick = json.loads(parser.parse_args().asked)
    print(json.dumps(reach(Path(folder), recipe, choose_device(device), quick)._asdict()))


if __name__ == "__main__":
    main()
