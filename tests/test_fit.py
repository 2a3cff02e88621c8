"""The training loop learns, counts every image, and gives the same bits for the same seed."""

import math
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from imageclf import models, runtime
from imageclf.batches import Batches, Normalize
from imageclf.errors import UserError
from imageclf.fit import Epoch, Position, fit
from imageclf.losses import LOSSES, Loss
from imageclf.optim import OPTIMIZERS, SCHEDULES, Optimizer, Settings
from imageclf.scoring import score
from imageclf.splits import Split

TRAIN = 107
"""Images to train on: three batches of 32 and a short one."""
STEPS = 4
LOSS = LOSSES["cross_entropy"]
STILL = {"optimizer": "sgd", "lr": 1e-12}
"""Training that leaves the weights where they are, so that every step sees the same net."""


pytestmark = pytest.mark.usefixtures("one_thread")

LEARNING = {"sgd": 0.05, "adam": 0.01, "adamw": 0.01, "rmsprop": 0.002, "rmsprop_keras": 0.002, "muon": 0.01}
"""The lr at which each optimizer learns the made images in a moment."""


def batches(split: Split, rows: slice = slice(None), batch_size: int = 32) -> Batches:
    part = Split(split.images[rows], split.targets[rows])
    return Batches(part, Normalize(([0.5], [0.25])), batch_size, torch.device("cpu"))


def new_net(dropout: float = 0.3) -> nn.Module:
    torch.manual_seed(0)
    cnn = {"channels": [8], "kernel_size": 3, "conv_padding": "same", "hidden": [16]}
    return models.build("cnn", (1, 8, 8), 4, dropout=dropout, **cnn)


def train(
    net: nn.Module,
    split: Split,
    *,
    epochs: int = 2,
    seed: int = 0,
    optimizer: str = "adam",
    lr: float = 0.01,
    schedule: str = "constant",
    with_val: bool = True,
    batch_size: int = 32,
    loss: Loss = LOSS,
    with_optimizer: Optimizer | None = None,
    **others: Any,
) -> Iterator[Epoch]:
    """`fit` on the first images of `split`, validated on the rest."""
    return fit(
        net,
        with_optimizer or OPTIMIZERS[optimizer](net, Settings(lr=lr, momentum=0.9)),
        SCHEDULES[schedule],
        loss,
        train=batches(split, slice(TRAIN), batch_size),
        val=batches(split, slice(TRAIN, None)) if with_val else None,
        epochs=epochs,
        seed=seed,
        **others,
    )


def last_loss(at: Position) -> float:
    assert at.losses is not None
    return at.losses[at.step - 1].item()


def weights(net: nn.Module) -> list[Tensor]:
    return [tensor.clone() for tensor in net.state_dict().values()]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(map(torch.equal, first, second))


def test_the_same_seed_gives_the_same_bits_whatever_was_drawn_before(made_split: Split) -> None:
    net, again = new_net(), new_net()
    torch.manual_seed(1)
    history = list(train(net, made_split, seed=7))
    torch.manual_seed(2)
    assert list(train(again, made_split, seed=7)) == history
    assert same(weights(net), weights(again))


def test_draws_between_epochs_change_nothing(made_split: Split) -> None:
    net, disturbed = new_net(), new_net()
    list(train(net, made_split))
    for _ in train(disturbed, made_split):
        torch.rand(3)
    assert same(weights(net), weights(disturbed))


def test_validation_changes_no_weight(made_split: Split) -> None:
    net, unwatched = new_net(), new_net()
    list(train(net, made_split))
    list(train(unwatched, made_split, with_val=False))
    assert same(weights(net), weights(unwatched))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_another_seed_gives_other_weights(dropout: float, made_split: Split) -> None:
    net, other = new_net(dropout), new_net(dropout)
    list(train(net, made_split, seed=0))
    list(train(other, made_split, seed=1))
    assert not same(weights(net), weights(other))


@pytest.mark.parametrize("seeds", [(0, 0), (0, 1)], ids=["epochs", "seeds"])
def test_dropout_differs_between_epochs_and_between_seeds(seeds: tuple[int, int], made_split: Split) -> None:
    """The images are all the same, so that their order matters nothing."""
    one = Split(*(np.repeat(array[:1], TRAIN + 1, axis=0) for array in (made_split.images, made_split.targets)))
    first = list(train(new_net(0.5), one, seed=seeds[0], **STILL))
    second = list(train(new_net(0.5), one, seed=seeds[1], **STILL))
    assert abs(first[0].train_loss - second[seeds[0] == seeds[1]].train_loss) > 1e-5  # equal draws differ by 0


@pytest.mark.parametrize("seeds", [(0, 0), (0, 1)], ids=["epochs", "seeds"])
def test_order_differs_between_epochs_and_between_seeds(seeds: tuple[int, int], made_split: Split) -> None:
    """Without dropout, each first batch tells which images it holds."""
    losses: list[float] = []
    for seed in seeds:
        list(train(new_net(0.0), made_split, seed=seed, on_step=lambda at: losses.append(last_loss(at)), **STILL))
    first, second = losses[0], losses[STEPS if seeds[0] == seeds[1] else 2 * STEPS]
    assert abs(first - second) > 1e-3


def test_threads_change_no_more_than_rounding(made_split: Split) -> None:
    """Threads add up in another order: 1e-3 in a loss, 2 images in an accuracy, is far above what that does here."""
    histories = []
    for count in (1, 2):
        torch.set_num_threads(count)
        histories.append(list(train(new_net(), made_split, epochs=3)))
    for one, two in zip(*histories, strict=True):
        assert one.train_loss == pytest.approx(two.train_loss, abs=1e-3)
        assert one.val_loss == pytest.approx(two.val_loss, abs=1e-3)
        assert one.train_accuracy == pytest.approx(two.train_accuracy, abs=2 / TRAIN)


def test_the_history_counts_every_image(made_split: Split) -> None:
    """A net that stands still has, over the batches, the scores that it has over the whole."""
    net = new_net(dropout=0.0)
    expected = score(net, batches(made_split, slice(TRAIN), batch_size=1000), LOSS)
    (epoch,) = train(net, made_split, epochs=1, **STILL)
    assert epoch.train_accuracy == pytest.approx(expected.accuracy, abs=1e-12)
    assert epoch.train_loss == pytest.approx(expected.loss, abs=1e-6)
    assert 0 < round(epoch.train_accuracy * TRAIN) == pytest.approx(epoch.train_accuracy * TRAIN, abs=1e-9)


def test_label_smoothing_is_in_the_train_loss_and_in_no_score(made_split: Split) -> None:
    (plain,) = train(new_net(0.0), made_split, epochs=1, batch_size=TRAIN, **STILL)
    (smoothed,) = train(new_net(0.0), made_split, epochs=1, batch_size=TRAIN, label_smoothing=0.2, **STILL)
    net = new_net(0.0)
    ((images, targets),) = batches(made_split, slice(TRAIN), TRAIN).in_order()
    expected = nn.functional.cross_entropy(net(images), targets, label_smoothing=0.2)
    assert smoothed.train_loss == pytest.approx(expected.item(), abs=1e-5)
    assert (smoothed.train_accuracy, smoothed.val_accuracy) == (plain.train_accuracy, plain.val_accuracy)
    assert smoothed.val_loss == pytest.approx(plain.val_loss, abs=1e-6)


def test_val_scores_are_those_of_the_net_after_the_epoch_without_dropout(made_split: Split) -> None:
    net = new_net(dropout=0.5)
    for epoch in train(net, made_split):
        expected = score(net.eval(), batches(made_split, slice(TRAIN, None)), LOSS)
        assert (epoch.val_loss, epoch.val_accuracy) == (expected.loss, expected.accuracy)


def test_dropout_is_on_in_every_epoch(made_split: Split) -> None:
    """Validation, and whoever consumes the epochs, may leave the net in eval mode."""
    net = new_net(dropout=0.5)
    modes: list[bool] = []
    net.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    for _ in train(net, made_split, with_val=False):
        net.eval()
    assert modes == [True] * (2 * STEPS)


@pytest.mark.parametrize(("optimizer", "lr"), LEARNING.items())
def test_what_can_be_learnt_is_learnt(optimizer: str, lr: float, made_split: Split) -> None:
    *_, last = train(new_net(), made_split, epochs=12, optimizer=optimizer, lr=lr, schedule="cosine")
    assert last.val_accuracy is not None
    assert last.val_accuracy > 0.9
    assert last.train_accuracy > 0.9


def test_one_hot_and_indices_train_the_same_net(made_split: Split) -> None:
    """Two forms of one formula: rounding aside."""
    one_hot = list(train(new_net(), made_split))
    indices = list(train(new_net(), Split(made_split.images, made_split.labels)))
    for one, other in zip(one_hot, indices, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, abs=1e-4)
        assert one.val_loss == pytest.approx(other.val_loss, abs=1e-4)
        assert one.train_accuracy == pytest.approx(other.train_accuracy, abs=1 / TRAIN)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_teaches(loss: str, made_split: Split) -> None:
    *_, last = train(new_net(), made_split, epochs=12, loss=LOSSES[loss])
    assert last.val_accuracy is not None
    assert last.val_accuracy > 0.9


def test_every_optimizer_is_tried() -> None:
    assert LEARNING.keys() == OPTIMIZERS.keys()


def test_indices_are_learnt_as_well(made_split: Split) -> None:
    *_, last = train(new_net(), Split(made_split.images, made_split.labels), epochs=12)
    assert last.val_accuracy is not None
    assert last.val_accuracy > 0.9


def test_without_validation_the_val_scores_are_none(made_split: Split) -> None:
    history = list(train(new_net(), made_split, with_val=False))
    assert [(epoch.val_loss, epoch.val_accuracy) for epoch in history] == [(None, None)] * 2


def test_epochs_are_numbered_from_1(made_split: Split) -> None:
    assert [epoch.number for epoch in train(new_net(), made_split, epochs=3)] == [1, 2, 3]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_lr_of_an_epoch_is_that_of_its_last_step(schedule: str, made_split: Split) -> None:
    factor = SCHEDULES[schedule]
    history = list(train(new_net(), made_split, epochs=3, lr=0.02, schedule=schedule))
    expected = [0.02 * factor((STEPS * number - 1) / (3 * STEPS)) for number in (1, 2, 3)]
    assert [epoch.lr for epoch in history] == pytest.approx(expected, rel=1e-12)


def test_cosine_steps_get_smaller_to_almost_none(made_split: Split) -> None:
    net = new_net(dropout=0.0)
    optimizer = OPTIMIZERS["sgd"](net, Settings(lr=0.1))
    used: list[float] = []
    list(
        fit(
            net,
            optimizer,
            SCHEDULES["cosine"],
            LOSS,
            train=batches(made_split, slice(TRAIN)),
            val=None,
            epochs=2,
            seed=0,
            on_step=lambda *_: used.append(optimizer.param_groups[0]["lr"]),
        )
    )
    assert used == pytest.approx([0.05 * (1 + math.cos(math.pi * step / 8)) for step in range(8)])


def test_a_step_is_that_of_the_optimizer_on_the_mean_loss(made_split: Split) -> None:
    """One batch, plain gradient descent: computed here by hand."""
    net, expected = new_net(dropout=0.0), new_net(dropout=0.0)
    list(
        fit(
            net,
            OPTIMIZERS["sgd"](net, Settings(lr=0.1)),
            SCHEDULES["constant"],
            LOSS,
            train=batches(made_split, slice(TRAIN), batch_size=TRAIN),
            val=None,
            epochs=2,
            seed=0,
        )
    )
    ((images, targets),) = batches(made_split, slice(TRAIN), batch_size=TRAIN).in_order()
    for _ in range(2):
        gradients = torch.autograd.grad(LOSS(expected(images), targets), list(expected.parameters()))
        for parameter, gradient in zip(expected.parameters(), gradients, strict=True):
            parameter.data -= 0.1 * gradient
    torch.testing.assert_close(weights(net), weights(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize("with_val", [True, False])
def test_a_loss_that_is_no_number_ends_training_with_a_sentence(with_val: bool, made_split: Split) -> None:
    with pytest.raises(UserError, match=r"the loss of epoch 1, step \d is (nan|inf): try a smaller lr than 1e\+30"):
        list(train(new_net(), made_split, optimizer="sgd", lr=1e30, with_val=with_val))


def test_an_infinite_loss_ends_training_too(made_split: Split) -> None:
    with pytest.raises(UserError, match="the loss of epoch 1, step 1 is inf"):
        list(train(new_net(), made_split, loss=lambda logits, _: 0 * logits.sum() + torch.inf))


def test_a_validation_loss_that_is_no_number_ends_training_too(made_split: Split) -> None:
    """The only step of the epoch is what breaks the net: the train loss was taken before it."""
    with pytest.raises(UserError, match="epoch 1"):
        list(train(new_net(), made_split, optimizer="sgd", lr=1e30, batch_size=TRAIN, epochs=1))


def test_an_epoch_is_trained_when_it_is_asked_for(made_split: Split) -> None:
    """Whoever stops after the first has the net as the first left it."""
    stopped, gone_on = new_net(), new_net()
    steps: list[int] = []
    first = next(train(stopped, made_split, epochs=3, on_step=lambda at: steps.append(at.step)))
    assert steps == list(range(1, STEPS + 1))

    epochs = train(gone_on, made_split, epochs=3)
    assert next(epochs) == first
    assert same(weights(gone_on), weights(stopped))
    next(epochs)
    assert not same(weights(gone_on), weights(stopped))


def test_on_step_hears_how_far_the_epoch_is(made_split: Split) -> None:
    heard: list[tuple[int, int, int, float, int]] = []

    def hear(at: Position) -> None:
        assert at.correct is not None
        heard.append((at.epoch, at.step, at.images, last_loss(at), int(at.correct)))

    history = list(train(new_net(), made_split, on_step=hear))
    assert [each[:2] for each in heard] == [(epoch, step) for epoch in (1, 2) for step in (1, 2, 3, 4)]
    assert [images for _, _, images, _, _ in heard] == [32, 64, 96, 107] * 2
    for epoch in history:
        steps = [each for each in heard if each[0] == epoch.number]
        losses = [loss * size for (*_, loss, _), size in zip(steps, (32, 32, 32, 11), strict=True)]
        assert epoch.train_loss == pytest.approx(sum(losses) / TRAIN, rel=1e-12)
        assert epoch.train_accuracy == steps[-1][-1] / TRAIN


@pytest.mark.parametrize("step", range(STEPS))
def test_a_training_goes_on_within_an_epoch_to_the_same_bits(step: int, made_split: Split) -> None:
    """With the net, the optimizer and the position of any step of the second epoch, that one's end included."""
    whole = new_net()
    history = list(train(whole, made_split))
    net, kept = new_net(), {}

    def keep(at: Position) -> None:
        if (at.epoch, at.step) == (2, step + 1):
            assert at.losses is not None
            assert at.correct is not None
            kept["position"] = replace(
                at, losses=at.losses.clone(), correct=at.correct.clone(), random=torch.get_rng_state()
            )
            kept["net"], kept["optimizer"] = deepcopy(net.state_dict()), deepcopy(optimizer.state_dict())

    optimizer = OPTIMIZERS["adam"](net, Settings(lr=0.01))
    list(train(net, made_split, with_optimizer=optimizer, on_step=keep))
    torch.rand(3)
    again = new_net()
    again.load_state_dict(kept["net"])
    restored = OPTIMIZERS["adam"](again, Settings(lr=0.01))
    restored.load_state_dict(kept["optimizer"])
    assert list(train(again, made_split, with_optimizer=restored, start=kept["position"])) == history[1:]
    assert same(weights(again), weights(whole))


@pytest.mark.parametrize("batch_size", [32, TRAIN])
def test_a_loss_that_is_no_number_is_told_with_its_step(batch_size: int, made_split: Split) -> None:
    def broken(logits: Tensor, targets: Tensor) -> Tensor:
        calls.append(1)
        return LOSS(logits, targets) * (math.nan if len(calls) == steps + 1 else 1)

    calls: list[int] = []
    steps = math.ceil(TRAIN / batch_size)
    with pytest.raises(UserError, match=r"the loss of epoch 2, step 1 is nan: try a smaller lr than 0.01"):
        list(train(new_net(), made_split, loss=broken, batch_size=batch_size, with_val=False))


class _Waits(TorchDispatchMode):
    """Operations whose result the host must have before it can go on: on a GPU it would wait for all before them."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operation.name() in {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::unique2"}:
            self.seen.append(operation.name())
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "rmsprop_keras"])
@pytest.mark.parametrize("loss", LOSSES)
def test_no_step_waits_for_the_device(loss: str, optimizer: str, made_split: Split) -> None:
    with _Waits() as waits:
        torch.tensor(1.0).item()
        assert waits.seen.pop() == "aten::_local_scalar_dense", "it notices"
        waited: list[list[str]] = []
        epochs = train(
            new_net(),
            made_split,
            epochs=1,
            loss=LOSSES[loss],
            optimizer=optimizer,
            label_smoothing=0.1,
            on_step=lambda *_: waited.append(waits.seen.copy()),
        )
        next(epochs)
    assert waited[-1] == waited[0]


@pytest.mark.parametrize(
    ("ours", "others", "better"),
    [
        ((0.9, 0.9), (0.8, 0.1), True),
        ((0.8, 0.1), (0.9, 0.9), False),
        ((0.9, 0.1), (0.9, 0.2), True),
        ((0.9, 0.2), (0.9, 0.1), False),
        ((0.9, 0.1), (0.9, 0.1), False),
    ],
    ids=["accuracy", "worse accuracy", "loss", "worse loss", "equal: the earlier stays"],
)
def test_better_is_by_accuracy_then_by_loss(
    ours: tuple[float, float], others: tuple[float, float], better: bool
) -> None:
    later, earlier = (Epoch(number, 0.1, 0, 0, loss, accuracy) for number, (accuracy, loss) in ((2, ours), (1, others)))
    assert later.better_than(earlier) == better


def test_without_validation_the_later_epoch_is_better() -> None:
    """Whatever the train scores say."""
    earlier, later = Epoch(2, 0.1, 0.5, 0.9, None, None), Epoch(3, 0.1, 0.7, 0.8, None, None)
    assert later.better_than(earlier)
    assert not earlier.better_than(later)


needs_bfloat16 = pytest.mark.skipif(
    not {"avx512_bf16", "amx_bf16"} & runtime.cpu_flags(), reason="this processor has no bfloat16 instructions"
)


@needs_bfloat16
def test_bfloat16_runs_the_net_in_bfloat16_and_learns(made_split: Split) -> None:
    net = new_net()
    dtypes: set[torch.dtype] = set()
    net.register_forward_hook(lambda module, _, logits: dtypes.add(logits.dtype) if module.training else None)
    autocast = runtime.autocast("bfloat16", torch.device("cpu"))
    *_, last = train(net, made_split, epochs=12, autocast=autocast)
    assert dtypes == {torch.bfloat16}
    assert {parameter.dtype for parameter in net.parameters()} == {torch.float32}
    assert last.val_accuracy is not None
    assert last.val_accuracy > 0.9


@needs_bfloat16
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_is_nearly_the_same_in_bfloat16(loss: str, label_smoothing: float, made_split: Split) -> None:
    """Eight bits of mantissa: 1 in 256 a number, less in a mean of many."""
    knobs: dict[str, Any] = {"epochs": 1, "loss": LOSSES[loss], "label_smoothing": label_smoothing, **STILL}
    (exact,) = train(new_net(0.0), made_split, **knobs)
    autocast = runtime.autocast("bfloat16", torch.device("cpu"))
    (rounded,) = train(new_net(0.0), made_split, autocast=autocast, **knobs)
    assert rounded.train_loss == pytest.approx(exact.train_loss, rel=0.01)


class Small(nn.Module):
    """A layer of a device that holds so many images."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def forward(self, images: Tensor) -> Tensor:
        """The images, if there is room."""
        if len(images) > self.room:
            raise torch.OutOfMemoryError
        return images


def on_a_small_device(net: nn.Module, room: int) -> nn.Module:
    return nn.Sequential(Small(room), *net.children())


def test_a_batch_that_does_not_fit_goes_in_pieces_with_the_same_result(
    made_split: Split, capsys: pytest.CaptureFixture[str]
) -> None:
    roomy, small = new_net(0.0), on_a_small_device(new_net(0.0), room=9)
    expected = list(train(roomy, made_split, optimizer="sgd", with_val=False))
    found = list(train(small, made_split, optimizer="sgd", with_val=False))
    torch.testing.assert_close(weights(small), weights(roomy), rtol=0, atol=1e-5)
    assert [epoch.train_loss for epoch in found] == pytest.approx([epoch.train_loss for epoch in expected], rel=1e-5)
    assert [epoch.train_accuracy for epoch in found] == [epoch.train_accuracy for epoch in expected]
    assert capsys.readouterr().out.splitlines() == [
        "out of memory: each batch goes in 2 pieces from here on",
        "out of memory: each batch goes in 4 pieces from here on",
    ]


def test_with_batch_norm_the_batch_that_fits_is_named(made_split: Split) -> None:
    net = on_a_small_device(models.build("vgg11", (1, 8, 8), 4, width=0.0625, dropout=0.0), room=9)
    with pytest.raises(UserError, match="batch_size: 32 images do not fit into the device's memory, 8 do"):
        list(train(net, made_split, with_val=False))


def test_a_device_without_room_for_one_image_is_told(made_split: Split) -> None:
    with pytest.raises(UserError, match="does not hold one image"):
        list(train(on_a_small_device(new_net(), room=0), made_split, with_val=False))
