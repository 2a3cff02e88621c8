"""The contestants: each trains a recipe for some epochs and says when each of them ended.

A process of its own for each, since frameworks fight over threads:

    python -m benchmarks.contestants tutorial-0 --epochs 1 PROJECT...

trains in one project after another, each named for its recipe, and leaves `result.json` in each. The first epoch
warms up and is not counted.
"""

import argparse
import contextlib
import itertools
import os
import sqlite3
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import floor, nets, projects, tutorial
from benchmarks.task import Outcome, Task, outcome
from imageclf import checkpoint, errors, files, params, paths, runtime, splits, yaml12
from imageclf.batches import Batches
from imageclf.losses import LOSSES
from imageclf.scoring import BATCH_SIZE, score
from imageclf.summary import describe_layers

RESULT = "result.json"

SETTLE = {"fc500": 12, "keras512": 12, "mlp5": 8, "cnn6": 5, "cifar-cnn": 4, "vgg-cifar10": 1}
"""Epochs of ours before those that count, 10 s or more in all: so long MLflow's imports take a share of the cores."""

SHARES = {"tutorial-0": 0.25, "lightning": 0.25}
"""Part of an epoch that the slow ones train on each time, if it has more than `SHORT` images; scaled to a whole one."""
SHORT = 10_000


def train_tutorial(task: Task, workers: int) -> Outcome:
    """The plain loop, with `workers` processes that load."""
    net, loader = tutorial.net(task.knobs, task.data), tutorial.loader(task.knobs, task.data, workers)
    criterion = tutorial.LOSSES[task.knobs.loss]()
    optimizer = tutorial.OPTIMIZERS[task.knobs.optimizer](net, task.knobs)
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
    """Lightning's Trainer over the tutorial's loader; no logger, no checkpoints, no bar."""
    import lightning  # pyright: ignore[reportMissingImports]

    ends: list[float] = []
    criterion = tutorial.LOSSES[task.knobs.loss]()

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = tutorial.net(task.knobs, task.data)

        def training_step(self, batch: list[torch.Tensor], _index: int) -> torch.Tensor:
            images, targets = batch
            return criterion(self.net(images), targets)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return tutorial.OPTIMIZERS[task.knobs.optimizer](self.net, task.knobs)

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
    trainer.fit(module, tutorial.loader(task.knobs, task.data, 0))
    return outcome(task, ends, tutorial.accuracy(module.net, task.data), torch.get_num_threads())


def train_keras(task: Task, backend: str) -> Outcome:
    """Keras' `fit` on arrays in memory."""
    os.environ["KERAS_BACKEND"] = backend
    import keras  # pyright: ignore[reportMissingImports]

    knobs, data = task.knobs, task.data
    optimizers: dict[str, Callable[[], Any]] = {
        "adam": lambda: keras.optimizers.Adam(knobs.lr, epsilon=1e-8),  # torch's; Keras has 1e-7
        "sgd": lambda: keras.optimizers.SGD(knobs.lr, momentum=knobs.momentum, nesterov=knobs.nesterov),
        "rmsprop_keras": lambda: keras.optimizers.RMSprop(knobs.lr),
    }
    targets = {split: data[split].targets for split in ("train", "test")}
    images = {split: tutorial.normalized(data, split).transpose(0, 2, 3, 1).copy() for split in targets}
    losses = {1: keras.losses.SparseCategoricalCrossentropy, 2: keras.losses.CategoricalCrossentropy}
    loss = losses[targets["train"].ndim](from_logits=True)
    net = nets.keras_net(nets.layers(knobs, len(data.classes)), data.image_shape)
    net.compile(optimizers[knobs.optimizer](), loss=loss, metrics=["accuracy"])
    ends: list[float] = []
    stopwatch = keras.callbacks.LambdaCallback(on_epoch_end=lambda _epoch, _logs: ends.append(time.perf_counter()))
    net.fit(
        images["train"],
        targets["train"],
        batch_size=knobs.batch_size,
        epochs=1 + task.epochs,
        verbose=0,
        callbacks=[stopwatch],
    )
    return outcome(task, ends, net.evaluate(images["test"], targets["test"], verbose=0)[1], None)


def train_ours(task: Task) -> Outcome:
    """The real train stage, with validation, progress and MLflow's recorder, whose records say when epochs ended."""
    settle = SETTLE[task.recipe]
    task = replace(task, epochs=task.epochs * max(1, settle // 4))  # short ones scatter, and more cost little
    epochs = settle + task.epochs
    files.write_json(paths.PARAMS, {**yaml12.read(paths.PARAMS), "epochs": epochs})
    projects.run(Path.cwd(), "-m", "stages.train")
    with contextlib.closing(sqlite3.connect("mlflow.db")) as database:
        rows = database.execute(
            "select timestamp / 1000.0 from metrics join runs using (run_uuid) where key = 'train/loss'"
            " and start_time = (select max(start_time) from runs) order by step"
        ).fetchall()
    ends = [row[0] for row in rows]
    assert len(ends) == epochs, f"{len(ends)} of {epochs} epochs are on record"
    trained = checkpoint.load(paths.MODEL)
    batches = Batches(task.data["test"], trained.normalize, BATCH_SIZE, torch.device("cpu"))
    found = score(trained.net, batches, LOSSES[task.knobs.loss])
    return outcome(task, ends, found.accuracy, runtime.set_threads(task.knobs.runtime.threads))


def compute_floor(task: Task) -> Outcome:
    """No training: the epoch's multiply-adds at the rate of a large product, measured as often as others train."""
    threads = runtime.set_threads(task.knobs.runtime.threads)
    layers = describe_layers(tutorial.net(task.knobs, task.data), task.data.image_shape)
    seconds = floor.multiply_adds(layers, len(task.data["train"])) / floor.product_rate()
    return Outcome([seconds], [], None, 0, threads)


CONTESTANTS: dict[str, Callable[[Task], Outcome]] = {
    "tutorial-0": partial(train_tutorial, workers=0),
    "tutorial-2": partial(train_tutorial, workers=2),
    "keras-jax": partial(train_keras, backend="jax"),
    "keras-tensorflow": partial(train_keras, backend="tensorflow"),
    "lightning": train_lightning,
    "ours": train_ours,
    "floor": compute_floor,
}

NEEDS: dict[str, tuple[str, ...]] = {
    "keras-jax": ("keras", "jax"),
    "keras-tensorflow": ("keras", "tensorflow"),
    "lightning": ("lightning",),
}
"""Packages of the group `peers` without which a contestant is left out."""


def main() -> None:
    """Train in each project."""
    parser = argparse.ArgumentParser(description="Train as one contestant does; see benchmarks.peers.")
    parser.add_argument("contestant", choices=CONTESTANTS)
    parser.add_argument("project", nargs="+", type=Path)
    parser.add_argument("--epochs", type=int, required=True, help="timed, after those that warm up")
    arguments = parser.parse_args()
    for project in arguments.project:
        with contextlib.chdir(project):
            data = splits.read(paths.PROCESSED)
            share = SHARES.get(arguments.contestant, 1.0) if len(data["train"]) > SHORT else 1.0
            task = Task(project.name, params.load(), data, arguments.epochs, share)
            torch.manual_seed(task.knobs.seed)
            files.write_json(Path(RESULT), asdict(CONTESTANTS[arguments.contestant](task)))


if __name__ == "__main__":
    errors.run(main)
