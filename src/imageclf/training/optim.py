"""Optimizers and learning-rate schedules by name."""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn


class Optimizer(Protocol):
    """The methods of torch's optimizers that the training loop needs."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Groups of weights, each with its learning rate `lr`."""
        ...

    def zero_grad(self) -> None:
        """Reset the gradients."""

    def step(self) -> Any:
        """Update the weights."""

    def state_dict(self) -> dict[str, Any]:
        """Return the optimizer's state as dicts and lists of numbers and tensors."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state that `state_dict` returned."""


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """The parameters of these names in params.yaml; each optimizer uses those that it has."""

    lr: float
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0


T = TypeVar("T", bound=torch.optim.Optimizer)


def _without_wrappers(optimizer: type[T]) -> type[T]:
    """Return one of torch's optimizers without two wrappers of its methods.

    One imports torch._dynamo, which takes 1.5 s, only so that torch.compile does not look inside. Here it never does:
    what it compiles has torch's functions of the same names (see `update`). The other one gives each step a name in
    torch's profiler, which takes a quarter of the time of a step of Adam on a small net.
    """
    names = ("add_param_group", "zero_grad", "state_dict", "load_state_dict", "step")
    methods: dict[str, Any] = {name: inspect.unwrap(getattr(optimizer, name)) for name in names}
    methods["step"] = torch.no_grad()(methods["step"])
    methods["profile_hook_step"] = staticmethod(lambda step: step)
    made: Any = type(optimizer.__name__, (optimizer,), methods)
    return made


SGD, Adam, AdamW = (
    _without_wrappers(torch.optim.SGD),
    _without_wrappers(torch.optim.Adam),
    _without_wrappers(torch.optim.AdamW),
)
_TorchMuon = _without_wrappers(torch.optim.Muon)


def _sgd(net: nn.Module, options: OptimizerOptions) -> Optimizer:
    optimizer = SGD(
        net.parameters(),
        options.lr,
        momentum=options.momentum,
        nesterov=options.nesterov,
        weight_decay=options.weight_decay,
        fused=True,
    )
    if options.momentum:  # torch fails if some weights have it and others, which were frozen until now, do not
        for weight in net.parameters():
            optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
    return optimizer


def _adam(net: nn.Module, options: OptimizerOptions) -> Optimizer:
    return Adam(net.parameters(), options.lr, weight_decay=options.weight_decay, fused=True)


def _adamw(net: nn.Module, options: OptimizerOptions) -> Optimizer:
    return AdamW(net.parameters(), options.lr, weight_decay=options.weight_decay, fused=True)


class RMSprop(Adam):
    """RMSprop computed by Adam's fused kernel: torch's RMSprop has no fused kernel on a CPU and takes twice as long.

    Adam without its first moment is RMSprop, except that Adam divides the second moment by 1 - alpha^steps. The count
    of steps starts so high that this is 1.
    """

    def __init__(self, net: nn.Module, options: OptimizerOptions, *, alpha: float, eps: float) -> None:
        super().__init__(
            net.parameters(), options.lr, betas=(0.0, alpha), eps=eps, weight_decay=options.weight_decay, fused=True
        )
        for weight in net.parameters():
            self.state[weight] = adam_state(weight, steps=1e9)


def adam_state(weight: Tensor, steps: float) -> dict[str, Tensor]:
    """Return the state that Adam has of a weight after this many steps, with moments of zero."""
    moments = {name: torch.zeros_like(weight) for name in ("exp_avg", "exp_avg_sq")}
    return {"step": torch.tensor(steps, device=weight.device), **moments}


def _rmsprop(net: nn.Module, options: OptimizerOptions) -> Optimizer:
    return RMSprop(net, options, alpha=0.99, eps=1e-8)


def _rmsprop_keras(net: nn.Module, options: OptimizerOptions) -> Optimizer:
    # Defaults of keras.optimizers.RMSprop: rho 0.9, momentum 0, epsilon 1e-7; torch has 0.99, 0 and 1e-8.
    return RMSprop(net, options, alpha=0.9, eps=1e-7)


class _Muon:
    """Muon (Jordan et al. 2024) for the weight matrices of hidden layers, AdamW for all others, as its authors advise.

    torch's Muon accepts only matrices. Its option `match_rms_adamw` makes one learning rate fit both optimizers.
    """

    def __init__(self, net: nn.Module, options: OptimizerOptions) -> None:
        matrices = [weight for weight in net.parameters() if weight.ndim == 2][:-1]
        chosen = {id(weight) for weight in matrices}
        others = [weight for weight in net.parameters() if id(weight) not in chosen]
        self._parts: list[torch.optim.Optimizer] = [
            AdamW(others, options.lr, weight_decay=options.weight_decay, fused=True)
        ]
        if matrices:
            self._parts.append(
                _TorchMuon(
                    matrices,
                    options.lr,
                    momentum=options.momentum,
                    weight_decay=options.weight_decay,
                    adjust_lr_fn="match_rms_adamw",
                )
            )

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The parameter groups of both optimizers."""
        return [group for part in self._parts for group in part.param_groups]

    def zero_grad(self) -> None:
        """Reset the gradients."""
        for part in self._parts:
            part.zero_grad()

    def step(self) -> None:
        """Update the weights."""
        for part in self._parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the states of both optimizers."""
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state that `state_dict` returned."""
        for part, state in zip(self._parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)


OPTIMIZERS: dict[str, Callable[[nn.Module, OptimizerOptions], Optimizer]] = {
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
    """Rise by a cosine from `start` to 1, then fall by a cosine to 0, with the defaults of torch's OneCycleLR."""
    if progress < rise:
        return start + (1 - start) * (1 - _cosine(progress / rise))
    return _cosine((progress - rise) / (1 - rise))


SCHEDULES: dict[str, Schedule] = {
    "constant": lambda _progress: 1.0,
    "step": _step,
    "cosine": _cosine,
    "one_cycle": _one_cycle,
}
"""The factor on the learning rate as a function of progress, the fraction of all steps that is done (0 <= it < 1)."""


def with_warmup(schedule: Schedule, fraction: float) -> Schedule:
    """Return `schedule` with a linear warmup from 0 over the first `fraction` of all steps."""
    return lambda progress: schedule(progress) * min(1.0, progress / fraction if fraction else 1.0)
