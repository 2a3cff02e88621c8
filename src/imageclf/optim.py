"""Optimizers and learning-rate schedules by name."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn


class Optimizer(Protocol):
    """What the training loop needs of an optimizer."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Groups of weights, each with its `lr`."""
        ...

    def zero_grad(self) -> None:
        """Forget the gradients."""

    def step(self) -> Any:
        """Move the weights."""

    def state_dict(self) -> dict[str, Any]:
        """What it remembers, in dicts and lists of numbers and tensors."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember what `state_dict` gave."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The knobs of these names in params.yaml; an optimizer takes those that it has."""

    lr: float
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0


def _sgd(net: nn.Module, knobs: Settings) -> Optimizer:
    return torch.optim.SGD(
        net.parameters(),
        knobs.lr,
        momentum=knobs.momentum,
        nesterov=knobs.nesterov,
        weight_decay=knobs.weight_decay,
        fused=True,
    )


def _adam(net: nn.Module, knobs: Settings) -> Optimizer:
    return torch.optim.Adam(net.parameters(), knobs.lr, weight_decay=knobs.weight_decay, fused=True)


def _adamw(net: nn.Module, knobs: Settings) -> Optimizer:
    return torch.optim.AdamW(net.parameters(), knobs.lr, weight_decay=knobs.weight_decay, fused=True)


class _RMSprop(torch.optim.Adam):
    """RMSprop by Adam's fused kernel: torch's own RMSprop has none on a CPU, and takes twice as long.

    Adam without its first moment is RMSprop but for the second, which it divides by 1 - alpha^steps: undone here.
    """

    def __init__(self, net: nn.Module, knobs: Settings, *, alpha: float, eps: float) -> None:
        super().__init__(
            net.parameters(), knobs.lr, betas=(0.0, alpha), eps=eps, weight_decay=knobs.weight_decay, fused=True
        )
        for group in self.param_groups:
            group["steps"] = 0

    def step(self, closure: Any = None) -> Any:
        """Move the weights by lr * gradient / (sqrt(second moment) + eps)."""
        given = [(group["lr"], group["eps"]) for group in self.param_groups]
        for group in self.param_groups:
            group["steps"] += 1
            correction = math.sqrt(1 - group["betas"][1] ** group["steps"])
            group["lr"] /= correction
            group["eps"] /= correction
        loss = super().step(closure)
        for group, (lr, eps) in zip(self.param_groups, given, strict=True):
            group["lr"], group["eps"] = lr, eps
        return loss


def _rmsprop(net: nn.Module, knobs: Settings) -> Optimizer:
    return _RMSprop(net, knobs, alpha=0.99, eps=1e-8)


def _rmsprop_keras(net: nn.Module, knobs: Settings) -> Optimizer:
    # keras.optimizers.RMSprop: rho 0.9, momentum 0, epsilon 1e-7, where torch has 0.99, 0 and 1e-8.
    return _RMSprop(net, knobs, alpha=0.9, eps=1e-7)


class _Muon:
    """Muon (Jordan et al. 2024) for the matrices between hidden layers, AdamW for all else, as its authors advise.

    torch's Muon takes matrices alone; its `match_rms_adamw` makes one lr fit both.
    """

    def __init__(self, net: nn.Module, knobs: Settings) -> None:
        matrices = [weight for weight in net.parameters() if weight.ndim == 2][:-1]
        chosen = {id(weight) for weight in matrices}
        others = [weight for weight in net.parameters() if id(weight) not in chosen]
        self._parts: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(others, knobs.lr, weight_decay=knobs.weight_decay, fused=True)
        ]
        if matrices:
            self._parts.append(
                torch.optim.Muon(
                    matrices,
                    knobs.lr,
                    momentum=knobs.momentum,
                    weight_decay=knobs.weight_decay,
                    adjust_lr_fn="match_rms_adamw",
                )
            )

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of both."""
        return [group for part in self._parts for group in part.param_groups]

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for part in self._parts:
            part.zero_grad()

    def step(self) -> None:
        """Move the weights."""
        for part in self._parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """The states of both."""
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember what `state_dict` gave."""
        for part, state in zip(self._parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)


OPTIMIZERS: dict[str, Callable[[nn.Module, Settings], Optimizer]] = {
    "sgd": _sgd,
    "adam": _adam,
    "adamw": _adamw,
    "rmsprop": _rmsprop,
    "rmsprop_keras": _rmsprop_keras,
    "muon": _Muon,
}

Schedule = Callable[[float], float]


def _step(progress: float) -> float:
    return 0.1 ** ((progress >= 0.5) + (progress >= 0.75))


def _cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


def _one_cycle(progress: float, rise: float = 0.3, start: float = 0.04) -> float:
    """Up by a cosine from `start`, down by a cosine to 0; the shares are those of torch's OneCycleLR."""
    if progress < rise:
        return start + (1 - start) * (1 - _cosine(progress / rise))
    return _cosine((progress - rise) / (1 - rise))


SCHEDULES: dict[str, Schedule] = {
    "constant": lambda _progress: 1.0,
    "step": _step,
    "cosine": _cosine,
    "one_cycle": _one_cycle,
}
"""The factor on lr as a function of the share of all steps that is done, 0 <= share < 1: no state to lose."""


def with_warmup(schedule: Schedule, share: float) -> Schedule:
    """`schedule`, its factor rising from 0 in the first `share` of all steps."""
    return lambda progress: schedule(progress) * min(1.0, progress / share if share else 1.0)
