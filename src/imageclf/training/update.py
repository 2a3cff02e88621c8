"""The update of the weights as a function of tensors, so that torch.compile can make it part of a program.

It has the arithmetic and the state of the optimizer object, which updates the weights where nothing is compiled.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.rmsprop import rmsprop
from torch.optim.sgd import sgd

from imageclf.training import optim
from imageclf.training.optim import Optimizer

Update = Callable[[list[Tensor], Tensor], None]
"""Updates the trained weights with their gradients, given in the order of the weights, and the learning rate ()."""
States = defaultdict[Tensor, dict[str, Any]]
"""The state of an optimizer object."""


def _of_sgd(weights: Sequence[Tensor], states: States, group: dict[str, Any]) -> Update:
    buffers: list[Tensor | None] = [None] * len(weights)
    if group["momentum"]:
        buffers = _kept(weights, states, "momentum_buffer")
    options = {key: group[key] for key in ("weight_decay", "momentum", "dampening", "nesterov", "maximize")}
    return lambda gradients, lr: sgd(list(weights), gradients, buffers, lr=lr, foreach=False, **options)


def _of_adam(weights: Sequence[Tensor], states: States, group: dict[str, Any]) -> Update:
    means, squares = _kept(weights, states, "exp_avg"), _kept(weights, states, "exp_avg_sq")
    steps = _steps(weights, states)
    options = {key: group[key] for key in ("amsgrad", "weight_decay", "eps", "maximize", "decoupled_weight_decay")}
    options["beta1"], options["beta2"] = group["betas"]

    def update(gradients: list[Tensor], lr: Tensor) -> None:
        adam(list(weights), gradients, means, squares, [], steps, lr=lr, foreach=False, **options)

    return update


def _of_rmsprop(weights: Sequence[Tensor], states: States, group: dict[str, Any]) -> Update:
    _kept(weights, states, "exp_avg")  # the optimizer object has it
    squares, steps = _kept(weights, states, "exp_avg_sq"), _steps(weights, states)
    options = {"alpha": group["betas"][1], "eps": group["eps"], "weight_decay": group["weight_decay"]}

    def update(gradients: list[Tensor], lr: Tensor) -> None:
        rmsprop(
            list(weights),
            gradients,
            squares,
            [],
            [],
            steps,
            lr=lr,
            foreach=False,
            momentum=0.0,
            centered=False,
            **options,
        )

    return update


UPDATES: dict[type, Callable[[Sequence[Tensor], States, dict[str, Any]], Update]] = {
    optim.SGD: _of_sgd,
    optim.Adam: _of_adam,
    optim.AdamW: _of_adam,
    optim.RMSprop: _of_rmsprop,
}


def update_of(optimizer: Optimizer, weights: Sequence[Tensor]) -> Update | None:
    """Return the update of these weights; None if the optimizer is not one function of tensors, as Muon."""
    make = UPDATES.get(type(optimizer))
    if make is None:
        return None
    (group,) = optimizer.param_groups
    states: Any = optimizer.state  # pyright: ignore[reportAttributeAccessIssue]
    return make(weights, states, group)


def _kept(weights: Sequence[Tensor], states: States, name: str) -> list[Any]:
    """Return a tensor of the state of each weight, zeros at first."""
    return [
        states[weight].setdefault(name, torch.zeros_like(weight, memory_format=torch.preserve_format))
        for weight in weights
    ]


def _steps(weights: Sequence[Tensor], states: States) -> list[Tensor]:
    return [states[weight].setdefault("step", torch.zeros(())) for weight in weights]
