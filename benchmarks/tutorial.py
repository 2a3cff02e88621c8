"""Parts of a usual tutorial: torchvision's data set, a transform, a DataLoader, torch.nn and torch.optim."""

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
from imageclf.contracts.dataset import Prepared
from imageclf.core import paths
from imageclf.params import Params

OPTIMIZERS: dict[str, Callable[[nn.Module, Params], torch.optim.Optimizer]] = {
    "adam": lambda net, parameters: torch.optim.Adam(net.parameters(), lr=parameters.lr),
    "sgd": lambda net, parameters: torch.optim.SGD(
        net.parameters(), lr=parameters.lr, momentum=parameters.momentum, nesterov=parameters.nesterov
    ),
    "rmsprop_keras": lambda net, parameters: torch.optim.RMSprop(
        net.parameters(), lr=parameters.lr, alpha=0.9, eps=1e-7
    ),
}
LOSSES: dict[str, Callable[[], nn.Module]] = {"cross_entropy": nn.CrossEntropyLoss, "nll": nn.NLLLoss}


class ColorImages(Dataset[tuple[Any, int]]):
    """Color images like torchvision's CIFAR10: pixels in memory, a Pillow image made and transformed for each item."""

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64], transform: Callable[[Any], Any]) -> None:
        self._pixels = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
        self._labels, self._transform = labels.tolist(), transform

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self._transform(Image.fromarray(self._pixels[index])), self._labels[index]


def loader(parameters: Params, data: Prepared, workers: int) -> DataLoader[Any]:
    """Return a loader of shuffled batches of the train split."""
    from torchvision import datasets, transforms

    mean, std = data.normalization
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])
    train = data["train"]
    if parameters.dataset == "mnist":
        images = datasets.MNIST(str(unpack(paths.RAW)), train=True, transform=transform)
        # Without the images that imageclf keeps for validation, so that all train on the same ones.
        images.data, images.targets = torch.from_numpy(train.images[:, 0]), torch.from_numpy(train.labels)
    else:
        images = ColorImages(train.images, train.labels, transform)
    return DataLoader(images, batch_size=parameters.batch_size, shuffle=True, num_workers=workers)


def unpack(raw: Path) -> Path:
    """Decompress the official archives for torchvision's MNIST; return the root folder to give it."""
    root = raw.parent / "torchvision"
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    for archive in raw.glob("*.gz"):
        with gzip.open(archive) as source, (folder / archive.stem).open("wb") as target:
            shutil.copyfileobj(source, target)
    return root


def net(parameters: Params, data: Prepared) -> nn.Sequential:
    """Return the recipe's net in plain torch layers, with log-softmax at its end if the loss needs it."""
    made = nets.torch_net(nets.layers(parameters, len(data.manifest.classes)), data.manifest.image_shape)
    return made.append(nn.LogSoftmax(dim=1)) if parameters.loss == "nll" else made


def accuracy(trained: nn.Module, data: Prepared) -> float:
    """Return the accuracy on the test split, from 0 to 1."""
    test = data["test"]
    trained.eval()
    with torch.inference_mode():
        parts = torch.from_numpy(normalized(data, "test")).split(1000)
        guesses = torch.cat([trained(part).argmax(dim=1) for part in parts])
    return float((guesses.numpy() == test.labels).mean())


def normalized(data: Prepared, split: str) -> NDArray[np.float32]:
    """Return the normalized images of a split, float32 (N, C, H, W)."""
    mean, std = (np.array(values, np.float32)[:, None, None] for values in data.normalization)
    images = data[split].images.astype(np.float32)
    images /= 255
    images -= mean
    images /= std
    return images
