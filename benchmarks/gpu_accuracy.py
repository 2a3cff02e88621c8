"""Time to a test accuracy: seconds and scores for several seeds, and for one training in a new process."""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks import ROOT
from benchmarks.gpu_training import SMALL, Job, Rows, Values, new_net, read, some, synchronize, train
from imageclf.training.loading.batches import Batches, Normalize
from imageclf.training.losses import LOSSES
from imageclf.training.runtime import choose_device
from imageclf.training.scoring import BATCH_SIZE, score


class Target(NamedTuple):
    """A test accuracy, and the numbers of epochs to try, in this order, until the mean reaches it."""

    accuracy: float
    epochs: tuple[int, ...]


TARGETS = {"mnist-cnn": Target(0.99, (1, 2, 4)), "vgg-cifar10": Target(0.92, (15, 30, 60))}
SEEDS, QUICK_SEEDS = 5, 2
QUICK_IMAGES = 16


class Result(NamedTuple):
    """Test accuracy, and the seconds from reading the prepared files until it is known."""

    accuracy: float
    seconds: float


def measure(folder: Path, device: torch.device, recipes: dict[str, Values], quick: bool) -> Rows:
    """Return a row for each number of epochs tried for each recipe, and one for a training in a new process."""
    rows: Rows = []
    for name, target in TARGETS.items():
        parameters = {**recipes[name], **(SMALL if quick else {})}
        reach(folder, {**parameters, "epochs": 1}, device, quick)  # the first training of a process takes longer
        for epochs in (1, 2) if quick else target.epochs:
            parameters = {**parameters, "epochs": epochs}
            found = _seeds(folder, parameters, device, quick)
            reached = found["accuracy_mean"] >= target.accuracy
            rows.append({"recipe": name, "target": target.accuracy, "reached": reached, **found})
            if reached:
                break
        rows.append({"recipe": name, **_cold(folder, parameters, device, quick)})
    return rows


def _seeds(folder: Path, parameters: Values, device: torch.device, quick: bool) -> Values:
    seeds = range(QUICK_SEEDS if quick else SEEDS)
    found = [reach(folder, {**parameters, "seed": seed}, device, quick) for seed in seeds]
    accuracies, seconds = ([*values] for values in zip(*found, strict=True))
    return {
        "start": "warm",
        "epochs": parameters["epochs"],
        "n": len(found),
        "accuracy_mean": statistics.mean(accuracies),
        "accuracy_std": statistics.stdev(accuracies),
        "seconds_mean": statistics.mean(seconds),
        "seconds_std": statistics.stdev(seconds),
        "accuracies": accuracies,
        "seconds": seconds,
    }


def _cold(folder: Path, parameters: Values, device: torch.device, quick: bool) -> Values:
    """Time a process from start to end: imports, initialization of the device, data, training and scoring."""
    job = json.dumps([str(folder.resolve()), parameters, device.type, quick])
    start = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.gpu_accuracy", job]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    seconds = time.perf_counter() - start
    return {
        "start": "cold",
        "epochs": parameters["epochs"],
        "n": 1,
        "accuracy_mean": json.loads(done.stdout)["accuracy"],
        "seconds_mean": seconds,
    }


def reach(folder: Path, parameters: Values, device: torch.device, quick: bool) -> Result:
    """Train on all training images, in bfloat16 on a GPU, and score the test images once."""
    synchronize(device)
    start = time.perf_counter()
    data = read(folder, parameters)
    parts = {split: some(data[split], QUICK_IMAGES) if quick else data[split] for split in ("train", "test")}
    job = Job(parameters, data, parts["train"], device, "bfloat16" if device.type == "cuda" else "float32")
    net = new_net(job)
    for _ in train(net, job):
        pass
    test = Batches(parts["test"], Normalize(data.normalization), BATCH_SIZE, device)
    accuracy = score(net, test, LOSSES[parameters["loss"]]).accuracy
    return Result(accuracy, time.perf_counter() - start)


def main() -> None:
    """Run one training for `_cold` and print its result as JSON."""
    parser = argparse.ArgumentParser(description="Run one training of the GPU benchmark in a new process.")
    parser.add_argument("job", help="JSON list: folder, parameters, device, quick")
    folder, parameters, device, quick = json.loads(parser.parse_args().job)
    print(json.dumps(reach(Path(folder), parameters, choose_device(device), quick)._asdict()))


if __name__ == "__main__":
    main()
