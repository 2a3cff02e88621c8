"""The state from which an interrupted training resumes, to the same bits.

Its key is a digest of everything that the result of the training depends on, so that a state is never used with other
code, data or parameters. `slots` has the format of the file.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imageclf.core import files
from imageclf.training.slots import Slot

if TYPE_CHECKING:
    from torch import Tensor, nn

    from imageclf.training.fit import Epoch, Position
    from imageclf.training.optim import Optimizer

CHECKOUT = Path(__file__).resolve().parents[3]
"""Root of the project that this code is part of; in a queued experiment, of DVC's copy."""


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
