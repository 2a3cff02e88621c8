"""Each optimizer is the textbook one under its name, and each schedule the curve that its name says."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from imageclf.optim import OPTIMIZERS, SCHEDULES, Optimizer, Settings, with_warmup

KNOBS = Settings(lr=0.05, momentum=0.8, weight_decay=0.1)
SLOW = Settings(lr=0.01)
COMMON: dict[str, Any] = {"lr": KNOBS.lr, "weight_decay": KNOBS.weight_decay}

PLAIN: dict[str, Callable[[nn.Module], Optimizer]] = {
    "sgd": lambda net: torch.optim.SGD(net.parameters(), momentum=0.8, foreach=False, **COMMON),
    "adam": lambda net: torch.optim.Adam(net.parameters(), foreach=False, **COMMON),
    "adamw": lambda net: torch.optim.AdamW(net.parameters(), foreach=False, **COMMON),
    "rmsprop": lambda net: torch.optim.RMSprop(net.parameters(), foreach=False, **COMMON),
    "rmsprop_keras": lambda net: torch.optim.RMSprop(net.parameters(), alpha=0.9, eps=1e-7, foreach=False, **COMMON),
}
"""The same with torch's simplest implementation, one tensor at a time."""

FACTORS: dict[str, list[tuple[float, float]]] = {
    "constant": [(0, 1), (0.5, 1), (0.99, 1)],
    "step": [(0, 1), (0.49, 1), (0.5, 0.1), (0.74, 0.1), (0.75, 0.01), (0.99, 0.01)],
    "cosine": [(0, 1), (1 / 3, 0.75), (0.5, 0.5), (2 / 3, 0.25), (1, 0)],
    "one_cycle": [(0, 0.04), (0.15, 0.52), (0.3, 1), (0.65, 0.5), (1, 0)],
}
"""(share of the steps done, factor on lr)."""


def new_net() -> nn.Module:
    """Two hidden layers, one of them convolutional: weights of one, two and four axes."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))


def distance(net: nn.Module) -> Tensor:
    """A quadratic bowl, steeper along some axes than along others, with its minimum away from 0."""
    weights = nn.utils.parameters_to_vector(net.parameters())
    return (torch.linspace(1, 8, len(weights)) * (weights - 0.5).square()).sum()


def walk(net: nn.Module, optimizer: Optimizer, steps: int) -> list[Tensor]:
    for _ in range(steps):
        optimizer.zero_grad()
        distance(net).backward()
        optimizer.step()
    return [weights.detach() for weights in net.parameters()]


def furthest(found: list[Tensor], other: list[Tensor]) -> float:
    return max((one - two).abs().max().item() for one, two in zip(found, other, strict=True))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_goes_downhill(name: str) -> None:
    net = new_net()
    before = distance(net).item()
    walk(net, OPTIMIZERS[name](net, SLOW), steps=1)
    assert distance(net).item() < before


@pytest.mark.parametrize("name", PLAIN)
def test_steps_equal_those_of_the_plain_optimizer(name: str) -> None:
    net, other = new_net(), new_net()
    ours, theirs = walk(net, OPTIMIZERS[name](net, KNOBS), steps=20), walk(other, PLAIN[name](other), steps=20)
    assert furthest(ours, theirs) < 1e-6
    assert furthest(ours, [weights.detach() for weights in new_net().parameters()]) > 0.1


def test_nesterov_is_that_of_torch() -> None:
    net, other = new_net(), new_net()
    ours = walk(net, OPTIMIZERS["sgd"](net, Settings(lr=0.01, momentum=0.8, nesterov=True)), steps=20)
    plain = torch.optim.SGD(other.parameters(), 0.01, momentum=0.8, nesterov=True, foreach=False)
    assert furthest(ours, walk(other, plain, steps=20)) < 1e-6


def test_muon_moves_hidden_matrices_as_muon_and_all_else_as_adamw() -> None:
    nets = [new_net() for _ in range(3)]
    ours = walk(nets[0], OPTIMIZERS["muon"](nets[0], KNOBS), steps=5)
    adamw = walk(nets[1], OPTIMIZERS["adamw"](nets[1], KNOBS), steps=5)
    hidden = next(weights for name, weights in nets[2].named_parameters() if name == "2.weight")
    muon = torch.optim.Muon(
        [hidden], KNOBS.lr, momentum=KNOBS.momentum, weight_decay=KNOBS.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    walk(nets[2], muon, steps=5)
    for (name, _), found, expected in zip(nets[0].named_parameters(), ours, adamw, strict=True):
        torch.testing.assert_close(found, hidden.detach() if name == "2.weight" else expected, rtol=0, atol=1e-6)
    assert furthest(ours, adamw) > 1e-3


def test_muon_without_hidden_matrices_is_adamw() -> None:
    """Softmax regression has one layer, and that is the last."""
    found = []
    for name in ("muon", "adamw"):
        torch.manual_seed(0)
        net = nn.Linear(5, 3)
        found.append(walk(net, OPTIMIZERS[name](net, KNOBS), steps=5))
    assert furthest(*found) == 0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_decay_pulls_towards_zero(name: str) -> None:
    sizes = []
    for decay in (0.0, 2.0):
        net = new_net()
        walk(net, OPTIMIZERS[name](net, Settings(lr=0.01, weight_decay=decay)), steps=200)
        sizes.append(nn.utils.parameters_to_vector(net.parameters()).norm())
    assert sizes[1] < 0.95 * sizes[0]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_lr_of_the_groups_is_the_one_that_acts(name: str) -> None:
    """`fit` sets it before each step."""
    net = new_net()
    optimizer = OPTIMIZERS[name](net, KNOBS)
    assert {group["lr"] for group in optimizer.param_groups} == {KNOBS.lr}
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    assert furthest(walk(net, optimizer, steps=3), list(new_net().parameters())) == 0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_all_weights_are_in_exactly_one_group(name: str) -> None:
    net = new_net()
    grouped = [id(weights) for group in OPTIMIZERS[name](net, KNOBS).param_groups for weights in group["params"]]
    assert sorted(grouped) == sorted(map(id, net.parameters()))


@pytest.mark.parametrize(
    ("name", "done", "factor"), [(name, *point) for name, points in FACTORS.items() for point in points]
)
def test_a_schedule_has_the_factor_of_its_curve(name: str, done: float, factor: float) -> None:
    assert SCHEDULES[name](done) == pytest.approx(factor, abs=1e-12)


def test_one_cycle_is_that_of_torch() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], 1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=1001)
    for step in range(1000):
        # Theirs begins to fall a step earlier, and ends at 4e-6 instead of 0.
        assert SCHEDULES["one_cycle"](step / 1000) == pytest.approx(theirs.get_last_lr()[0], abs=0.005)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("name", SCHEDULES)
def test_factors_lie_between_0_and_1(name: str, share: float) -> None:
    schedule = with_warmup(SCHEDULES[name], share)
    assert all(0 <= schedule(step / 1000) <= 1 for step in range(1000))


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_reaches_the_lr_that_is_asked_for(name: str) -> None:
    assert max(SCHEDULES[name](step / 1000) for step in range(1000)) == pytest.approx(1, abs=0.001)


@pytest.mark.parametrize(("done", "factor"), [(0, 0), (0.05, 0.5), (0.1, 1), (0.5, 1)])
def test_warmup_rises_from_0_in_its_share_of_the_steps(done: float, factor: float) -> None:
    assert with_warmup(SCHEDULES["constant"], 0.1)(done) == pytest.approx(factor, abs=1e-12)


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_after_its_warmup_a_schedule_is_itself(share: float) -> None:
    for done in (0.2, 0.5, 0.9):
        assert with_warmup(SCHEDULES["cosine"], share)(done) == SCHEDULES["cosine"](done)


def test_without_warmup_the_first_step_has_the_whole_lr() -> None:
    assert with_warmup(SCHEDULES["cosine"], 0.0)(0.0) == 1
