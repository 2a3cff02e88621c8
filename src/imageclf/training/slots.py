"""The file that holds the saved state of a training.

A state is one file outside DVC's outputs, `<repository>/.resume/<key>.state`: the SHA-256 of the rest as 64 hexadecimal
digits, a line feed, then safetensors. Values that are not tensors are JSON in one of the tensors; there is no pickle.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imageclf.core import files, paths

if TYPE_CHECKING:
    from torch import Tensor

FOLDER = ".resume"
JSON_TENSOR = "json"
"""Name of the tensor of bytes that holds, as JSON, everything that is not a tensor."""


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
