"""Tests of the compiled step: the same training as without compilation, which resumes to the same bits."""

import shutil
from typing import Any

import pytest
import torch
from helpers import batches_of
from torch import Tensor, nn
from torch._inductor.utils import run_and_get_code

from imageclf import models
from imageclf.contracts.dataset import Split
from imageclf.core import cores
from imageclf.core.errors import UserError
from imageclf.training import runtime
from imageclf.training.fit import Epoch, Position, fit
from imageclf.training.losses import LOSSES, Loss
from imageclf.training.optim import OPTIMIZERS, SCHEDULES, Optimizer, OptimizerOptions
from imageclf.training.update import update_of

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="this machine has no g++")
pytestmark = [pytest.mark.usefixtures("one_thread"), needs_compiler]

NETS: dict[str, dict[str, Any]] = {
    "mlp": {"hidden": [16], "dropout": 0.5},
    "cnn": {"channels": [4], "kernel_size": 3, "conv_padding": "same", "hidden": [], "dropout": 0.0},
    "vgg11": {"width": 0.0625, "dropout": 0.0},
}
TRAIN, BATCH_SIZE, STEPS = 107, 32, 4


@pytest.fixture(autouse=True)
def default_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)


def new_training(model: str, optimizer: str = "adam", **changes: Any) -> tuple[nn.Module, Optimizer]:
    torch.manual_seed(0)
    net = runtime.place(models.build(model, (1, 8, 8), 4, **{**NETS[model], **changes}), torch.device("cpu"))
    return net, OPTIMIZERS[optimizer](net, OptimizerOptions(lr=0.01))


def train(
    net: nn.Module, optimizer: Optimizer, split: Split, loss: Loss = LOSSES["cross_entropy"], **options: Any
) -> list[Epoch]:
    rows = Split(split.images[:TRAIN], split.targets[:TRAIN])
    batches = batches_of(rows, BATCH_SIZE)
    return list(fit(net, optimizer, SCHEDULES["cosine"], loss, train=batches, val=None, epochs=2, seed=0, **options))


def assert_close_training(model: str, split: Split, **options: Any) -> None:
    eager, compiled = (new_training(model, "sgd", dropout=0.0) for _ in range(2))  # Adam would amplify rounding
    expected = train(*eager, split, **options)
    found = train(*compiled, split, compiled=True, **options)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.train_loss == pytest.approx(theirs.train_loss, rel=1e-3)
    for name, tensor in compiled[0].state_dict().items():
        torch.testing.assert_close(tensor, eager[0].state_dict()[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("model", NETS)
def test_a_compiled_training_is_that_of_the_loop(
    model: str, made_split: Split, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_close_training(model, made_split)
    assert capsys.readouterr().out == ""  # no line says that the step was not compiled


@pytest.mark.parametrize("one_hot", [True, False], ids=["one-hot", "indices"])
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_compiles(loss: str, one_hot: bool, made_split: Split, capsys: pytest.CaptureFixture[str]) -> None:
    split = made_split if one_hot else Split(made_split.images, made_split.labels)
    assert_close_training("mlp", split, loss=LOSSES[loss], label_smoothing=0.1)
    assert capsys.readouterr().out == ""


def test_class_weights_compile(made_split: Split, capsys: pytest.CaptureFixture[str]) -> None:
    assert_close_training("mlp", made_split, class_weights=torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert capsys.readouterr().out == ""


def test_frozen_layers_compile(made_split: Split, capsys: pytest.CaptureFixture[str]) -> None:
    assert_close_training("mlp", made_split, freeze_epochs=1)
    assert capsys.readouterr().out == ""


@pytest.mark.skipif(not {"avx512_bf16", "amx_bf16"} & cores.processor_flags(), reason="no bfloat16 instructions")
def test_mixed_precision_compiles(made_split: Split, capsys: pytest.CaptureFixture[str]) -> None:
    (net, optimizer), (eager, its_optimizer) = (new_training("mlp", "sgd", dropout=0.0) for _ in range(2))
    autocast = runtime.autocast("bfloat16", torch.device("cpu"))
    found = train(net, optimizer, made_split, compiled=True, autocast=autocast)
    expected = train(eager, its_optimizer, made_split, autocast=autocast)
    assert found[-1].train_loss == pytest.approx(expected[-1].train_loss, rel=1e-2)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "options", [{}, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}], ids=["plain", "all"]
)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_compiles(
    name: str, options: dict[str, Any], made_split: Split, capsys: pytest.CaptureFixture[str]
) -> None:
    """One step is compared, since Adam and its kind amplify rounding; the program and the loop keep the same state."""
    trained: list[tuple[nn.Module, Optimizer]] = []
    for compiled in (False, True):
        torch.manual_seed(0)
        net = models.build("mlp", (1, 8, 8), 4, hidden=[16], dropout=0.0)
        optimizer = OPTIMIZERS[name](net, OptimizerOptions(lr=0.01, **options))
        rows = Split(made_split.images[:TRAIN], made_split.targets[:TRAIN])
        fitted = fit(
            net, optimizer, SCHEDULES["constant"], LOSSES["cross_entropy"], train=batches_of(rows, BATCH_SIZE),
            val=None, epochs=2, seed=0, compiled=compiled,
        )  # fmt: skip
        next(fitted)
        trained.append((net, optimizer))
    assert capsys.readouterr().out == ""
    (eager, its_optimizer), (net, optimizer) = trained
    for ours, theirs in zip(net.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    flat = [str(_shapes(each.state_dict())) for each in (optimizer, its_optimizer)]
    assert flat[0] == flat[1]


def _shapes(state: Any) -> Any:
    """Return a state with the shape in place of each tensor, and its keys in order."""
    if isinstance(state, dict):
        return {key: _shapes(state[key]) for key in sorted(state, key=str) if key != "lr"}
    if isinstance(state, list):
        return [_shapes(each) for each in state]
    return tuple(state.shape) if isinstance(state, Tensor) else state


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weights_that_were_frozen_at_first_compile(name: str, made_split: Split) -> None:
    """They have done fewer steps than the others, and Adam's bias correction counts them."""
    trained: list[list[Tensor]] = []
    for compiled in (False, True):
        torch.manual_seed(0)
        net = models.build("mlp", (1, 8, 8), 4, hidden=[16], dropout=0.0)
        optimizer = OPTIMIZERS[name](net, OptimizerOptions(lr=0.01, momentum=0.9))
        rows = Split(made_split.images[:64], made_split.targets[:64])
        epochs = fit(
            net, optimizer, SCHEDULES["constant"], LOSSES["mse"], train=batches_of(rows, 64), val=None, epochs=3,
            seed=0, freeze_epochs=2, compiled=compiled,
        )  # fmt: skip
        assert len(list(epochs)) == 3
        trained.append([weight.detach() for weight in net.parameters()])
    for ours, theirs in zip(*trained, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_two_programs_in_one_process_do_not_mix(made_split: Split) -> None:
    """Both have the same shapes; what differs is a constant of the program."""
    losses = {"cross_entropy": LOSSES["cross_entropy"], "mse": LOSSES["mse"]}
    alone = {name: train(*new_training("mlp", "sgd"), made_split, loss, compiled=True) for name, loss in losses.items()}
    rows = Split(made_split.images[:TRAIN], made_split.targets[:TRAIN])
    in_turn = {
        name: fit(
            *new_training("mlp", "sgd"), SCHEDULES["cosine"], loss, train=batches_of(rows, BATCH_SIZE), val=None,
            epochs=2, seed=0, compiled=True,
        )
        for name, loss in losses.items()
    }  # fmt: skip
    for epoch in range(2):
        assert [next(each) for each in in_turn.values()] == [each[epoch] for each in alone.values()]


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_the_program_computes_no_power_for_each_weight(name: str) -> None:
    """The bias corrections are powers. Inductor would compute them again for every eight weights."""
    net = nn.Linear(3, 2)
    update = update_of(OPTIMIZERS[name](net, OptimizerOptions(lr=0.01)), list(net.parameters()))
    assert update is not None
    gradients = [torch.ones_like(weight) for weight in net.parameters()]
    torch.compiler.reset()
    with torch.no_grad():
        _, sources = run_and_get_code(torch.compile(update.apply), gradients, torch.tensor(update.numbers()))
    assert ".sqrt()" in "".join(sources)
    assert "pow" not in "".join(sources)


def test_only_whole_batches_run_compiled(made_split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def fake_compile(step: Any, **_: object) -> Any:
        def program(images: Tensor, targets: Tensor, lr: Tensor) -> Any:
            sizes.append(len(images))
            return step(images, targets, lr)

        return program

    monkeypatch.setattr(torch, "compile", fake_compile)
    train(*new_training("mlp"), made_split, compiled=True)
    assert sizes == [BATCH_SIZE] * 2 * (STEPS - 1)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_compiled_training_resumes_to_the_same_bits(name: str, made_split: Split) -> None:
    """The net has dropout: its random numbers must be the same in a new process."""
    states: dict[tuple[int, int], Any] = {}

    def keep(at: Position) -> None:
        random = runtime.random_state(torch.device("cpu"))
        position = Position(at.epoch, at.step, at.images, at.losses, at.correct, random)
        if (at.epoch, at.step) == (2, 2):
            copies = {name: tensor.clone() for name, tensor in net.state_dict().items()}
            states[2, 2] = (position, copies, optimizer.state_dict())
            raise KeyboardInterrupt

    net, optimizer = new_training("mlp", name)
    with pytest.raises(KeyboardInterrupt):
        train(net, optimizer, made_split, compiled=True, on_step=keep)
    position, copies, moments = states[2, 2]
    torch.manual_seed(99)
    resumed, its_optimizer = new_training("mlp", name)
    resumed.load_state_dict(copies)
    its_optimizer.load_state_dict(moments)
    for group in its_optimizer.param_groups:
        group["lr"] = 0.01
    train(resumed, its_optimizer, made_split, compiled=True, start=position)
    whole, its_own = new_training("mlp", name)
    train(whole, its_own, made_split, compiled=True)
    assert all(map(torch.equal, resumed.state_dict().values(), whole.state_dict().values()))


def test_a_step_that_torch_cannot_compile_runs_without_and_says_so(
    made_split: Split, capsys: pytest.CaptureFixture[str]
) -> None:
    def unusual(logits: Tensor, targets: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return LOSSES["cross_entropy"](logits, targets)

    (net, optimizer), (eager, its_optimizer) = new_training("mlp"), new_training("mlp")
    train(net, optimizer, made_split, loss=unusual, compiled=True)
    out = capsys.readouterr().out
    assert out.startswith("compile: the training runs without torch.compile (")
    assert out.count("\n") == 1
    train(eager, its_optimizer, made_split, loss=unusual)
    assert all(map(torch.equal, net.state_dict().values(), eager.state_dict().values()))


def test_a_torch_that_cannot_compile_a_backward_pass_says_so(
    made_split: Split, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Older:
        """The settings of a torch that has no `trace_autograd_ops`."""

    monkeypatch.setattr(torch._dynamo, "config", Older())
    train(*new_training("mlp"), made_split, compiled=True)
    assert "cannot compile a backward pass" in capsys.readouterr().out


def test_without_a_compiler_compile_is_refused(made_split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match="compile: needs a C\\+\\+ compiler, and there is no no-such-compiler here"):
        train(*new_training("mlp"), made_split, compiled=True)
