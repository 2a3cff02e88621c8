"""A net that is rebuilt from `data/model`."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from imageclf import models
from imageclf.contracts import model
from imageclf.contracts.model import ModelSpec
from imageclf.training.loading.batches import Normalize


class Classifier(nn.Module):
    """Normalization, net and softmax: prepared pixels uint8 (n, C, H, W) to the probability of each class (n, K)."""

    def __init__(self, normalize: Normalize, net: nn.Module) -> None:
        super().__init__()
        self.normalize, self.net = normalize, net

    def forward(self, prepared: Tensor) -> Tensor:
        """Return the probabilities, float32."""
        return self.net(self.normalize(prepared)).float().softmax(dim=1)


@dataclass(frozen=True)
class Checkpoint:
    """A net in eval mode on the CPU, the normalization of its input, and the spec that both were built from."""

    net: nn.Module
    normalize: Normalize
    spec: ModelSpec

    def classifier(self) -> Classifier:
        """Return the net with all that is done to its input after the preparation."""
        return Classifier(self.normalize, self.net).eval()


def load(folder: Path) -> Checkpoint:
    """Rebuild the net that train wrote to `folder`. Raises `UserError` if a file is missing or damaged."""
    spec = model.read_spec(folder)
    net = models.build(spec.model, spec.image_shape, len(spec.classes), **spec.arguments)
    net.load_state_dict(model.read_weights(folder, spec))
    return Checkpoint(net.eval(), Normalize(spec.normalization, model.read_whitening(folder, spec)), spec)
