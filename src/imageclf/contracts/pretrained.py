"""The contract between weights and train: what `data/pretrained` holds.

pretrained.json    `Pretrained`
*.safetensors      the weights as they were found, if a training starts from learned weights, or
*.pth              the same in torch's format
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imageclf.contracts.dataset import Normalization, Prepared
from imageclf.core import files
from imageclf.core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = "pretrained.json"


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """Content of `pretrained.json`.

    source: the parameter `pretrained`; None for a training from scratch.
    file, weights_sha256: name and SHA-256 of the file of weights.
    normalization: mean and std per channel that the weights were trained with, for pixels on a scale of 0..1; None if
        the file does not say.
    whitened: True if the weights were trained on whitened images.
    sha256: SHA-256 of the content above. Empty until it is written.
    """

    source: str | None = None
    file: str | None = None
    weights_sha256: str | None = None
    normalization: Normalization | None = None
    whitened: bool = False
    sha256: str = ""

    def normalization_for(self, data: Prepared) -> Normalization:
        """Return mean and std per channel for a training that starts from these weights on `data`.

        They are those of the weights, averaged over the channels for gray images; or those of the data, for weights
        that have none. Whitening belongs to the data: raises `UserError` if only one of the two is whitened.
        """
        if self.normalization is None:
            return data.normalization
        if self.whitened != (data.manifest.normalize == "zca"):
            choice = "zca" if self.whitened else "standard"
            images = "whitened images" if self.whitened else "images that are not whitened"
            raise UserError(f"pretrained: {self.source} was trained on {images}; set normalize to {choice}")
        channels = data.manifest.image_shape[0]
        mean, std = self.normalization
        if len(mean) == channels:
            return mean, std
        return [sum(mean) / len(mean)] * channels, [sum(std) / len(std)] * channels


def write(folder: Path, pretrained: Pretrained, file: str | None = None) -> Pretrained:
    """Write the manifest of the file of weights `file`, which is in `folder`, and delete other files.

    Returns the complete manifest.
    """
    if file is not None:
        pretrained = replace(pretrained, file=file, weights_sha256=files.sha256(folder / file))
    content = asdict(pretrained)
    del content["sha256"]
    pretrained = replace(pretrained, sha256=files.write_manifest(folder / MANIFEST, content))
    files.keep_only(folder, {MANIFEST, file or MANIFEST})
    return pretrained


def read(folder: Path) -> Pretrained:
    """Read `pretrained.json`. Raises `UserError` if it is missing or damaged."""
    return files.read_manifest(folder / MANIFEST, made_by="weights", parse=_parse)


def _parse(content: dict[str, Any]) -> Pretrained:
    if content["normalization"] is not None:
        content["normalization"] = tuple(content["normalization"])
    return Pretrained(**content)


def read_tensors(folder: Path, pretrained: Pretrained) -> "dict[str, Tensor]":
    """Read the weights by name; {} for a training from scratch.

    Nothing in the file is executed. Raises `UserError` if the file is damaged, or holds no dict of tensors.
    """
    if pretrained.file is None or pretrained.weights_sha256 is None:
        return {}
    import torch
    from safetensors.torch import load_file

    path = folder / pretrained.file
    files.verify(path, pretrained.weights_sha256, made_by="weights")
    try:
        is_safe = path.suffix == ".safetensors"
        found = load_file(path) if is_safe else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - torch raises errors of many kinds for a damaged or hostile file
        kind = "safetensors" if path.suffix == ".safetensors" else "a file of torch.save with tensors alone"
        raise UserError(f"pretrained: {pretrained.source} is not {kind} ({type(error).__name__})") from None
    if not isinstance(found, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in found.values()):
        raise UserError(f"pretrained: {pretrained.source} is not a dict of tensors by name; save net.state_dict()")
    return found
