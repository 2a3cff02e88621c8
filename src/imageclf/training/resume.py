"""The saved state from which an interrupted training resumes, to the same bits.

A state is one file outside DVC's outputs, `<repository>/.resume/<key>.state`: the SHA-256 of the rest as 64 hexadecimal
digits, a line feed, then safetensors. Values that are not tensors are JSON in one of the tensors; there is no pickle.
The key is a digest of everything that the result of the training depends on, so that a state is never used with other
code, data or parameters.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imageclf.core import files, paths

if TYPE_CHECKING:
    from torch import Tensor, nn

    from imageclf.training.fit import Epoch, Position
    from imageclf.training.optim import Optimizer

CHECKOUT = Path(__file__).resolve().parents[3]
"""Root of the project that this code is part of; in a queued experiment, of DVC's copy."""
FOLDER = ".resume"
JSON_TENSOR = "json"
"""Name of the tensor of bytes that holds, as JSON, everything that is not a tensor."""


def key_of(identity: Mapping[str, Any]) -> str:
    """Return the name of a training: a digest of the JSON values that its result depends on."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def code(dependencies: list[str]) -> dict[str, str]:
    """Return the SHA-256 of each Python file among the dependencies of a stage; a folder stands for its files."""
    found: dict[str, str] = {}
    for dependency in (CHECKOUT / each for each in dependencies if each.startswith(("src/", "stages/"))):
        for file in sorted(dependency.rglob("*.py")) if dependency.is_dir() else [dependency]:
            found[file.relative_to(CHECKOUT).as_posix()] = files.sha256(file)
    return found


class Slot:
    """The file that holds the state of one training."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def exists(self) -> bool:
        """Return True if an interrupted training left a state."""
        return self._path.is_file()

    def save(self, state: dict[str, Any]) -> None:
        """Save a tree of dicts, lists, numbers, strings and tensors, which replaces the previous state."""
        import safetensors.torch

        tensors: dict[str, Tensor] = {}
        rest = json.dumps(_take_out(state, tensors), allow_nan=False).encode()
        content = safetensors.torch.save({**tensors, JSON_TENSOR: _bytes_tensor(rest)})
        with files.replacing(self._path) as temporary, temporary.open("wb") as file:
            file.write(hashlib.sha256(content).hexdigest().encode() + b"\n")
            file.write(content)

    def load(self) -> dict[str, Any] | None:
        """Return the last saved state; None if there is none, or if it is damaged, which is printed."""
        import safetensors.torch

        if not self.exists():
            return None
        digest, _, content = self._path.read_bytes().partition(b"\n")
        if digest != hashlib.sha256(content).hexdigest().encode():
            print(f"{self._path} is damaged: the training starts again from its first epoch", flush=True)
            return None
        tensors = safetensors.torch.load(content)
        return _put_back(json.loads(bytes(tensors.pop(JSON_TENSOR).numpy())), tensors)

    def clear(self) -> None:
        """Delete the state after the training has ended."""
        self._path.unlink(missing_ok=True)


class TrainingState:
    """A training in progress: everything that its outcome depends on besides its key, saved in a slot."""

    def __init__(
        self, net: "nn.Module", optimizer: "Optimizer", slot: Slot, *, save_every_s: float, processes: int = 1
    ) -> None:
        from imageclf.training.fit import Position

        self.net, self.optimizer = net, optimizer
        self.epochs: list[Epoch] = []
        self.best: Epoch | None = None
        self.best_weights: dict[str, Tensor] = {}
        """Weights after the best epoch, on the CPU."""
        self.position = Position()
        self._device, self._processes = next(net.parameters()).device, processes
        self._slot, self._save_every_s, self._saved = slot, save_every_s, time.monotonic()

    def save_epoch(self, epoch: "Epoch") -> None:
        """Add an epoch that has just ended, and save the state."""
        from imageclf.training.fit import Position

        self.epochs.append(epoch)
        self.position = Position(epoch.number + 1)
        if self.best is None or epoch.better_than(self.best):
            self.best = epoch
            self.best_weights = {name: tensor.cpu().clone() for name, tensor in self.net.state_dict().items()}
        self._save()

    def ends(self, epoch: "Epoch") -> bool:
        """Return True if the weights are those at the end of this epoch."""
        from imageclf.training.fit import Position

        return self.position == Position(epoch.number + 1)

    def stalled(self, patience: int | None) -> bool:
        """Return True if none of the last `patience` epochs was the best; never without `patience`."""
        return patience is not None and self.best is not None and len(self.epochs) - self.best.number >= patience

    def save_is_due(self) -> bool:
        """Return True if the last save was more than `save_every_s` seconds ago."""
        return time.monotonic() - self._saved > self._save_every_s

    def save_within_epoch(self, position: "Position") -> None:
        """Save the state after a step."""
        from imageclf.training.runtime import random_state

        self.position = dataclasses.replace(position, random=random_state(self._device))
        self._save()

    def restore(self) -> bool:
        """Restore the state of an interrupted training; return False if none was saved on such a device."""
        from imageclf.training.fit import Epoch, Position

        state = self._slot.load()
        if state is None or state["device"] != self._device.type:
            return False
        if state["processes"] != self._processes:
            print(
                f"the training was begun with runtime.processes {state['processes']}, now there are {self._processes}: "
                "the last digits will differ from those of an undisturbed training",
                flush=True,
            )
        self.net.load_state_dict(state["net"])
        initial_lrs = [group["lr"] for group in self.optimizer.param_groups]  # `fit` schedules from these
        self.optimizer.load_state_dict(state["optimizer"])
        for group, lr in zip(self.optimizer.param_groups, initial_lrs, strict=True):
            group["lr"] = lr
        self.epochs = [Epoch(**epoch) for epoch in state["epochs"]]
        self.best = None if state["best"] is None else self.epochs[state["best"] - 1]
        self.best_weights = state["weights"]
        self.position = Position(**state["position"])
        return True

    def _save(self) -> None:
        self._slot.save(
            {
                "device": self._device.type,
                "processes": self._processes,
                "net": self.net.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "epochs": [vars(epoch) for epoch in self.epochs],
                "best": None if self.best is None else self.best.number,
                "weights": self.best_weights,
                "position": vars(self.position),
            }
        )
        self._saved = time.monotonic()


def _folder() -> Path:
    return paths.repository() / FOLDER


def shared_slot(key: str) -> Slot:
    """Return the slot of a training that rank 0 has opened; other ranks only read it."""
    return Slot(_folder() / f"{key}.state")


@contextmanager
def slot(key: str) -> Iterator[Slot]:
    """Open the slot of this key for one process at a time; a second process waits until the first has ended."""
    import filelock

    folder = _folder()
    folder.mkdir(exist_ok=True)
    lock = filelock.FileLock(folder / f"{key}.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        print("the same training is already running in another process; waiting for it to end", flush=True)
        lock.acquire()
    try:
        for temporary in folder.glob(f".{key}.state.*.tmp"):  # left by a process that was killed while it saved
            temporary.unlink()
        yield shared_slot(key)
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _take_out(value: Any, tensors: dict[str, "Tensor"]) -> Any:
    """Return `value` as JSON, and move its tensors to `tensors`. A dict becomes pairs: its keys may be numbers."""
    import torch

    match value:
        case torch.Tensor():
            name = str(len(tensors))
            last = value.ndim == 4 and value.is_contiguous(memory_format=torch.channels_last)
            # Fused optimizers need their state in the same memory layout as the weights.
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
