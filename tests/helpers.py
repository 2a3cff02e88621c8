"""Functions and values that several test files share."""

import io
import tarfile
from typing import Any

import numpy as np
import torch
from torch import nn

from imageclf.batches import Batches, Normalize
from imageclf.raw import Images, Pixels
from imageclf.splits import Split

Shape = tuple[int, int, int]
"""Channels, height and width of an image."""

COLOR: Shape = (3, 32, 32)

PREPARATION: dict[str, Any] = {
    "dataset": "made",
    "classes": None,
    "val_fraction": 0.0,
    "split_seed": 0,
    "grayscale": False,
    "image_size": None,
    "pad": 0,
    "normalize": "standard",
    "permute_seed": None,
    "one_hot": False,
}
"""Keyword arguments of `prepare` that leave the pixels unchanged."""


def num_parameters(net: nn.Module) -> int:
    return sum(weights.numel() for weights in net.parameters())


def layers_of(net: nn.Module, kind: type[Any]) -> list[Any]:
    """Return the layers of a class, in the order in which they were created."""
    return [layer for layer in net.modules() if isinstance(layer, kind)]


def batches_of(split: Split, batch_size: int) -> Batches:
    """Return batches on the CPU, with mean 0.5 and standard deviation 0.25."""
    return Batches(split, Normalize(([0.5], [0.25])), batch_size, torch.device("cpu"))


def decoded(images: Images) -> Pixels:
    """Return all chunks as one array."""
    return np.concatenate(list(images.chunks()))


def tar_bytes(members: dict[str, bytes], mode: str = "w") -> bytes:
    """Return a tar with these files."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as tar:  # type: ignore[call-overload]
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()
