"""Two training loops to compare with: a tutorial's, and an optimized one.

Each is a generator that trains one epoch per `next` and leaves the device idle after it, as `gpu_training.train` does.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from benchmarks.gpu_training import Job, new_augmentation, new_optimizer, set_precision, synchronize
from imageclf.contracts.dataset import Split
from imageclf.core.cores import allowed_cores
from imageclf.training.loading.batches import Normalize
from imageclf.training.losses import LOSSES, smooth

TUTORIAL_WORKERS = 2
OPTIMIZED_WORKERS = min(4, allowed_cores())
"""Loader processes: tutorials usually have 2."""


class _PerImage(Dataset[tuple[Tensor, int]]):
    """One image per item, made as torchvision's ToTensor, RandomCrop, RandomHorizontalFlip and Normalize do."""

    def __init__(self, job: Job) -> None:
        self._split, self._shift, self._flip = job.images, job.parameters["shift"], job.parameters["flip"]
        self._mean, self._std = (torch.tensor(values)[:, None, None] for values in job.data.normalization)

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
    """Unchanged pixels, a whole batch per call: the loader prefers `__getitems__` if a data set has it."""

    def __init__(self, split: Split) -> None:
        self._images, self._targets = torch.from_numpy(split.images), torch.from_numpy(split.targets)

    def __len__(self) -> int:
        return len(self._targets)

    def __getitems__(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        chosen = torch.tensor(rows)
        return self._images[chosen], self._targets[chosen]


def _unchanged(batch: Any) -> Any:
    return batch


def tutorial(net: nn.Module, job: Job) -> Iterator[None]:
    """Train with per-image transforms in a DataLoader, and read `loss.item()` after every step."""
    parameters, device = job.parameters, job.device
    set_precision(job.precision, device)
    loss, optimizer = LOSSES[parameters["loss"]], new_optimizer(parameters, net)
    loader = DataLoader(_PerImage(job), parameters["batch_size"], shuffle=True, num_workers=TUTORIAL_WORKERS)
    net.train()
    while True:
        total = 0.0
        for images, targets in loader:
            on_device, labels = images.to(device), targets.to(device)
            optimizer.zero_grad()
            logits = net(on_device)
            batch_loss = loss(logits, smooth(labels, logits, parameters["label_smoothing"]))
            batch_loss.backward()
            optimizer.step()
            total += batch_loss.item()
        yield


def optimized(net: nn.Module, job: Job) -> Iterator[None]:
    """Train with persistent workers, whole batches in pinned memory, asynchronous copies, augmentation on the device.

    Augmentation and normalization are imageclf's: only the way of the batches to the device and the step differ.
    """
    parameters, device = job.parameters, job.device
    autocast, loss, optimizer = (
        set_precision(job.precision, device),
        LOSSES[parameters["loss"]],
        new_optimizer(parameters, net),
    )
    normalize, augmentation = Normalize(job.data.normalization).to(device), new_augmentation(job)
    loader = DataLoader(
        _PerBatch(job.images),
        parameters["batch_size"],
        shuffle=True,
        num_workers=OPTIMIZED_WORKERS,
        persistent_workers=True,
        pin_memory=device.type == "cuda",
        collate_fn=_unchanged,
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
                batch_loss = loss(logits, smooth(targets, logits, parameters["label_smoothing"]))
            batch_loss.backward()
            optimizer.step()
            total += batch_loss.detach()
        synchronize(device)
        yield
