"""Tests of the optimizers against torch's simplest implementations, and of the schedules against their curves."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from imports import ROOT
from torch import Tensor, nn

from imageclf.training.optim import OPTIMIZERS, SCHEDULES, Optimizer, OptimizerOptions, with_warmup

OPTIONS = OptimizerOptions(lr=0.05, momentum=0.8, weight_decay=0.1)
SLOW = OptimizerOptions(lr=0.01)
COMMON: dict[str, Any] = {"lr": OPTIONS.lr, "weight_decay": OPTIONS.weight_decay}

PLAIN: dict[str, Callable[[nn.Module], Optimizer]] = {
    "sgd": lambda net: torch.optim.SGD(net.parameters(), momentum=0.8, foreach=False, **COMMON),
    "adam": lambda net: torch.optim.Adam(net.parameters(), foreach=False, **COMMON),
    "adamw": lambda net: torch.optim.AdamW(net.parameters(), foreach=False, **COMMON),
    "rmsprop": lambda net: torch.optim.RMSprop(net.parameters(), foreach=False, **COMMON),
    "rmsprop_keras": lambda net: torch.optim.RMSprop(net.parameters(), alpha=0.9, eps=1e-7, foreach=False, **COMMON),
}
"""The same optimizers in torch's simplest implementation, which updates one tensor at a time."""

FACTORS: dict[str, list[tuple[float, float]]] = {
    "constant": [(0, 1), (0.5, 1), (0.99, 1)],
    "step": [(0, 1), (0.49, 1), (0.5, 0.1), (0.74, 0.1), (0.75, 0.01), (0.99, 0.01)],
    "cosine": [(0, 1), (1 / 3, 0.75), (0.5, 0.5), (2 / 3, 0.25), (1, 0)],
    "one_cycle": [(0, 0.04), (0.15, 0.52), (0.3, 1), (0.65, 0.5), (1, 0)],
}
"""Pairs of progress (fraction of the steps done) and factor on the learning rate."""


def new_net() -> nn.Module:
    """Return a net with weights of one, two and four dimensions."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))


def objective(net: nn.Module) -> Tensor:
    """Return a quadratic function of the weights, steeper along some axes, with its minimum at 0.5."""
    weights = nn.utils.parameters_to_vector(net.parameters())
    return (torch.linspace(1, 8, len(weights)) * (weights - 0.5).square()).sum()


def minimize(net: nn.Module, optimizer: Optimizer, steps: int) -> list[Tensor]:
    for _ in range(steps):
        optimizer.zero_grad()
        objective(net).backward()
        optimizer.step()
    return [weights.detach() for weights in net.parameters()]


def largest_difference(found: list[Tensor], other: list[Tensor]) -> float:
    return max((one - two).abs().max().item() for one, two in zip(found, other, strict=True))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_lowers_the_objective(name: str) -> None:
    net = new_net()
    before = objective(net).item()
    minimize(net, OPTIMIZERS[name](net, SLOW), steps=1)
    assert objective(net).item() < before


@pytest.mark.parametrize("name", PLAIN)
def test_steps_equal_those_of_the_plain_optimizer(name: str) -> None:
    net, other = new_net(), new_net()
    ours, theirs = (
        minimize(net, OPTIMIZERS[name](net, OPTIONS), steps=20),
        minimize(other, PLAIN[name](other), steps=20),
    )
    assert largest_difference(ours, theirs) < 1e-6
    assert largest_difference(ours, [weights.detach() for weights in new_net().parameters()]) > 0.1


@pytest.mark.parametrize("name", PLAIN)
def test_weights_that_were_frozen_at_first_get_the_steps_of_the_plain_optimizer(name: str) -> None:
    results: list[list[Tensor]] = []
    for make in (lambda net: OPTIMIZERS[name](net, OPTIONS), PLAIN[name]):
        net = new_net()
        optimizer = make(net)
        frozen = next(net.parameters()).requires_grad_(False)
        minimize(net, optimizer, steps=10)
        frozen.requires_grad_()
        results.append(minimize(net, optimizer, steps=3))
    assert largest_difference(*results) < 1e-6


def test_nesterov_momentum_equals_that_of_torch() -> None:
    net, other = new_net(), new_net()
    ours = minimize(net, OPTIMIZERS["sgd"](net, OptimizerOptions(lr=0.01, momentum=0.8, nesterov=True)), steps=20)
    plain = torch.optim.SGD(other.parameters(), 0.01, momentum=0.8, nesterov=True, foreach=False)
    assert largest_difference(ours, minimize(other, plain, steps=20)) < 1e-6


def test_muon_updates_hidden_matrices_by_muon_and_all_others_by_adamw() -> None:
    nets = [new_net() for _ in range(3)]
    ours = minimize(nets[0], OPTIMIZERS["muon"](nets[0], OPTIONS), steps=5)
    adamw = minimize(nets[1], OPTIMIZERS["adamw"](nets[1], OPTIONS), steps=5)
    hidden = next(weights for name, weights in nets[2].named_parameters() if name == "2.weight")
    muon = torch.optim.Muon(
        [hidden],
        OPTIONS.lr,
        momentum=OPTIONS.momentum,
        weight_decay=OPTIONS.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    minimize(nets[2], muon, steps=5)
    for (name, _), found, expected in zip(nets[0].named_parameters(), ours, adamw, strict=True):
        torch.testing.assert_close(found, hidden.detach() if name == "2.weight" else expected, rtol=0, atol=1e-6)
    assert largest_difference(ours, adamw) > 1e-3


def test_muon_without_hidden_matrices_is_adamw() -> None:
    """Softmax regression has only one layer, and the last layer is not hidden."""
    found = []
    for name in ("muon", "adamw"):
        torch.manual_seed(0)
        net = nn.Linear(5, 3)
        found.append(minimize(net, OPTIMIZERS[name](net, OPTIONS), steps=5))
    assert largest_difference(*found) == 0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_decay_pulls_towards_zero(name: str) -> None:
    sizes = []
    for decay in (0.0, 2.0):
        net = new_net()
        minimize(net, OPTIMIZERS[name](net, OptimizerOptions(lr=0.01, weight_decay=decay)), steps=200)
        sizes.append(nn.utils.parameters_to_vector(net.parameters()).norm())
    assert sizes[1] < 0.95 * sizes[0]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_lr_of_the_groups_is_used(name: str) -> None:
    """`fit` sets it before each step."""
    net = new_net()
    optimizer = OPTIMIZERS[name](net, OPTIONS)
    assert {group["lr"] for group in optimizer.param_groups} == {OPTIONS.lr}
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    assert largest_difference(minimize(net, optimizer, steps=3), list(new_net().parameters())) == 0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_all_weights_are_in_exactly_one_group(name: str) -> None:
    net = new_net()
    grouped = [id(weights) for group in OPTIMIZERS[name](net, OPTIONS).param_groups for weights in group["params"]]
    assert sorted(grouped) == sorted(map(id, net.parameters()))


@pytest.mark.parametrize(
    ("name", "progress", "factor"), [(name, *point) for name, points in FACTORS.items() for point in points]
)
def test_a_schedule_has_the_factors_of_its_curve(name: str, progress: float, factor: float) -> None:
    assert SCHEDULES[name](progress) == pytest.approx(factor, abs=1e-12)


def test_one_cycle_equals_that_of_torch() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], 1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=1001)
    for step in range(1000):
        # Torch's begins to fall one step earlier, and ends at 4e-6 instead of 0.
        assert SCHEDULES["one_cycle"](step / 1000) == pytest.approx(theirs.get_last_lr()[0], abs=0.005)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("name", SCHEDULES)
def test_factors_lie_between_0_and_1(name: str, warmup: float) -> None:
    schedule = with_warmup(SCHEDULES[name], warmup)
    assert all(0 <= schedule(step / 1000) <= 1 for step in range(1000))


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_reaches_the_given_lr(name: str) -> None:
    assert max(SCHEDULES[name](step / 1000) for step in range(1000)) == pytest.approx(1, abs=0.001)


@pytest.mark.parametrize(("progress", "factor"), [(0, 0), (0.05, 0.5), (0.1, 1), (0.5, 1)])
def test_warmup_rises_from_0_over_its_fraction_of_the_steps(progress: float, factor: float) -> None:
    assert with_warmup(SCHEDULES["constant"], 0.1)(progress) == pytest.approx(factor, abs=1e-12)


@pytest.mark.parametrize("warmup", [0.0, 0.2])
def test_after_the_warmup_a_schedule_is_unchanged(warmup: float) -> None:
    for progress in (0.2, 0.5, 0.9):
        assert with_warmup(SCHEDULES["cosine"], warmup)(progress) == SCHEDULES["cosine"](progress)


def test_without_warmup_the_first_step_has_the_full_lr() -> None:
    assert with_warmup(SCHEDULES["cosine"], 0.0)(0.0) == 1


def test_no_optimizer_imports_dynamo() -> None:
    """The import takes 1.5 s, and torch's own optimizers do it in their first step."""
    program = """
import sys
import torch
from imageclf.training.optim import OPTIMIZERS, OptimizerOptions

for create in OPTIMIZERS.values():
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    optimizer = create(net, OptimizerOptions(lr=0.1, momentum=0.9))
    optimizer.zero_grad()
    net(torch.ones(1, 3)).sum().backward()
    before = net[0].weight.clone()
    optimizer.step()
    assert not torch.equal(net[0].weight, before)
    optimizer.load_state_dict(optimizer.state_dict())
print([name for name in sys.modules if name in ("torch._dynamo", "sympy")])
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_has_no_entry_of_its_own_in_the_profiler(name: str) -> None:
    """Making the entry takes a quarter of the time of a step of Adam on a small net."""
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = OPTIMIZERS[name](net, OPTIONS)
    net(torch.ones(1, 3)).sum().backward()
    with torch.profiler.profile() as profile:
        optimizer.step()
    entries = {event.key for event in profile.key_averages()}
    assert entries
    assert not [entry for entry in entries if entry.startswith("Optimizer.step")]
