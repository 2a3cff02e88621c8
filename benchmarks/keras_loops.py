"""Training with Keras: its own `fit`, and on JAX an epoch as one program."""

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import nets, tutorial
from benchmarks.task import Outcome, Task, outcome

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Setup:
    """A Keras net with its loss and optimizer, and the images (N, H, W, C) and targets of train and test."""

    net: Any
    loss: Any
    optimizer: Any
    images: dict[str, NDArray[np.float32]]
    targets: dict[str, NDArray[Any]]


def train_fit(task: Task, backend: str) -> Outcome:
    """Train with Keras' `fit` on arrays in memory."""
    setup = _set_up(task, backend)
    import keras  # pyright: ignore[reportMissingImports]

    setup.net.compile(setup.optimizer, loss=setup.loss, metrics=["accuracy"])
    ends: list[float] = []
    stopwatch = keras.callbacks.LambdaCallback(on_epoch_end=lambda _epoch, _logs: ends.append(time.perf_counter()))
    setup.net.fit(
        setup.images["train"],
        setup.targets["train"],
        batch_size=task.parameters.batch_size,
        epochs=1 + task.epochs,
        verbose=0,
        callbacks=[stopwatch],
    )
    accuracy = setup.net.evaluate(setup.images["test"], setup.targets["test"], verbose=0)[1]
    return outcome(task, ends, accuracy, None)


def train_jax_scan(task: Task) -> Outcome:
    """Train with a `lax.scan` over the batches of an epoch: the fastest that JAX offers on a CPU.

    A smaller last batch is left out, since all batches of a scan have one shape.
    """
    setup = _set_up(task, "jax")
    import jax  # pyright: ignore[reportMissingImports]

    net, optimizer, size = setup.net, setup.optimizer, task.parameters.batch_size
    optimizer.build(net.trainable_variables)
    images, targets = jax.numpy.asarray(setup.images["train"]), jax.numpy.asarray(setup.targets["train"])
    fixed = [variable.value for variable in net.non_trainable_variables]

    def loss(weights: Any, fixed: Any, rows: Any) -> Any:
        logits, fixed = net.stateless_call(weights, fixed, images[rows], training=True)
        return setup.loss(targets[rows], logits), fixed

    def step(state: Any, rows: Any) -> Any:
        weights, fixed, moments = state
        (value, fixed), gradients = jax.value_and_grad(loss, has_aux=True)(weights, fixed, rows)
        weights, moments = optimizer.stateless_apply(moments, gradients, weights)
        return (weights, fixed, moments), value

    epoch = jax.jit(lambda state, order: jax.lax.scan(step, state, order), donate_argnums=0)
    trainable = [variable.value for variable in net.trainable_variables]
    state = (trainable, fixed, [variable.value for variable in optimizer.variables])
    random, ends = np.random.default_rng(task.parameters.seed), []
    steps = len(images) // size
    for _ in range(1 + task.epochs):
        order = random.permutation(len(images))[: steps * size].reshape(steps, size)
        state, losses = epoch(state, order)
        losses.block_until_ready()
        ends.append(time.perf_counter())
    for variables, values in ((net.trainable_variables, state[0]), (net.non_trainable_variables, state[1])):
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
    logits = net.predict(setup.images["test"], batch_size=1000, verbose=0)
    labels = setup.targets["test"] if setup.targets["test"].ndim == 1 else setup.targets["test"].argmax(axis=1)
    return outcome(task, ends, float((logits.argmax(axis=1) == labels).mean()), None)


def _set_up(task: Task, backend: str) -> Setup:
    os.environ["KERAS_BACKEND"] = backend
    import keras  # pyright: ignore[reportMissingImports]

    parameters, data = task.parameters, task.data
    keras.utils.set_random_seed(int(torch.initial_seed() % 2**31))
    optimizers: dict[str, Callable[[], Any]] = {
        "adam": lambda: keras.optimizers.Adam(parameters.lr, epsilon=1e-8),  # torch's default; Keras has 1e-7
        "sgd": lambda: keras.optimizers.SGD(parameters.lr, momentum=parameters.momentum, nesterov=parameters.nesterov),
        "rmsprop_keras": lambda: keras.optimizers.RMSprop(parameters.lr),
    }
    targets = {split: data[split].targets for split in ("train", "test")}
    images = {split: tutorial.normalized(data, split).transpose(0, 2, 3, 1).copy() for split in targets}
    losses = {1: keras.losses.SparseCategoricalCrossentropy, 2: keras.losses.CategoricalCrossentropy}
    loss = losses[targets["train"].ndim](from_logits=True)
    net = nets.keras_net(nets.layers(parameters, len(data.manifest.classes)), data.manifest.image_shape)
    return Setup(net, loss, optimizers[parameters.optimizer](), images, targets)
