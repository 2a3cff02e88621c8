"""Competitors of `benchmarks.peers`: each trains a recipe for some epochs and records when each epoch ended.

    python -m benchmarks.competitors tutorial-0 --epochs 1 PROJECT...

trains in one project folder after another, each named after its recipe, and writes `result.json` into each. The first
epoch warms up and is not timed. Each competitor runs in its own process, because frameworks compete for threads.
"""

import argparse
import contextlib
import itertools
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import keras_loops, lower_bound, projects, tutorial
from benchmarks.task import Outcome, Task, outcome
from imageclf import params, yaml12
from imageclf.contracts import dataset
from imageclf.core import files, paths, process
from imageclf.inference import checkpoint
from imageclf.tracking.summary import describe_layers
from imageclf.training import runtime
from imageclf.training.loading.batches import Batches
from imageclf.training.losses import LOSSES
from imageclf.training.scoring import BATCH_SIZE, score

RESULT = "result.json"

WARM_UP = {"fc500": 12, "keras512": 12, "mlp5": 8, "cnn6": 5, "cifar-cnn": 4, "vgg-cifar10": 1}
"""Epochs of imageclf before the timed ones, 10 s or more: its MLflow process uses the cores for imports that long."""

SHARES = {"tutorial-0": 0.25, "lightning": 0.25}
"""Part of an epoch that slow competitors train if it has more than `SHORT` images; the time is scaled to all."""
SHORT = 10_000


def train_tutorial(task: Task, workers: int) -> Outcome:
    """Train with the tutorial's loop and a DataLoader with `workers` processes."""
    net, loader = tutorial.net(task.parameters, task.data), tutorial.loader(task.parameters, task.data, workers)
    criterion = tutorial.LOSSES[task.parameters.loss]()
    optimizer = tutorial.OPTIMIZERS[task.parameters.optimizer](net, task.parameters)
    ends: list[float] = []
    for _ in range(1 + task.epochs):
        net.train()
        running_loss = 0.0
        for images, targets in itertools.islice(loader, task.steps[0]):
            optimizer.zero_grad()
            loss = criterion(net(images), targets)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
        ends.append(time.perf_counter())
    return outcome(task, ends, tutorial.accuracy(net, task.data), torch.get_num_threads())


def train_lightning(task: Task) -> Outcome:
    """Train with Lightning's Trainer and the tutorial's loader, without logger, checkpoints and progress bar."""
    import lightning  # pyright: ignore[reportMissingImports]

    ends: list[float] = []
    criterion = tutorial.LOSSES[task.parameters.loss]()

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = tutorial.net(task.parameters, task.data)

        def training_step(self, batch: list[torch.Tensor], _index: int) -> torch.Tensor:
            images, targets = batch
            return criterion(self.net(images), targets)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return tutorial.OPTIMIZERS[task.parameters.optimizer](self.net, task.parameters)

        def on_train_epoch_end(self) -> None:
            ends.append(time.perf_counter())

    module = Module()
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1 + task.epochs,
        limit_train_batches=task.steps[0],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, tutorial.loader(task.parameters, task.data, 0))
    return outcome(task, ends, tutorial.accuracy(module.net, task.data), torch.get_num_threads())


@contextlib.contextmanager
def changed_parameters(changes: dict[str, Any]) -> Iterator[None]:
    """Change params.yaml inside the context; the next competitor in this project must not train with the changes."""
    before = paths.PARAMS.read_bytes()
    files.write_json(paths.PARAMS, {**yaml12.read(paths.PARAMS), **changes})
    try:
        yield
    finally:
        paths.PARAMS.write_bytes(before)


def train_imageclf(task: Task, **changes: Any) -> Outcome:
    """Run the real train stage, with validation, progress and MLflow; MLflow's records say when the epochs ended.

    `changes` are parameters that differ from the recipe.
    """
    warm_up = WARM_UP[task.recipe]
    task = replace(task, epochs=task.epochs * max(1, warm_up // 4))  # times of short epochs vary more
    epochs = warm_up + task.epochs
    with changed_parameters({**changes, "epochs": epochs}):
        projects.run(Path.cwd(), "-m", "stages.train")
    with contextlib.closing(sqlite3.connect("mlflow.db")) as database:
        rows = database.execute(
            "select timestamp / 1000.0 from metrics join runs using (run_uuid) where key = 'epoch/train_loss'"
            " and start_time = (select max(start_time) from runs) order by step"
        ).fetchall()
    ends = [row[0] for row in rows]
    assert len(ends) == epochs, f"MLflow has {len(ends)} of {epochs} epochs"
    trained = checkpoint.load(paths.MODEL)
    batches = Batches(task.data["test"], trained.normalize, BATCH_SIZE, torch.device("cpu"))
    found = score(trained.net, batches, LOSSES[task.parameters.loss])
    return outcome(task, ends, found.accuracy, runtime.set_threads(task.parameters.runtime.threads))


def compute_lower_bound(task: Task) -> Outcome:
    """Return the time of the epoch's multiply-adds at the speed of a large matrix product, without training."""
    threads = runtime.set_threads(task.parameters.runtime.threads)
    layers = describe_layers(tutorial.net(task.parameters, task.data), task.data.manifest.image_shape)
    seconds = lower_bound.multiply_adds(layers, len(task.data["train"])) / lower_bound.product_rate()
    return Outcome([seconds], [], None, 0, threads)


COMPETITORS: dict[str, Callable[[Task], Outcome]] = {
    "tutorial-0": partial(train_tutorial, workers=0),
    "tutorial-2": partial(train_tutorial, workers=2),
    "keras-jax": partial(keras_loops.train_fit, backend="jax"),
    "keras-tensorflow": partial(keras_loops.train_fit, backend="tensorflow"),
    "jax-scan": keras_loops.train_jax_scan,
    "lightning": train_lightning,
    "imageclf": train_imageclf,
    "imageclf-compile": partial(train_imageclf, compile=True),
    "imageclf-bfloat16": partial(train_imageclf, precision="bfloat16"),
    "lower-bound": compute_lower_bound,
}

NEEDS: dict[str, tuple[str, ...]] = {
    "keras-jax": ("keras", "jax"),
    "keras-tensorflow": ("keras", "tensorflow"),
    "jax-scan": ("keras", "jax"),
    "lightning": ("lightning",),
}
"""Packages of the dependency group `peers` that a competitor needs."""


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Train with one competitor of benchmarks.peers.")
    parser.add_argument("competitor", choices=COMPETITORS)
    parser.add_argument("project", nargs="+", type=Path)
    parser.add_argument("--epochs", type=int, required=True, help="timed epochs, after those that warm up")
    arguments = parser.parse_args()
    for project in arguments.project:
        with contextlib.chdir(project):
            data = dataset.read(paths.PROCESSED)
            share = SHARES.get(arguments.competitor, 1.0) if len(data["train"]) > SHORT else 1.0
            task = Task(project.name, params.load(), data, arguments.epochs, share)
            torch.manual_seed(task.parameters.seed)
            files.write_json(Path(RESULT), asdict(COMPETITORS[arguments.competitor](task)))


if __name__ == "__main__":
    process.run(main)
