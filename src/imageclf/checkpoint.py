"""A trained net on disk: weights without pickle, and the recipe that rebuilds the net from nothing else."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from imageclf import files, paths
from imageclf.batches import normalize
from imageclf.models import build

WEIGHTS, RECIPE = paths.WEIGHTS.name, paths.RECIPE.name


class Classifier(nn.Module):
    """What is served: raw images, uint8 (N, C, H, W), to class probabilities, float32 (N, K).

    Raw means as `preprocess` decoded and sized them, before permutation and normalization: those are inside.
    """

    mean: Tensor
    std: Tensor
    permutation: Tensor | None

    def __init__(
        self, net: nn.Module, normalization: tuple[list[float], list[float]], permutation: NDArray[np.int64] | None
    ) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor(normalization[0]))
        self.register_buffer("std", torch.tensor(normalization[1]))
        self.register_buffer("permutation", None if permutation is None else torch.as_tensor(permutation))

    def forward(self, images: Tensor) -> Tensor:
        """Probabilities of each class."""
        if self.permutation is not None:
            images = images.flatten(2)[:, :, self.permutation].reshape(images.shape)
        return self.net(normalize(images, self.mean, self.std)).float().softmax(dim=1)


def save(folder: Path, weights: dict[str, Tensor], recipe: dict[str, Any]) -> str:
    """Write weights and recipe; returns the SHA-256 of the weights file, the model's name everywhere.

    recipe: `model`, `arguments`, `image_shape`, `classes`, `normalization` [means, stds], `permutation` or None;
    further keys are kept as they are.
    """
    with files.replacing(folder / WEIGHTS) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, temporary)
        digest = files.sha256(temporary)
    files.write_manifest(folder / RECIPE, {**recipe, "weights_sha256": digest})
    files.keep_only(folder, {WEIGHTS, RECIPE})
    return digest


def load(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The net in eval mode on the CPU, and its recipe; raises `UserError` where a file is missing or damaged."""
    recipe = files.read_manifest(folder / RECIPE, made_by="train")
    files.verify(folder / WEIGHTS, recipe["weights_sha256"], made_by="train")
    net = build(recipe["model"], tuple(recipe["image_shape"]), len(recipe["classes"]), **recipe["arguments"])
    net.load_state_dict(load_file(folder / WEIGHTS))
    return net.eval(), recipe


def classifier(net: nn.Module, recipe: dict[str, Any]) -> Classifier:
    """The servable form of what `load` gave."""
    permutation = recipe["permutation"]
    return Classifier(net, recipe["normalization"], None if permutation is None else np.asarray(permutation))
