"""Tests of the training loop: it learns, counts every image, and gives the same bits for the same seed."""

import math
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import batches_of
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from imageclf import models
from imageclf.contracts.dataset import Split
from imageclf.core import cores
from imageclf.core.errors import UserError
from imageclf.training import runtime
from imageclf.training.fit import Epoch, Position, fit
from imageclf.training.loading.batches import Batches
from imageclf.training.losses import LOSSES, Loss, balanced_weights
from imageclf.training.optim import OPTIMIZERS, SCHEDULES, Optimizer, OptimizerOptions
from imageclf.training.scoring import score

TRAIN = 107
"""Number of training images: three batches of 32 and a smaller one."""
STEPS = 4
LOSS = LOSSES["cross_entropy"]
FROZEN = {"optimizer": "sgd", "lr": 1e-12}
"""Options of a training that does not change the weights, so that every step has the same net."""


pytestmark = pytest.mark.usefixtures("one_thread")

LEARNING = {"sgd": 0.05, "adam": 0.01, "adamw": 0.01, "rmsprop": 0.002, "rmsprop_keras": 0.002, "muon": 0.01}
"""Learning rate with which each optimizer learns the generated images quickly."""


def batches(split: Split, rows: slice = slice(None), batch_size: int = 32) -> Batches:
    return batches_of(Split(split.images[rows], split.targets[rows]), batch_size)


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
    """Run `fit` on the first images of `split`, with the others for validation."""
    return fit(
        net,
        with_optimizer or OPTIMIZERS[optimizer](net, OptimizerOptions(lr=lr, momentum=0.9)),
        SCHEDULES[schedule],
        loss,
        train=batches(split, slice(TRAIN), batch_size),
        val=batches(split, slice(TRAIN, None)) if with_val else None,
        epochs=epochs,
        seed=seed,
        **others,
    )


def last_loss(position: Position) -> float:
    assert position.losses is not None
    return position.losses[position.step - 1].item()


def weights(net: nn.Module) -> list[Tensor]:
    return [tensor.clone() for tensor in net.state_dict().values()]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(map(torch.equal, first, second))


def test_the_same_seed_gives_the_same_bits_after_any_other_random_draws(made_split: Split) -> None:
    net, again = new_net(), new_net()
    torch.manual_seed(1)
    history = list(train(net, made_split, seed=7))
    torch.manual_seed(2)
    assert list(train(again, made_split, seed=7)) == history
    assert same(weights(net), weights(again))


def test_random_draws_between_epochs_change_nothing(made_split: Split) -> None:
    net, disturbed = new_net(), new_net()
    list(train(net, made_split))
    for _ in train(disturbed, made_split):
        torch.rand(3)
    assert same(weights(net), weights(disturbed))


def test_validation_does_not_change_the_weights(made_split: Split) -> None:
    net, unvalidated = new_net(), new_net()
    list(train(net, made_split))
    list(train(unvalidated, made_split, with_val=False))
    assert same(weights(net), weights(unvalidated))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_another_seed_gives_other_weights(dropout: float, made_split: Split) -> None:
    net, other = new_net(dropout), new_net(dropout)
    list(train(net, made_split, seed=0))
    list(train(other, made_split, seed=1))
    assert not same(weights(net), weights(other))


@pytest.mark.parametrize("seeds", [(0, 0), (0, 1)], ids=["epochs", "seeds"])
def test_dropout_differs_between_epochs_and_between_seeds(seeds: tuple[int, int], made_split: Split) -> None:
    """All images are equal here, so that their order does not matter."""
    one = Split(*(np.repeat(array[:1], TRAIN + 1, axis=0) for array in (made_split.images, made_split.targets)))
    first = list(train(new_net(0.5), one, seed=seeds[0], **FROZEN))
    second = list(train(new_net(0.5), one, seed=seeds[1], **FROZEN))
    assert abs(first[0].train_loss - second[seeds[0] == seeds[1]].train_loss) > 1e-5  # equal draws differ by 0


@pytest.mark.parametrize("seeds", [(0, 0), (0, 1)], ids=["epochs", "seeds"])
def test_order_differs_between_epochs_and_between_seeds(seeds: tuple[int, int], made_split: Split) -> None:
    """Without dropout, the loss of a first batch depends only on its images."""
    losses: list[float] = []
    for seed in seeds:
        list(train(new_net(0.0), made_split, seed=seed, on_step=lambda at: losses.append(last_loss(at)), **FROZEN))
    first, second = losses[0], losses[STEPS if seeds[0] == seeds[1] else 2 * STEPS]
    assert abs(first - second) > 1e-3


def test_threads_change_only_the_rounding(made_split: Split) -> None:
    """Threads add in another order; the tolerances, 1e-3 and 2 images, are far above the effect of that here."""
    histories = []
    for count in (1, 2):
        torch.set_num_threads(count)
        histories.append(list(train(new_net(), made_split, epochs=3)))
    for one, two in zip(*histories, strict=True):
        assert one.train_loss == pytest.approx(two.train_loss, abs=1e-3)
        assert one.val_loss == pytest.approx(two.val_loss, abs=1e-3)
        assert one.train_accuracy == pytest.approx(two.train_accuracy, abs=2 / TRAIN)


def test_the_train_scores_count_every_image(made_split: Split) -> None:
    """A net that does not change has the same scores over the batches as over the whole split."""
    net = new_net(dropout=0.0)
    expected = score(net, batches(made_split, slice(TRAIN), batch_size=1000), LOSS)
    (epoch,) = train(net, made_split, epochs=1, **FROZEN)
    assert epoch.train_accuracy == pytest.approx(expected.accuracy, abs=1e-12)
    assert epoch.train_loss == pytest.approx(expected.loss, abs=1e-6)
    assert 0 < round(epoch.train_accuracy * TRAIN) == pytest.approx(epoch.train_accuracy * TRAIN, abs=1e-9)


def test_label_smoothing_is_in_the_train_loss_and_in_no_score(made_split: Split) -> None:
    (plain,) = train(new_net(0.0), made_split, epochs=1, batch_size=TRAIN, **FROZEN)
    (smoothed,) = train(new_net(0.0), made_split, epochs=1, batch_size=TRAIN, label_smoothing=0.2, **FROZEN)
    net = new_net(0.0)
    train_split = batches(made_split, slice(TRAIN), TRAIN)
    ((images, targets),) = train_split.in_order()
    expected = nn.functional.cross_entropy(net(train_split.normalize(images)), targets, label_smoothing=0.2)
    assert smoothed.train_loss == pytest.approx(expected.item(), abs=1e-5)
    assert (smoothed.train_accuracy, smoothed.val_accuracy) == (plain.train_accuracy, plain.val_accuracy)
    assert smoothed.val_loss == pytest.approx(plain.val_loss, abs=1e-6)


def test_val_scores_are_those_of_the_net_after_the_epoch_without_dropout(made_split: Split) -> None:
    net = new_net(dropout=0.5)
    for epoch in train(net, made_split):
        expected = score(net.eval(), batches(made_split, slice(TRAIN, None)), LOSS)
        assert (epoch.val_loss, epoch.val_accuracy) == (expected.loss, expected.accuracy)


def test_dropout_is_on_in_every_epoch(made_split: Split) -> None:
    """Validation and the caller may leave the net in eval mode."""
    net = new_net(dropout=0.5)
    modes: list[bool] = []
    net.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    for _ in train(net, made_split, with_val=False):
        net.eval()
    assert modes == [True] * (2 * STEPS)


@pytest.mark.parametrize(("optimizer", "lr"), LEARNING.items())
def test_every_optimizer_learns(optimizer: str, lr: float, made_split: Split) -> None:
    *_, last = train(new_net(), made_split, epochs=12, optimizer=optimizer, lr=lr, schedule="cosine")
    assert last.val_accuracy is not None
    assert last.val_accuracy > 0.9
    assert last.train_accuracy > 0.9


def test_one_hot_and_indices_train_the_same_net(made_split: Split) -> None:
    """The two forms of targets differ only in rounding."""
    one_hot = list(train(new_net(), made_split))
    indices = list(train(new_net(), Split(made_split.images, made_split.labels)))
    for one, other in zip(one_hot, indices, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, abs=1e-4)
        assert one.val_loss == pytest.approx(other.val_loss, abs=1e-4)
        assert one.train_accuracy == pytest.approx(other.train_accuracy, abs=1 / TRAIN)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_learns(loss: str, made_split: Split) -> None:
    *_, last = train(new_net(), made_split, epochs=12, loss=LOSSES[loss])
    assert last.val_accuracy is not None
    assert last.val_accuracy > 0.9


def test_every_optimizer_is_tested() -> None:
    assert LEARNING.keys() == OPTIMIZERS.keys()


def test_indices_as_targets_learn_too(made_split: Split) -> None:
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


def test_the_lr_of_each_step_follows_the_cosine(made_split: Split) -> None:
    net = new_net(dropout=0.0)
    optimizer = OPTIMIZERS["sgd"](net, OptimizerOptions(lr=0.1))
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


def test_a_step_is_one_of_gradient_descent_on_the_mean_loss(made_split: Split) -> None:
    """Plain gradient descent on one batch, computed by hand."""
    net, expected = new_net(dropout=0.0), new_net(dropout=0.0)
    list(
        fit(
            net,
            OPTIMIZERS["sgd"](net, OptimizerOptions(lr=0.1)),
            SCHEDULES["constant"],
            LOSS,
            train=batches(made_split, slice(TRAIN), batch_size=TRAIN),
            val=None,
            epochs=2,
            seed=0,
        )
    )
    train_split = batches(made_split, slice(TRAIN), batch_size=TRAIN)
    ((pixels, targets),) = train_split.in_order()
    images = train_split.normalize(pixels)
    for _ in range(2):
        gradients = torch.autograd.grad(LOSS(expected(images), targets), list(expected.parameters()))
        for parameter, gradient in zip(expected.parameters(), gradients, strict=True):
            parameter.data -= 0.1 * gradient
    torch.testing.assert_close(weights(net), weights(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize("with_val", [True, False])
def test_a_loss_that_is_not_finite_ends_training_with_one_sentence(with_val: bool, made_split: Split) -> None:
    with pytest.raises(UserError, match=r"the loss of epoch 1, step \d is (nan|inf): try a smaller lr than 1e\+30"):
        list(train(new_net(), made_split, optimizer="sgd", lr=1e30, with_val=with_val))


def test_an_infinite_loss_ends_training_too(made_split: Split) -> None:
    with pytest.raises(UserError, match="the loss of epoch 1, step 1 is inf"):
        list(train(new_net(), made_split, loss=lambda logits, _: 0 * logits.sum() + torch.inf))


def test_a_validation_loss_that_is_not_finite_ends_training_too(made_split: Split) -> None:
    """The only step of the epoch breaks the net; its train loss was computed before."""
    with pytest.raises(UserError, match="epoch 1"):
        list(train(new_net(), made_split, optimizer="sgd", lr=1e30, batch_size=TRAIN, epochs=1))


def test_an_epoch_is_trained_only_when_the_caller_requests_it(made_split: Split) -> None:
    """A caller that stops after the first epoch has the net as this epoch left it."""
    stopped, continued = new_net(), new_net()
    steps: list[int] = []
    first = next(train(stopped, made_split, epochs=3, on_step=lambda at: steps.append(at.step)))
    assert steps == list(range(1, STEPS + 1))

    epochs = train(continued, made_split, epochs=3)
    assert next(epochs) == first
    assert same(weights(continued), weights(stopped))
    next(epochs)
    assert not same(weights(continued), weights(stopped))


def test_on_step_gets_the_position(made_split: Split) -> None:
    records: list[tuple[int, int, int, float, int]] = []

    def record(at: Position) -> None:
        assert at.correct is not None
        records.append((at.epoch, at.step, at.images, last_loss(at), int(at.correct)))

    history = list(train(new_net(), made_split, on_step=record))
    assert [each[:2] for each in records] == [(epoch, step) for epoch in (1, 2) for step in (1, 2, 3, 4)]
    assert [images for _, _, images, _, _ in records] == [32, 64, 96, 107] * 2
    for epoch in history:
        steps = [each for each in records if each[0] == epoch.number]
        losses = [loss * size for (*_, loss, _), size in zip(steps, (32, 32, 32, 11), strict=True)]
        assert epoch.train_loss == pytest.approx(sum(losses) / TRAIN, rel=1e-12)
        assert epoch.train_accuracy == steps[-1][-1] / TRAIN


@pytest.mark.parametrize("step", range(STEPS))
def test_a_training_resumes_within_an_epoch_to_the_same_bits(step: int, made_split: Split) -> None:
    """Resume from each step of the second epoch, including its last."""
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

    optimizer = OPTIMIZERS["adam"](net, OptimizerOptions(lr=0.01))
    list(train(net, made_split, with_optimizer=optimizer, on_step=keep))
    torch.rand(3)
    again = new_net()
    again.load_state_dict(kept["net"])
    restored = OPTIMIZERS["adam"](again, OptimizerOptions(lr=0.01))
    restored.load_state_dict(kept["optimizer"])
    assert list(train(again, made_split, with_optimizer=restored, start=kept["position"])) == history[1:]
    assert same(weights(again), weights(whole))


@pytest.mark.parametrize("batch_size", [32, TRAIN])
def test_the_step_of_a_loss_that_is_not_finite_is_named(batch_size: int, made_split: Split) -> None:
    def broken(logits: Tensor, targets: Tensor) -> Tensor:
        calls.append(1)
        return LOSS(logits, targets) * (math.nan if len(calls) == steps + 1 else 1)

    calls: list[int] = []
    steps = math.ceil(TRAIN / batch_size)
    with pytest.raises(UserError, match=r"the loss of epoch 2, step 1 is nan: try a smaller lr than 0.01"):
        list(train(new_net(), made_split, loss=broken, batch_size=batch_size, with_val=False))


class _Waits(TorchDispatchMode):
    """Records operations whose result the CPU needs: on a GPU, it would wait for all operations before them."""

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
        assert waits.seen.pop() == "aten::_local_scalar_dense", "waits must be recorded"
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
    ids=["accuracy", "worse accuracy", "loss", "worse loss", "equal: the earlier epoch stays"],
)
def test_better_is_by_accuracy_then_by_loss(
    ours: tuple[float, float], others: tuple[float, float], better: bool
) -> None:
    later, earlier = (Epoch(number, 0.1, 0, 0, loss, accuracy) for number, (accuracy, loss) in ((2, ours), (1, others)))
    assert later.better_than(earlier) == better


def test_without_validation_the_later_epoch_is_better() -> None:
    """The train scores do not matter."""
    earlier, later = Epoch(2, 0.1, 0.5, 0.9, None, None), Epoch(3, 0.1, 0.7, 0.8, None, None)
    assert later.better_than(earlier)
    assert not earlier.better_than(later)


needs_bfloat16 = pytest.mark.skipif(
    not {"avx512_bf16", "amx_bf16"} & cores.processor_flags(), reason="this processor has no bfloat16 instructions"
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
    """A bfloat16 number has 8 bits of mantissa: an error of up to 1/256, less in a mean."""
    options: dict[str, Any] = {"epochs": 1, "loss": LOSSES[loss], "label_smoothing": label_smoothing, **FROZEN}
    (exact,) = train(new_net(0.0), made_split, **options)
    autocast = runtime.autocast("bfloat16", torch.device("cpu"))
    (rounded,) = train(new_net(0.0), made_split, autocast=autocast, **options)
    assert rounded.train_loss == pytest.approx(exact.train_loss, rel=0.01)


class OutOfMemoryAbove(nn.Module):
    """A layer that raises torch's out-of-memory error for more than `limit` images."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, images: Tensor) -> Tensor:
        """Return the images, if they fit."""
        if len(images) > self.limit:
            raise torch.OutOfMemoryError
        return images


def with_memory_limit(net: nn.Module, limit: int) -> nn.Module:
    return nn.Sequential(OutOfMemoryAbove(limit), *net.children())


def test_a_batch_that_does_not_fit_is_split_with_the_same_result(
    made_split: Split, capsys: pytest.CaptureFixture[str]
) -> None:
    unlimited, limited = new_net(0.0), with_memory_limit(new_net(0.0), limit=9)
    expected = list(train(unlimited, made_split, optimizer="sgd", with_val=False))
    found = list(train(limited, made_split, optimizer="sgd", with_val=False))
    torch.testing.assert_close(weights(limited), weights(unlimited), rtol=0, atol=1e-5)
    assert [epoch.train_loss for epoch in found] == pytest.approx([epoch.train_loss for epoch in expected], rel=1e-5)
    assert [epoch.train_accuracy for epoch in found] == [epoch.train_accuracy for epoch in expected]
    assert capsys.readouterr().out.splitlines() == [
        "out of memory: each batch is now split into 2 micro-batches",
        "out of memory: each batch is now split into 4 micro-batches",
    ]


def test_with_batch_norm_a_batch_size_that_fits_is_named(made_split: Split) -> None:
    net = with_memory_limit(models.build("vgg11", (1, 8, 8), 4, width=0.0625, dropout=0.0), limit=9)
    with pytest.raises(UserError, match="batch_size: 32 images do not fit into the device's memory, 8 do"):
        list(train(net, made_split, with_val=False))


def test_a_device_too_small_for_one_image_is_reported(made_split: Split) -> None:
    with pytest.raises(UserError, match="memory is too small for one image: use a smaller model"):
        list(train(with_memory_limit(new_net(), limit=0), made_split, with_val=False))


def test_class_weights_change_the_train_loss_and_not_the_validation_loss(made_split: Split) -> None:
    (plain,) = train(new_net(0.0), made_split, epochs=1, batch_size=TRAIN, **FROZEN)
    double = torch.full((4,), 2.0)
    (weighted,) = train(new_net(0.0), made_split, epochs=1, batch_size=TRAIN, class_weights=double, **FROZEN)
    assert weighted.train_loss == pytest.approx(2 * plain.train_loss, rel=1e-6)
    assert weighted.val_loss == pytest.approx(plain.val_loss, abs=1e-6)
    assert weighted.train_accuracy == plain.train_accuracy


def test_balanced_weights_find_the_rare_class(made_split: Split) -> None:
    """Class 0 keeps three images, and its rows are noise for the others: without weights, it is hardly predicted."""
    labels = made_split.labels
    kept = np.flatnonzero((labels != 0) | (np.cumsum(labels == 0) <= 3))
    rare = Split(made_split.images[kept], labels[kept])
    hits = {}
    for name, class_weights in (("plain", None), ("balanced", balanced_weights(rare.labels, 4))):
        net = new_net(0.0)
        batches = batches_of(rare, len(rare))
        list(
            fit(
                net,
                OPTIMIZERS["sgd"](net, OptimizerOptions(lr=0.02)),
                SCHEDULES["constant"],
                LOSS,
                train=batches,
                val=None,
                epochs=20,
                seed=0,
                class_weights=class_weights,
            )
        )
        ((images, targets),) = batches.in_order()
        logits = net.eval()(batches.normalize(images))
        hits[name] = logits.softmax(dim=1)[targets == 0, 0].mean().item()
    assert hits["balanced"] > 2 * hits["plain"]
