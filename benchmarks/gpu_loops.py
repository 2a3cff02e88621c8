"""The training loops that ours is measured against: a tutorial's, and a well-written one.

Each is a generator of epochs, like ours, and leaves the device idle after each.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from benchmarks.gpu_training import Task, mixed, new_augmentation, new_optimizer, synchronize
from imageclf.batches import Normalize
from imageclf.cores import allowed_cores
from imageclf.losses import LOSSES, smooth
from imageclf.splits import Split

TUTORIAL_WORKERS = 2
PLAIN_WORKERS = min(4, allowed_cores())
"""Processes that load: 2 is the usual tutorial's."""


class _PerImage(Dataset[tuple[Tensor, int]]):
    """One image at a time, as torchvision's ToTensor, RandomCrop, RandomHorizontalFlip and Normalize make it."""

    def __init__(self, task: Task) -> None:
        self._split, self._shift, self._flip = task.images, task.recipe["shift"], task.recipe["flip"]
        self._mean, self._std = (torch.tensor(values)[:, None, None] for values in task.data.normalization)

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        image = torch.from_numpy(self._split.images[row]).float() / 255
        if self._shift:
            height, width = image.shape[1:]
            top, left = torch.randint(2 * self._shift + 1, (2,)).tolist()
            padded = functional.pad(image, [self._shift] * 4, mode="reflect")
            image = padded[:, top : top + height, left : left + width]
        if self._flip and torch.rand(()) < 0.5:
            image = image.flip(2)
        return (image - self._mean) / self._std, int(self._split.targets[row])


class _PerBatch(Dataset[Any]):
    """Pixels as they are, a whole batch in one gather: the loader calls `__getitems__` where there is one."""

    def __init__(self, split: Split) -> None:
        self._images, self._targets = torch.from_numpy(split.images), torch.from_numpy(split.targets)

    def __len__(self) -> int:
        return len(self._targets)

    def __getitems__(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        chosen = torch.tensor(rows)
        return self._images[chosen], self._targets[chosen]


def _as_is(batch: Any) -> Any:
    return batch


def tutorial(net: nn.Module, task: Task) -> Iterator[None]:
    """Per-image transforms in a DataLoader, zero_grad, backward, step, and `loss.item()` after every step."""
    recipe, device = task.recipe, task.device
    mixed(task.precision, device)
    loss, optimizer = LOSSES[recipe["loss"]], new_optimizer(recipe, net)
    loader = DataLoader(_PerImage(task), recipe["batch_size"], shuffle=True, num_workers=TUTORIAL_WORKERS)
    net.train()
    while True:
        total = 0.0
        for images, targets in loader:
            on_device, labels = images.to(device), targets.to(device)
            optimizer.zero_grad()
            logits = net(on_device)
            batch_loss = loss(logits, smooth(labels, logits, recipe["label_smoothing"]))
            batch_loss.backward()
            optimizer.step()
            total += batch_loss.item()
        yield


def plain(net: nn.Module, task: Task) -> Iterator[None]:
    """A pinned loader of whole batches with lasting workers, asynchronous copies, and pixels augmented on the device.

    Augmentation and normalization are ours: the loops differ in how batches reach the device, and in what a step does.
    """
    recipe, device = task.recipe, task.device
    autocast, loss, optimizer = mixed(task.precision, device), LOSSES[recipe["loss"]], new_optimizer(recipe, net)
    normalize, augmentation = Normalize(task.data.normalization).to(device), new_augmentation(task)
    loader = DataLoader(
        _PerBatch(task.images),
        recipe["batch_size"],
        shuffle=True,
        num_workers=PLAIN_WORKERS,
        persistent_workers=True,
        pin_memory=device.type == "cuda",
        collate_fn=_as_is,
    )
    net.train()
    while True:
        total = torch.zeros((), device=device)
        for batch in loader:
            images, targets = (part.to(device, non_blocking=True) for part in batch)
            if augmentation:
                draws = augmentation.draw(len(images), tuple(images.shape[2:]), torch.default_generator)
                images = augmentation.apply(images, draws.to(device, non_blocking=True))
            optimizer.zero_grad()
            with autocast:
                logits = net(normalize(images))
                batch_loss = loss(logits, smooth(targets, logits, recipe["label_smoothing"]))
            batch_loss.backward()
            optimizer.step()
            total += batch_loss.detach()
        synchronize(device)
        yield
