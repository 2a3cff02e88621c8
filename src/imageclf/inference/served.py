"""The model as MLflow loads and serves it, without pickle: `_load_pyfunc` is what MLflow calls."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from imageclf.contracts.raw import Pixels
from imageclf.inference.predictor import Predictor
from imageclf.inference.reading import InputError


class ServedModel:
    """Predicts from image files as base64 text, or from raw pixels.

    `{"inputs": ["<base64>", ...]}` or `{"inputs": [pixels, ...]}`, whole numbers 0..255 of the spec's `raw_shape`, give
    one `{"class", "probability", "probabilities"}` per image. Other input gets MLflow's status 400 and one sentence.
    """

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> list[dict[str, Any]]:  # noqa: ARG002
        """Return one answer per image; MLflow defines the signature."""
        try:
            raw = self._raw_pixels(model_input)
        except InputError as error:
            raise _bad_request(str(error)) from None
        answers = [asdict(prediction) for prediction in self._predictor.predict(raw)]
        return [{"class": answer.pop("name"), **answer} for answer in answers]

    def _raw_pixels(self, model_input: Any) -> Pixels:
        if hasattr(model_input, "to_numpy"):  # a data frame with one column
            model_input = model_input.iloc[:, 0].tolist()
        if isinstance(model_input, np.ndarray) and model_input.dtype.kind in "OU":
            model_input = model_input.tolist()
        if isinstance(model_input, list) and model_input and all(isinstance(each, str) for each in model_input):
            return np.stack([self._read(number, text) for number, text in enumerate(model_input)])
        return self._check_pixels(model_input)

    def _read(self, number: int, text: str) -> Pixels:
        try:
            return self._predictor.read_base64(text)
        except InputError as error:
            raise InputError(f"image {number}: {error}") from None

    def _check_pixels(self, model_input: Any) -> Pixels:
        shape = self._predictor.spec.raw_shape
        expected = f"base64 text of image files, or whole numbers 0..255 of shape (n, {', '.join(map(str, shape))})"
        try:
            array = np.asarray(model_input)
        except ValueError:  # rows of different lengths
            raise InputError(f"the input must be {expected}") from None
        if array.ndim != 4 or array.shape[1:] != shape:
            raise InputError(f"the input must be {expected}; its shape is {array.shape}")
        if not _are_levels(array):
            raise InputError(f"the input must be {expected}; it has other values")
        return array.astype(np.uint8)


def _are_levels(array: NDArray[Any]) -> bool:
    """Return True for whole numbers 0..255; floats whose largest value is 1 are taken for a scale of 0..1."""
    if array.dtype.kind not in "iuf" or not ((array >= 0) & (array <= 255)).all():
        return False
    return array.dtype.kind != "f" or bool((np.floor(array) == array).all() and array.max(initial=0) != 1)


def _bad_request(sentence: str) -> Exception:
    """Return an exception that MLflow's server answers with status 400 and this sentence alone.

    MLflow would put the whole body, with the base64 of every image, before the sentence; hence the fixed message.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

    class BadRequest(MlflowException):
        message = property(lambda _self: sentence, lambda _self, _text: None)  # type: ignore[assignment]

    return BadRequest(sentence, INVALID_PARAMETER_VALUE)


def _load_pyfunc(path: str) -> ServedModel:
    return ServedModel(Predictor.load(Path(path), torch.device("cpu")))
