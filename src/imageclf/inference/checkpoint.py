"""A net that is rebuilt from `data/model`."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from imageclf import models
from imageclf.contracts import model
from imageclf.contracts.model import ModelSpec
from imageclf.training.batches import Normalize


@dataclass(frozen=True)
class Checkpoint:
    """A net in eval mode on the CPU, the normalization of its input, and the spec that both were built from."""

    net: nn.Module
    normalize: Normalize
    spec: ModelSpec


def load(folder: Path) -> Checkpoint:
    """Rebuild the net that train wrote to `folder`. Raises `UserError` if a file is missing or damaged."""
    spec = model.read_spec(folder)
    net = models.build(spec.model, spec.image_shape, len(spec.classes), **spec.arguments)
    net.load_state_dict(model.read_weights(folder, spec))
    return Checkpoint(net.eval(), Normalize(spec.normalization, model.read_whitening(folder, spec)), spec)
