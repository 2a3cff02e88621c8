"""A trained net on disk: weights without pickle, and the recipe that rebuilds the net from nothing else."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from imageclf import files, paths
from imageclf.batches import Normalize, Whitening
from imageclf.errors import UserError
from imageclf.models import build

WEIGHTS, RECIPE = paths.WEIGHTS.name, paths.RECIPE.name
WHITENING = "whitening.safetensors"


class Prepare(nn.Module):
    """What `preprocess` does to the pixels, uint8 (N, C, H, W) to uint8, as a part of the served net.

    The resize is torch's, within one grey level of Pillow's; the rest is exact.
    """

    permutation: Tensor | None

    def __init__(
        self, *, grayscale: bool, image_size: int | None, pad: int, permutation: NDArray[np.int64] | None
    ) -> None:
        super().__init__()
        self._grayscale, self._image_size, self._pad = grayscale, image_size, pad
        self.register_buffer("permutation", None if permutation is None else torch.from_numpy(permutation))

    def forward(self, images: Tensor) -> Tensor:
        """The pixels as they are stored for training."""
        if self._grayscale and images.shape[1] == 3:
            red, green, blue = images.int().unbind(1)
            images = ((299 * red + 587 * green + 114 * blue + 500) // 1000).to(torch.uint8)[:, None]
        if self._image_size is not None and images.shape[2:] != (self._image_size, self._image_size):
            size = (self._image_size, self._image_size)
            resized = functional.interpolate(images.float(), size, mode="bilinear", antialias=True)
            images = resized.round().clamp(0, 255).to(torch.uint8)
        images = functional.pad(images, [self._pad] * 4)
        if self.permutation is not None:
            images = images.flatten(2)[:, :, self.permutation].reshape(images.shape)
        return images


class Classifier(nn.Module):
    """What is served: raw images as `preprocess` reads them, uint8 (N, C, H, W), to class probabilities (N, K)."""

    def __init__(self, prepare: Prepare, normalize: Normalize, net: nn.Module) -> None:
        super().__init__()
        self.prepare, self.normalize, self.net = prepare, normalize, net

    def forward(self, images: Tensor) -> Tensor:
        """Probabilities of each class, float32."""
        return self.net(self.normalize(self.prepare(images))).float().softmax(dim=1)


@dataclass(frozen=True)
class Checkpoint:
    """A net in eval mode on the CPU, how its input is normalized, and the recipe that both were built from."""

    net: nn.Module
    normalize: Normalize
    recipe: dict[str, Any]

    def classifier(self) -> Classifier:
        """The servable form."""
        knobs = self.recipe["preparation"]
        permutation = self.recipe["permutation"]
        prepare = Prepare(**knobs, permutation=None if permutation is None else np.array(permutation))
        return Classifier(prepare, self.normalize, self.net).eval()


def save(folder: Path, weights: dict[str, Tensor], whitening: Whitening | None, recipe: dict[str, Any]) -> str:
    """Write weights and recipe; returns the SHA-256 of the weights file, the model's name everywhere.

    recipe: `model`, `arguments`, `raw_shape`, `image_shape`, `classes`, `normalization` [means, stds],
    `permutation` or None, `preparation` (the knobs of `Prepare`); further keys are kept as they are.
    """
    names = {WEIGHTS, RECIPE}
    digest = _write_tensors(folder / WEIGHTS, weights)
    signed = {**recipe, "weights_sha256": digest, "whitening_sha256": None}
    if whitening is not None:
        mean, matrix = (torch.from_numpy(array) for array in whitening)
        signed["whitening_sha256"] = _write_tensors(folder / WHITENING, {"mean": mean, "matrix": matrix})
        names.add(WHITENING)
    files.write_manifest(folder / RECIPE, signed)
    files.keep_only(folder, names)
    return digest


def build_net(recipe: dict[str, Any]) -> nn.Module:
    """The net of a recipe, freshly initialized."""
    return build(recipe["model"], tuple(recipe["image_shape"]), len(recipe["classes"]), **recipe["arguments"])


def load(folder: Path) -> Checkpoint:
    """Rebuild what was saved; raises `UserError` where a file is missing or damaged."""
    recipe = files.read_manifest(folder / RECIPE, made_by="train")
    net = build_net(recipe)
    net.load_state_dict(_read_tensors(folder / WEIGHTS, recipe["weights_sha256"]))
    whitening = None
    if recipe["whitening_sha256"] is not None:
        tensors = _read_tensors(folder / WHITENING, recipe["whitening_sha256"])
        whitening = (tensors["mean"].numpy(), tensors["matrix"].numpy())
    return Checkpoint(net.eval(), Normalize(recipe["normalization"], whitening), recipe)


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> str:
    with files.replacing(path) as temporary:
        try:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
        except SafetensorError as error:  # of a full disk, too: it gives no OSError
            raise UserError(f"{path} cannot be written: {error}") from None
        return files.sha256(temporary)


def _read_tensors(path: Path, digest: str) -> dict[str, Tensor]:
    files.verify(path, digest, made_by="train")
    return load_file(path)
