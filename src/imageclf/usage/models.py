"""Load a trained model by its address: a folder, an MLflow address or the name of a DVC experiment."""

import sys
from contextlib import redirect_stdout
from typing import TYPE_CHECKING

from imageclf.usage.addresses import located

if TYPE_CHECKING:
    from imageclf.inference.predictor import Predictor


def load(address: str | None, device: str = "cpu") -> "Predictor":
    """Load a model onto a device, a value of `runtime.device`. Raises `UserError` if the address names no model."""
    from imageclf.inference.predictor import Predictor
    from imageclf.training import runtime

    with located(address) as folder, redirect_stdout(sys.stderr):
        runtime.set_threads("auto")
        return Predictor.load(folder, runtime.choose_device(device))
