"""The usual tutorial: torchvision's data set, a transform, a DataLoader, torch.nn, torch.optim and a plain loop."""

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from benchmarks import nets
from imageclf import paths
from imageclf.params import Params
from imageclf.splits import Prepared

OPTIMIZERS: dict[str, Callable[[nn.Module, Params], torch.optim.Optimizer]] = {
    "adam": lambda net, knobs: torch.optim.Adam(net.parameters(), lr=knobs.lr),
    "sgd": lambda net, knobs: torch.optim.SGD(
        net.parameters(), lr=knobs.lr, momentum=knobs.momentum, nesterov=knobs.nesterov
    ),
    "rmsprop_keras": lambda net, knobs: torch.optim.RMSprop(net.parameters(), lr=knobs.lr, alpha=0.9, eps=1e-7),
}
LOSSES: dict[str, Callable[[], nn.Module]] = {"cross_entropy": nn.CrossEntropyLoss, "nll": nn.NLLLoss}


class ColourImages(Dataset[tuple[Any, int]]):
    """What torchvision's CIFAR10 is: decoded pixels in memory, a Pillow image made and transformed for each item."""

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64], transform: Callable[[Any], Any]) -> None:
        self._pixels = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
        self._labels, self._transform = labels.tolist(), transform

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self._transform(Image.fromarray(self._pixels[index])), self._labels[index]


def loader(knobs: Params, data: Prepared, workers: int) -> DataLoader[Any]:
    """Shuffled batches of the train split."""
    from torchvision import datasets, transforms

    mean, std = data.normalization
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])
    train = data["train"]
    if knobs.dataset == "mnist":
        images = datasets.MNIST(str(unpack(paths.RAW)), train=True, transform=transform)
        # Without those that ours keeps for validation: all train on the same images.
        images.data, images.targets = torch.from_numpy(train.images[:, 0]), torch.from_numpy(train.labels)
    else:
        images = ColourImages(train.images, train.labels, transform)
    return DataLoader(images, batch_size=knobs.batch_size, shuffle=True, num_workers=workers)


def unpack(raw: Path) -> Path:
    """Put the official archives, decompressed, where torchvision's MNIST looks for them; returns its root."""
    root = raw.parent / "torchvision"
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    for archive in raw.glob("*.gz"):
        with gzip.open(archive) as source, (folder / archive.stem).open("wb") as target:
            shutil.copyfileobj(source, target)
    return root


def net(knobs: Params, data: Prepared) -> nn.Sequential:
    """The recipe's net in plain torch layers; log-softmax at its end where the loss wants it."""
    made = nets.torch_net(nets.layers(knobs, len(data.classes)), data.image_shape)
    return made.append(nn.LogSoftmax(dim=1)) if knobs.loss == "nll" else made


def accuracy(trained: nn.Module, data: Prepared) -> float:
    """Share of the test split that the net recognizes."""
    test = data["test"]
    trained.eval()
    with torch.inference_mode():
        parts = torch.from_numpy(normalized(data, "test")).split(1000)
        guesses = torch.cat([trained(part).argmax(dim=1) for part in parts])
    return float((guesses.numpy() == test.labels).mean())


def normalized(data: Prepared, split: str) -> NDArray[np.float32]:
    """A split's images as the net sees them, (N, C, H, W)."""
    mean, std = (np.array(values, np.float32)[:, None, None] for values in data.normalization)
    images = data[split].images.astype(np.float32)
    images /= 255
    images -= mean
    images /= std
    return images
