"""Tests that the saved state of a training is complete, and is never used for another training."""

import copy
import json
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from imageclf import models
from imageclf.contracts.dataset import Split
from imageclf.training import resume, runtime, slots
from imageclf.training.fit import Epoch, Position, fit
from imageclf.training.loading.batches import Batches, Normalize
from imageclf.training.losses import LOSSES
from imageclf.training.optim import OPTIMIZERS, SCHEDULES, OptimizerOptions
from imageclf.training.resume import TrainingState
from imageclf.training.slots import Slot

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
EPOCHS, STEPS = 3, 5
TREE = {
    "floats": [0.1, 1e-300, 3],
    "none": None,
    "text": "a\nb",
    "numbered": {0: {"step": torch.tensor(7.0)}, 1: {}},
    "filters": torch.arange(24.0).reshape(2, 3, 2, 2).contiguous(memory_format=torch.channels_last),
    "bytes": torch.tensor([1, 255], dtype=torch.uint8),
}


class Stopped(Exception):  # noqa: N818 - no error
    """Raised at the step that interrupts a training."""


@pytest.fixture
def slot(tmp_path: Path) -> Slot:
    return Slot(tmp_path / "a.state")


def new_training(slot: Slot, model: str = "cnn", optimizer: str = "adam") -> TrainingState:
    """A net with dropout, or with batch norm."""
    torch.manual_seed(0)
    knobs: dict[str, dict[str, Any]] = {
        "cnn": {"channels": [4], "kernel_size": 3, "conv_padding": "same", "hidden": [16], "dropout": 0.5},
        "vgg11": {"width": 0.0625, "dropout": 0.1},
    }
    net = runtime.place(models.build(model, (1, 8, 8), 4, **knobs[model]), CPU)
    settings = OptimizerOptions(lr=0.01, momentum=0.9)
    return TrainingState(net, OPTIMIZERS[optimizer](net, settings), slot, save_every_s=1e9)


def run(training: TrainingState, split: Split, stop: tuple[int, int] | None = None, *, freeze_epochs: int = 0) -> None:
    """Train to the end, or until `stop`: an epoch and a step of it; step 0 is the end of the one before."""
    train = Batches(Split(split.images[:107], split.targets[:107]), Normalize(([0.5], [0.25])), 22, CPU)
    val = Batches(Split(split.images[107:], split.targets[107:]), Normalize(([0.5], [0.25])), 100, CPU)
    assert len(train) == STEPS

    def on_step(at: Position) -> None:
        if (at.epoch, at.step) == stop:
            training.save_within_epoch(at)
            raise Stopped

    epochs = fit(
        training.net,
        training.optimizer,
        SCHEDULES["one_cycle"],
        LOSSES["cross_entropy"],
        train=train,
        val=val,
        epochs=EPOCHS,
        seed=3,
        freeze_epochs=freeze_epochs,
        start=training.position,
        on_step=on_step,
    )
    for epoch in epochs:
        training.save_epoch(epoch)
        if stop == (epoch.number + 1, 0):
            raise Stopped


def outcome(training: TrainingState) -> dict[str, Any]:
    """Return everything that a training leaves: its history, its best epoch, and the bits of both nets."""
    return {
        "epochs": training.epochs,
        "best": training.best,
        "weights": {name: tensor.tolist() for name, tensor in training.best_weights.items()},
        "net": {name: tensor.tolist() for name, tensor in training.net.state_dict().items()},
    }


def interrupted(slot: Slot, split: Split, stop: tuple[int, int], **kind: str) -> TrainingState:
    """Another process's view of the training that ended at `stop`."""
    with pytest.raises(Stopped):
        run(new_training(slot, **kind), split, stop)
    torch.manual_seed(99)
    return new_training(slot, **kind)


def test_what_is_kept_comes_back(slot: Slot) -> None:
    slot.save(TREE)
    found = slot.load()
    assert found is not None
    for name in ("filters", "bytes"):
        assert torch.equal(found[name], TREE[name])
        assert found[name].dtype == TREE[name].dtype
        assert found[name].stride() == TREE[name].stride()
    assert torch.equal(found["numbered"][0]["step"], torch.tensor(7.0))
    assert found["numbered"][1] == {}
    assert {key: found[key] for key in ("floats", "none", "text")} == {
        key: TREE[key] for key in ("floats", "none", "text")
    }


def test_where_nothing_is_kept_there_is_nothing(slot: Slot, capsys: pytest.CaptureFixture[str]) -> None:
    assert not slot.exists()
    assert slot.load() is None
    assert not new_training(slot).restore()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("count", [300])
def test_a_damaged_state_is_never_taken(count: int, slot: Slot, tmp_path: Path) -> None:
    slot.save(TREE)
    path = tmp_path / "a.state"
    whole, random = path.read_bytes(), np.random.default_rng(0)
    for place in random.integers(len(whole), size=count):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ int(random.integers(1, 256))]) + whole[place + 1 :])
        assert slot.load() is None, place
    for length in random.integers(len(whole), size=count // 10):
        path.write_bytes(whole[:length])
        assert slot.load() is None, length
    path.write_bytes(whole)
    assert slot.load() is not None


def test_a_damaged_state_is_told_and_training_starts_over(
    slot: Slot, made_split: Split, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = interrupted(slot, made_split, (2, 3))
    (tmp_path / "a.state").write_bytes(b"no such thing")
    assert not again.restore()
    assert re.fullmatch(
        r".*a.state is damaged: the training starts again from its first epoch\n", capsys.readouterr().out
    )
    assert again.position == Position()


def test_a_save_that_fails_leaves_the_one_before(slot: Slot, tmp_path: Path) -> None:
    slot.save({"number": 1})
    with pytest.raises(TypeError):
        slot.save({"number": object()})
    assert slot.load() == {"number": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.state"]


@pytest.mark.parametrize(("model", "optimizer"), [("cnn", name) for name in OPTIMIZERS] + [("vgg11", "sgd")])
@pytest.mark.parametrize("stop", [(1, 1), (2, 0), (2, 3), (3, STEPS)], ids=str)
def test_a_training_goes_on_to_the_same_bits(
    stop: tuple[int, int], model: str, optimizer: str, slot: Slot, made_split: Split, tmp_path: Path
) -> None:
    whole = new_training(Slot(tmp_path / "whole"), model, optimizer)
    run(whole, made_split)
    again = interrupted(slot, made_split, stop, model=model, optimizer=optimizer)
    assert again.restore()
    run(again, made_split)
    assert outcome(again) == outcome(whole)
    assert [epoch.number for epoch in again.epochs] == [1, 2, 3]


@pytest.mark.parametrize(
    ("model", "optimizer"), [("cnn", "muon"), ("cnn", "sgd"), ("cnn", "rmsprop"), ("vgg11", "adamw")]
)
@pytest.mark.parametrize("stop", [(1, 2), (2, 0), (2, 3)], ids=str)
def test_a_training_whose_first_epoch_trains_the_head_alone_resumes_to_the_same_bits(
    stop: tuple[int, int], model: str, optimizer: str, slot: Slot, made_split: Split, tmp_path: Path
) -> None:
    whole = new_training(Slot(tmp_path / "whole"), model, optimizer)
    run(whole, made_split, freeze_epochs=1)
    with pytest.raises(Stopped):
        run(new_training(slot, model, optimizer), made_split, stop, freeze_epochs=1)
    again = new_training(slot, model, optimizer)
    assert again.restore()
    run(again, made_split, freeze_epochs=1)
    assert outcome(again) == outcome(whole)


def forget_moment(state: dict[str, Any]) -> None:
    for moments in state["optimizer"]["state"].values():
        moments["exp_avg"].zero_()


def forget_steps(state: dict[str, Any]) -> None:
    for moments in state["optimizer"]["state"].values():
        moments["step"].zero_()


def forget_running_means(state: dict[str, Any]) -> None:
    for name, tensor in state["net"].items():
        if name.endswith("running_mean"):
            tensor.zero_()


MUTANTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "a weight": lambda state: next(iter(state["net"].values())).view(-1)[0].add_(1e-3),
    "the first moments": forget_moment,
    "the optimizer's steps": forget_steps,
    "the whole optimizer": lambda state: state["optimizer"].update(state={}),
    "the history": lambda state: state.update(epochs=[], best=None),
    "an epoch of the history": lambda state: state["epochs"].append(state["epochs"][0]),
    "the best epoch": lambda state: state.update(best=None),
    "the best weights": lambda state: next(iter(state["weights"].values())).zero_(),
    "the epoch": lambda state: state["position"].update(epoch=3),
    "the step": lambda state: state["position"].update(step=2),
    "the images": lambda state: state["position"].update(images=0),
    "the losses": lambda state: state["position"]["losses"].zero_(),
    "the correct ones": lambda state: state["position"]["correct"].zero_(),
    "dropout's generator": lambda state: state["position"].update(random=None),
}
"""Values that a state could lack, one by one."""


def best_is_the_first(training: TrainingState) -> None:
    """Make the later epochs worse than the first, so that what is kept of the best must be used."""
    training.epochs = [Epoch(1, 0.1, 0.1, 1.0, 0.0, 1.0)]


@pytest.mark.parametrize("mutant", MUTANTS)
def test_nothing_that_is_kept_could_be_left_out(mutant: str, slot: Slot, made_split: Split, tmp_path: Path) -> None:
    """The comparison above sees it: a training that goes on with one thing missing ends otherwise, or not at all."""
    stop = (2, 3)
    interrupted(slot, made_split, stop)
    state = slot.load()
    assert state is not None
    # The first epoch as the best of all: the end then hangs on what is kept of it.
    state["epochs"][0] |= {"val_loss": 0.0, "val_accuracy": 1.0}
    outcomes = []
    for change in (lambda _state: None, MUTANTS[mutant]):
        changed = copy.deepcopy(state)
        change(changed)
        slot.save(changed)
        training = new_training(slot)
        assert training.restore()
        try:
            run(training, made_split)
        except Exception as error:  # noqa: BLE001 - to stumble is to be noticed
            outcomes.append(repr(error))
        else:
            outcomes.append(outcome(training))
    assert outcomes[0] != outcomes[1]


def test_every_part_of_the_state_has_a_mutant(slot: Slot, made_split: Split) -> None:
    interrupted(slot, made_split, (2, 3))
    state = slot.load()
    assert state is not None
    assert set(state) == {"device", "processes", "net", "optimizer", "epochs", "best", "weights", "position"}
    assert set(state["position"]) == {"epoch", "step", "images", "losses", "correct", "random"}
    assert set(state["optimizer"]["state"][0]) == {"step", "exp_avg", "exp_avg_sq"}


def test_running_means_are_needed(slot: Slot, made_split: Split, tmp_path: Path) -> None:
    whole = new_training(Slot(tmp_path / "whole"), "vgg11", "sgd")
    run(whole, made_split)
    again = interrupted(slot, made_split, (2, 3), model="vgg11", optimizer="sgd")
    state = slot.load()
    assert state is not None
    forget_running_means(state)
    slot.save(state)
    assert again.restore()
    run(again, made_split)
    assert outcome(again) != outcome(whole)


def test_another_devices_state_is_left(slot: Slot, made_split: Split) -> None:
    again = interrupted(slot, made_split, (2, 0))
    state = slot.load()
    assert state is not None
    slot.save({**state, "device": "cuda:0"})
    assert not again.restore()
    assert (again.epochs, again.position) == ([], Position())


def test_a_place_within_an_epoch_is_due_after_a_while(slot: Slot) -> None:
    training = TrainingState(
        nn.Linear(1, 1), OPTIMIZERS["sgd"](nn.Linear(1, 1), OptimizerOptions(lr=0.1)), slot, save_every_s=0.05
    )
    assert not training.save_is_due()
    time.sleep(0.1)
    assert training.save_is_due()
    training.save_within_epoch(Position(1, 2, 3, torch.zeros(4), torch.tensor(1)))
    assert not training.save_is_due()


def test_the_key_depends_on_everything() -> None:
    identity = {"code": {"a.py": "1"}, "params": {"lr": 0.1}, "data": "x", "threads": 2}
    changed = [{**identity, key: value} for key, value in (("code", {}), ("params", {}), ("data", "y"), ("threads", 1))]
    assert len({resume.key_of(each) for each in (identity, *changed)}) == 5
    assert resume.key_of(identity) == resume.key_of(dict(reversed(identity.items())))


def test_the_code_is_that_of_the_listed_files_and_folders() -> None:
    found = resume.code(["data/processed", "src/imageclf/training/fit.py", "src/imageclf/models", "stages/train.py"])
    assert {"src/imageclf/training/fit.py", "src/imageclf/models/cnn.py", "stages/train.py"} <= set(found)
    assert not any(name.startswith("data") for name in found)
    assert json.dumps(found)


def test_a_second_one_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    told: list[str] = []

    def second() -> None:
        with slots.slot("k"):
            told.append("second")

    with slots.slot("k") as first:
        first.save({"number": 1})
        waiting = threading.Thread(target=second)
        waiting.start()
        time.sleep(0.3)
        told.append("first")
    waiting.join(timeout=30)
    assert told == ["first", "second"]
    assert "the same training is already running in another process; waiting for it to end" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / ".resume").iterdir()] == ["k.state"]
