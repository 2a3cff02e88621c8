"""The contract between train and its readers: what `data/model` holds.

    model.safetensors        the weights, without pickle
    whitening.safetensors    mean (d,) and matrix (d, d), if the input is whitened
    model.json               `ModelSpec`, which rebuilds the net and its input processing from nothing else

`inference.checkpoint` builds a net from them.
"""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from imageclf.contracts.dataset import Normalization, Prepared
from imageclf.contracts.preparation import Preparation, Shape
from imageclf.core import files, paths
from imageclf.core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS, SPEC = paths.WEIGHTS.name, paths.MODEL_SPEC.name
WHITENING = "whitening.safetensors"


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Content of `model.json`.

    model, arguments: the net's name in `MODELS`, and the arguments that it was built with.
    raw_shape, image_shape: shape of an image before and after the preparation.
    classes: the name of each output of the net.
    preparation, permutation: the steps from raw to stored pixels; the order of the pixels, or None.
    gray16_bits: number of bits of a 16-bit gray image file that are used.
    normalization: mean and std per channel, for pixels on a scale of 0..1.
    loss: the name of the loss in `LOSSES`.
    parameters: all parameters of the training, for people who read the file; empty in older files.
    epoch: the epoch, from 1, that the weights are from.
    data_sha256, weights_sha256, whitening_sha256: of the training data and of the two weights files.
    pretrained_sha256: of the file of learned weights that the training started from; None for a start from scratch.
    """

    model: str
    arguments: dict[str, Any]
    raw_shape: Shape
    image_shape: Shape
    classes: list[str]
    preparation: Preparation
    permutation: list[int] | None
    normalization: Normalization
    loss: str
    data_sha256: str
    parameters: dict[str, Any] = field(default_factory=dict)
    gray16_bits: int = 16
    epoch: int = 0
    weights_sha256: str = ""
    whitening_sha256: str | None = None
    pretrained_sha256: str | None = None
    sha256: str = ""


def describe(
    data: Prepared, *, model: str, arguments: dict[str, Any], loss: str, parameters: dict[str, Any]
) -> ModelSpec:
    """Return the spec of a net for this data; `write` adds what is known after the training."""
    return ModelSpec(
        model=model,
        arguments=arguments,
        raw_shape=data.manifest.raw_shape,
        image_shape=data.manifest.image_shape,
        classes=data.manifest.classes,
        preparation=data.manifest.preparation,
        permutation=None if data.permutation is None else data.permutation.tolist(),
        normalization=data.normalization,
        loss=loss,
        data_sha256=data.manifest.sha256,
        parameters=parameters,
        gray16_bits=data.manifest.gray16_bits or 16,
    )


def write(
    folder: Path,
    spec: ModelSpec,
    weights: "dict[str, Tensor]",
    whitening: tuple[NDArray[np.float32], NDArray[np.float32]] | None,
) -> ModelSpec:
    """Write weights, whitening and spec; return the spec with their SHA-256. Raises `UserError` on a full disk."""
    import torch

    names = {WEIGHTS, SPEC}
    spec = replace(spec, weights_sha256=_write_tensors(folder / WEIGHTS, weights))
    if whitening is not None:
        mean, matrix = (torch.from_numpy(array) for array in whitening)
        spec = replace(spec, whitening_sha256=_write_tensors(folder / WHITENING, {"mean": mean, "matrix": matrix}))
        names.add(WHITENING)
    content = asdict(spec)
    del content["sha256"]
    spec = replace(spec, sha256=files.write_manifest(folder / SPEC, content))
    files.keep_only(folder, names)
    return spec


def read_spec(folder: Path) -> ModelSpec:
    """Read `model.json`. Raises `UserError` if it is missing or damaged."""
    return files.read_manifest(folder / SPEC, made_by="train", parse=_parse)


def _parse(content: dict[str, Any]) -> ModelSpec:
    content |= {key: tuple(content[key]) for key in ("raw_shape", "image_shape", "normalization")}
    return ModelSpec(**{**content, "preparation": Preparation(**content["preparation"])})


def read_weights(folder: Path, spec: ModelSpec) -> "dict[str, Tensor]":
    """Read the weights by name. Raises `UserError` if the file is not the one that the spec names."""
    return _read_tensors(folder / WEIGHTS, spec.weights_sha256)


def read_whitening(folder: Path, spec: ModelSpec) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """Read mean (d,) and matrix (d, d); None if the input is not whitened."""
    if spec.whitening_sha256 is None:
        return None
    tensors = _read_tensors(folder / WHITENING, spec.whitening_sha256)
    return tensors["mean"].numpy(), tensors["matrix"].numpy()


def _write_tensors(path: Path, tensors: "dict[str, Tensor]") -> str:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with files.replacing(path) as temporary:
        try:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
        except SafetensorError as error:  # also raised, in place of an OSError, when the disk is full
            raise UserError(f"{path} cannot be written: {error}") from None
        return files.sha256(temporary)


def _read_tensors(path: Path, digest: str) -> "dict[str, Tensor]":
    from safetensors.torch import load_file

    files.verify(path, digest, made_by="train")
    return load_file(path)
