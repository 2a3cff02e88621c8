"""The one path from an image to class names and probabilities, for evaluation, prediction and the served model.

file, base64 text or raw pixels -> uint8 of `raw_shape` (Pillow) -> preparation (numpy) -> normalization, net, softmax
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from imageclf.contracts.raw import Pixels
from imageclf.inference import checkpoint, reading
from imageclf.inference.checkpoint import Checkpoint
from imageclf.inference.reading import InputError
from imageclf.preprocess import transform


@dataclass(frozen=True)
class Prediction:
    """The most probable class of an image, its probability, and the probability of each class by its name."""

    name: str
    probability: float
    probabilities: dict[str, float]


class Predictor:
    """A net with everything that is done to its input, on one device."""

    def __init__(self, loaded: Checkpoint, device: torch.device) -> None:
        self.spec = loaded.spec
        self._classifier = loaded.classifier().to(device)
        self._device = device
        self._permutation = None if self.spec.permutation is None else np.array(self.spec.permutation)

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> "Predictor":
        """Load what train wrote to `folder`. Raises `UserError` if a file is missing or damaged."""
        return cls(checkpoint.load(folder), device)

    def read(self, data: bytes) -> Pixels:
        """Decode an image file as preprocess does, to raw pixels (channels, height, width) of the spec's `raw_shape`.

        Raises `InputError`.
        """
        return reading.read(data, self.spec.raw_shape, self.spec.gray16_bits)

    def read_base64(self, text: str) -> Pixels:
        """Decode an image file given as base64 text or as a `data:` address. Raises `InputError`."""
        if text.startswith("data:"):
            text = text.partition(",")[2]
        try:
            data = base64.b64decode(text, validate=True)
        except ValueError as error:  # also raised for characters that are not ASCII
            raise InputError(f"not base64: {error}") from None
        return self.read(data)

    def probabilities(self, raw: Pixels) -> NDArray[np.float32]:
        """Return the probability of each class, (n, K), for raw pixels (n, channels, height, width)."""
        return self.probabilities_of_prepared(torch.from_numpy(np.ascontiguousarray(self.prepared(raw))))

    def prepared(self, raw: Pixels) -> Pixels:
        """Return raw pixels (n, channels, height, width) as the net sees them, before the normalization."""
        return transform.apply(self.spec.preparation, self._permutation, raw)

    def probabilities_of_prepared(self, prepared: torch.Tensor) -> NDArray[np.float32]:
        """Return the probability of each class, (n, K), for prepared pixels uint8 (n, C, H, W)."""
        with torch.inference_mode():
            return self._classifier(prepared.to(self._device)).cpu().numpy()

    def predict(self, raw: Pixels) -> list[Prediction]:
        """Return a prediction per image, for raw pixels (n, channels, height, width)."""
        return [self._prediction(row) for row in self.probabilities(raw)]

    def _prediction(self, row: Sequence[float] | NDArray[np.float32]) -> Prediction:
        best = int(np.argmax(row))
        named = {name: float(probability) for name, probability in zip(self.spec.classes, row, strict=True)}
        return Prediction(self.spec.classes[best], float(row[best]), named)
