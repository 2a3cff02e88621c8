"""The update of the weights as a function of tensors, so that torch.compile can make it part of a program.

It has the arithmetic and the state of the optimizer object, which updates the weights where nothing is compiled.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.optim.rmsprop import rmsprop
from torch.optim.sgd import sgd

from imageclf.training import optim
from imageclf.training.optim import Optimizer

States = defaultdict[Tensor, dict[str, Any]]
"""The state of an optimizer object."""


class Update(NamedTuple):
    """The update of the weights, in two parts.

    `numbers` returns the numbers that change from step to step. Python computes them, because the program would compute
    them again for every eight weights. `apply` is a part of the program. It updates the weights and the state with the
    gradients, given in the order of the weights, and the numbers as a tensor (n,).
    """

    numbers: Callable[[], list[float]]
    apply: Callable[[list[Tensor], Tensor], None]


def _of_sgd(weights: list[Tensor], states: States, group: dict[str, Any]) -> Update:
    buffers = [states[weight]["momentum_buffer"] if group["momentum"] else None for weight in weights]
    options = {key: group[key] for key in ("weight_decay", "momentum", "dampening", "nesterov", "maximize")}

    def apply(gradients: list[Tensor], numbers: Tensor) -> None:
        sgd(weights, gradients, buffers, lr=numbers[0], foreach=False, **options)

    return Update(lambda: [group["lr"]], apply)


def _of_adam(weights: list[Tensor], states: States, group: dict[str, Any]) -> Update:
    """Return the arithmetic of torch.optim.Adam and AdamW; the bias corrections of each weight are numbers."""
    for weight in weights:
        states[weight] = states[weight] or optim.adam_state(weight, steps=0.0)
    means, squares, steps = ([states[weight][name] for weight in weights] for name in ("exp_avg", "exp_avg_sq", "step"))
    (beta1, beta2), eps, weight_decay = group["betas"], group["eps"], group["weight_decay"]

    def numbers() -> list[float]:
        lr, counts = group["lr"], [step.item() + 1 for step in steps]
        corrected = [(lr / (1 - beta1**count), math.sqrt(1 - beta2**count)) for count in counts]
        return [lr, *itertools.chain(*corrected)]

    def apply(gradients: list[Tensor], numbers: Tensor) -> None:
        lr, corrected = numbers[0], numbers[1:].view(-1, 2)
        for index, (weight, gradient, mean, square) in enumerate(zip(weights, gradients, means, squares, strict=True)):
            steps[index].add_(1)
            if group["decoupled_weight_decay"]:
                weight.mul_(1 - lr * weight_decay)
            elif weight_decay:
                gradient = gradient + weight_decay * weight  # noqa: PLW2901
            mean.lerp_(gradient, 1 - beta1)
            square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            size, correction = corrected[index]
            weight.sub_(mean / (square.sqrt() / correction + eps) * size)

    return Update(numbers, apply)


def _of_rmsprop(weights: list[Tensor], states: States, group: dict[str, Any]) -> Update:
    squares, steps = ([states[weight][name] for weight in weights] for name in ("exp_avg_sq", "step"))
    options = {"alpha": group["betas"][1], "eps": group["eps"], "weight_decay": group["weight_decay"]}

    def apply(gradients: list[Tensor], numbers: Tensor) -> None:
        state = squares, [], [], steps
        rmsprop(weights, gradients, *state, lr=numbers[0], foreach=False, momentum=0.0, centered=False, **options)

    return Update(lambda: [group["lr"]], apply)


UPDATES: dict[type, Callable[[list[Tensor], States, dict[str, Any]], Update]] = {
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
    return make(list(weights), states, group)
