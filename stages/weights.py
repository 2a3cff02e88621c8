"""Write the weights that a training starts from to data/pretrained: `python -m stages.weights`."""

from imageclf import params
from imageclf.contracts import pretrained
from imageclf.contracts.pretrained import Pretrained
from imageclf.core import paths, process
from imageclf.core.errors import UserError
from imageclf.download import weights
from imageclf.usage import addresses


def main() -> None:
    """Write data/pretrained."""
    settings = params.load()
    found = write(settings.of(params.WeightsParams), settings.runtime)
    if found.weights_sha256 is not None:
        print(f"weights of {found.source}, SHA-256 {found.weights_sha256[:8]}")


def write(options: params.WeightsParams, machine: params.RuntimeParams) -> Pretrained:
    """Find the weights that `pretrained` names, and write them. Raises `UserError` if they do not exist."""
    source = options.pretrained
    if source is None:
        return pretrained.write(paths.PRETRAINED, Pretrained())
    if source == weights.IMAGENET:
        return weights.write_published(options.model, paths.PRETRAINED, machine.mirror, machine.progress)
    path = weights.locate(source)
    if path is not None and path.is_file():
        return weights.write_file(source, path, paths.PRETRAINED)
    try:
        with addresses.located(source if path is None else str(path)) as checkpoint:
            return weights.write_model(source, checkpoint, paths.PRETRAINED)
    except UserError as error:
        raise UserError(f"pretrained: {error}") from None


if __name__ == "__main__":
    process.run(main)
