"""Optimizers and learning-rate schedules by name."""

import math
from collections.abc import Callable, Iterable

import torch
from torch.nn import Parameter
from torch.optim import Optimizer


def _sgd(weights: Iterable[Parameter], lr: float, momentum: float, weight_decay: float) -> Optimizer:
    return torch.optim.SGD(weights, lr, momentum=momentum, weight_decay=weight_decay, fused=True)


def _adam(weights: Iterable[Parameter], lr: float, momentum: float, weight_decay: float) -> Optimizer:
    del momentum  # its first beta stays at the customary 0.9
    return torch.optim.Adam(weights, lr, weight_decay=weight_decay, fused=True)


def _adamw(weights: Iterable[Parameter], lr: float, momentum: float, weight_decay: float) -> Optimizer:
    del momentum
    return torch.optim.AdamW(weights, lr, weight_decay=weight_decay, fused=True)


def _rmsprop(weights: Iterable[Parameter], lr: float, momentum: float, weight_decay: float) -> Optimizer:
    return torch.optim.RMSprop(weights, lr, momentum=momentum, weight_decay=weight_decay)


OPTIMIZERS: dict[str, Callable[[Iterable[Parameter], float, float, float], Optimizer]] = {
    "sgd": _sgd,
    "adam": _adam,
    "adamw": _adamw,
    "rmsprop": _rmsprop,
}
"""Each takes the weights, lr, momentum and weight_decay."""

Schedule = Callable[[float], float]

SCHEDULES: dict[str, Schedule] = {
    "constant": lambda _progress: 1.0,
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
}
"""The factor on lr as a function of the share of all steps that is done, 0 <= share < 1: no state to lose."""
