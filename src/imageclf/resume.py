"""What lets an interrupted training go on as if nothing had happened, to the same bits.

A state is one file outside DVC's outputs, `<repository>/.resume/<key>.state`: 64 hexadecimal digits, the SHA-256 of
the rest, a line feed, then safetensors. What is no tensor stands in one of them as JSON: no pickle. The key is a
digest of all that the training's result depends on, so that changed code, data or parameters never meet old state.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imageclf import files, paths

if TYPE_CHECKING:
    from torch import Tensor, nn

    from imageclf.fit import Epoch, Position
    from imageclf.optim import Optimizer

CHECKOUT = Path(__file__).resolve().parents[2]
"""The project that this code is a part of: DVC's copy of it, in a queued experiment."""
FOLDER = ".resume"
REST = "rest"
"""The tensor of bytes that holds, as JSON, what is no tensor."""


def key_of(identity: Mapping[str, Any]) -> str:
    """The name of a training: a digest of JSON values that say what its result depends on."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def code(dependencies: list[str]) -> dict[str, str]:
    """The SHA-256 of each Python file among a stage's dependencies, a folder standing for the files in it."""
    found: dict[str, str] = {}
    for dependency in (CHECKOUT / each for each in dependencies if each.startswith(("src/", "stages/"))):
        for file in sorted(dependency.rglob("*.py")) if dependency.is_dir() else [dependency]:
            found[file.relative_to(CHECKOUT).as_posix()] = files.sha256(file)
    return found


class Slot:
    """The place of one training's state."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def exists(self) -> bool:
        """Whether an earlier run has left something."""
        return self._path.is_file()

    def save(self, state: dict[str, Any]) -> None:
        """Keep a tree of dicts, lists, numbers, texts and tensors; the one before stays whole until this one is."""
        import safetensors.torch

        tensors: dict[str, Tensor] = {}
        rest = json.dumps(_take_out(state, tensors), allow_nan=False).encode()
        content = safetensors.torch.save({**tensors, REST: _bytes_tensor(rest)})
        with files.replacing(self._path) as temporary, temporary.open("wb") as file:
            file.write(hashlib.sha256(content).hexdigest().encode() + b"\n")
            file.write(content)

    def load(self) -> dict[str, Any] | None:
        """What was kept last; None if there is nothing, or if it is damaged, which is then said."""
        import safetensors.torch

        if not self.exists():
            return None
        digest, _, content = self._path.read_bytes().partition(b"\n")
        if digest != hashlib.sha256(content).hexdigest().encode():
            print(f"{self._path} is damaged: training starts from its first epoch", flush=True)
            return None
        tensors = safetensors.torch.load(content)
        return _put_back(json.loads(bytes(tensors.pop(REST).numpy())), tensors)

    def clear(self) -> None:
        """Forget the state: the training has ended."""
        self._path.unlink(missing_ok=True)


class Training:
    """A training on its way: all that its outcome depends on beside what `key_of` knows, kept in a slot."""

    def __init__(self, net: "nn.Module", optimizer: "Optimizer", slot: Slot, *, every_s: float) -> None:
        from imageclf.fit import Position

        self.net, self.optimizer = net, optimizer
        self.epochs: list[Epoch] = []
        self.best: Epoch | None = None
        self.weights: dict[str, Tensor] = {}
        """Those after the best epoch, on the CPU."""
        self.position = Position()
        self._device = next(net.parameters()).device
        self._slot, self._every_s, self._saved = slot, every_s, time.monotonic()

    def end_epoch(self, epoch: "Epoch") -> None:
        """Take note of an epoch that has just ended, and keep it."""
        from imageclf.fit import Position

        self.epochs.append(epoch)
        self.position = Position(epoch.number + 1)
        if self.best is None or epoch.better_than(self.best):
            self.best = epoch
            self.weights = {name: tensor.cpu().clone() for name, tensor in self.net.state_dict().items()}
        self._save()

    def due(self) -> bool:
        """Whether the last state was kept so long ago that one within the epoch is wanted."""
        return time.monotonic() - self._saved > self._every_s

    def pause(self, at: "Position") -> None:
        """Keep a place within an epoch."""
        from imageclf.runtime import random_state

        self.position = dataclasses.replace(at, random=random_state(self._device))
        self._save()

    def go_on(self) -> bool:
        """Be where an earlier run was interrupted; False, and as before, if there was none on such a device."""
        from imageclf.fit import Epoch, Position

        state = self._slot.load()
        if state is None or state["device"] != str(self._device):
            return False
        self.net.load_state_dict(state["net"])
        lrs = [group["lr"] for group in self.optimizer.param_groups]  # as given: `fit` schedules from there
        self.optimizer.load_state_dict(state["optimizer"])
        for group, lr in zip(self.optimizer.param_groups, lrs, strict=True):
            group["lr"] = lr
        self.epochs = [Epoch(**epoch) for epoch in state["epochs"]]
        self.best = None if state["best"] is None else self.epochs[state["best"] - 1]
        self.weights = state["weights"]
        self.position = Position(**state["position"])
        return True

    def _save(self) -> None:
        self._slot.save(
            {
                "device": str(self._device),
                "net": self.net.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "epochs": [vars(epoch) for epoch in self.epochs],
                "best": None if self.best is None else self.best.number,
                "weights": self.weights,
                "position": vars(self.position),
            }
        )
        self._saved = time.monotonic()


@contextmanager
def slot(key: str) -> Iterator[Slot]:
    """The slot of this name, for one process at a time: a second one waits until the first has ended."""
    import filelock

    folder = paths.repository() / FOLDER
    folder.mkdir(exist_ok=True)
    lock = filelock.FileLock(folder / f"{key}.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        print("the same training is running already: waiting for its end", flush=True)
        lock.acquire()
    try:
        for litter in folder.glob(f".{key}.state.*.tmp"):  # of a run that was killed as it saved
            litter.unlink()
        yield Slot(folder / f"{key}.state")
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _take_out(value: Any, tensors: dict[str, "Tensor"]) -> Any:
    """`value` as JSON, its tensors moved to `tensors`. Dicts become pairs: their keys may be numbers."""
    import torch

    match value:
        case torch.Tensor():
            name = str(len(tensors))
            last = value.ndim == 4 and value.is_contiguous(memory_format=torch.channels_last)
            # Fused optimizers walk through memory: their state must lie as the weights do.
            tensors[name] = value.detach().contiguous()
            return {"tensor": name, "channels_last": last}
        case dict():
            return {"pairs": [[key, _take_out(entry, tensors)] for key, entry in value.items()]}
        case list() | tuple():
            return [_take_out(entry, tensors) for entry in value]
        case _:
            return value


def _put_back(value: Any, tensors: dict[str, "Tensor"]) -> Any:
    import torch

    match value:
        case {"tensor": name, "channels_last": last}:
            return tensors[name].contiguous(memory_format=torch.channels_last) if last else tensors[name]
        case {"pairs": pairs}:
            return {key: _put_back(entry, tensors) for key, entry in pairs}
        case list():
            return [_put_back(entry, tensors) for entry in value]
        case _:
            return value


def _bytes_tensor(content: bytes) -> "Tensor":
    import torch

    return torch.frombuffer(bytearray(content), dtype=torch.uint8)
