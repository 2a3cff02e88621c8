"""Write a trained model as a program for other runtimes: the command `imageclf export`.

    uv run --group onnx imageclf export --format onnx
    uv run imageclf export --format pt2 --output digits.pt2

The program takes prepared pixels, uint8 (n, C, H, W), and returns the probability of each class, float32 (n, K). It
includes the normalization, or the whitening, and the softmax; not the steps of the preparation. The model spec, with
the class names, the preparation and the permutation, is stored in the file as `model.json`. The answers of the written
file are compared with those of `predict`; if they differ, the command fails and no file is left.
"""

import argparse
import json
import logging
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from imageclf.contracts.model import SPEC, ModelSpec
from imageclf.contracts.raw import Pixels
from imageclf.core import files
from imageclf.core.errors import UserError
from imageclf.usage import addresses

if TYPE_CHECKING:
    from imageclf.inference.checkpoint import Classifier

SAMPLES = 256
"""Number of images of the check."""
INPUT, OUTPUT = "images", "probabilities"

Run = Callable[[Pixels], NDArray[np.float32]]
"""A program: prepared pixels to probabilities."""


@dataclass(frozen=True)
class Format:
    """A format: how a model is written, how it is run, and the largest difference of probabilities to accept."""

    write: Callable[["Classifier", ModelSpec, Path], None]
    open: Callable[[Path], Run]
    tolerance: float


@dataclass(frozen=True)
class Parity:
    """Comparison of probabilities: the greatest difference, the images whose class is equal, and how many classes."""

    images: int
    greatest: float
    equal: int
    classes: int

    def holds(self, tolerance: float) -> bool:
        """Return True if all classes are equal and no probability differs by more than `tolerance`."""
        return self.equal == self.images and self.greatest <= tolerance

    def sentence(self) -> str:
        """Return the comparison in words."""
        return (
            f"greatest difference of a probability {self.greatest:.1e}, classes equal for {self.equal:,} of "
            f"{self.images:,} images ({self.classes} different classes)"
        )


def compare(found: NDArray[np.float32], expected: NDArray[np.float32]) -> Parity:
    """Compare two tables of probabilities, (n, K) each."""
    classes = expected.argmax(axis=1)
    equal = int((found.argmax(axis=1) == classes).sum())
    return Parity(len(expected), float(np.abs(found - expected).max()), equal, len(np.unique(classes)))


def sample_images(spec: ModelSpec) -> Pixels:
    """Return `SAMPLES` made images of the spec's `image_shape`: noise of many contrasts over bright and dark blocks."""
    random = np.random.default_rng(0)
    channels, height, width = spec.image_shape
    blocks = random.integers(256, size=(SAMPLES, channels, 4, 4))
    coarse = blocks[:, :, np.arange(height) * 4 // height][..., np.arange(width) * 4 // width]
    noise = random.integers(-255, 256, size=coarse.shape) * random.random((SAMPLES, 1, 1, 1))
    return (coarse + noise).clip(0, 255).astype(np.uint8)


def _spec_json(spec: ModelSpec) -> str:
    return json.dumps(asdict(spec), allow_nan=False)


def _export(classifier: "Classifier", spec: ModelSpec) -> Any:
    import torch

    example = torch.zeros(2, *spec.image_shape, dtype=torch.uint8)
    program = torch.export.export(classifier, (example,), dynamic_shapes=({0: torch.export.Dim("n")},))
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # it holds paths of this machine
    return program


def write_pt2(classifier: "Classifier", spec: ModelSpec, path: Path) -> None:
    """Write a program of `torch.export`."""
    import torch

    with path.open("wb") as file:  # the name may lack the suffix that torch asks for
        torch.export.save(_export(classifier, spec), file, extra_files={SPEC: _spec_json(spec)})


def open_pt2(path: Path) -> Run:
    """Return the program in a file of `write_pt2`."""
    import torch

    with path.open("rb") as file:
        program = torch.export.load(file).module()
    return lambda images: program(torch.from_numpy(images)).detach().numpy()


def write_onnx(classifier: "Classifier", spec: ModelSpec, path: Path) -> None:
    """Write an ONNX file. Raises `UserError` if the packages are not installed."""
    try:
        import onnxruntime  # noqa: F401 - asked for before the work
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"{error.name} is not installed: use `uv run --group onnx imageclf export ...`") from None
    import torch

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    program = torch.onnx.export(
        _export(classifier, spec), dynamo=True, input_names=[INPUT], output_names=[OUTPUT], verbose=False
    )
    assert program is not None
    for node in program.model.graph:
        node.metadata_props.clear()  # names of torch's internals, of no use to others
    program.model.metadata_props[SPEC] = _spec_json(spec)
    program.save(path, external_data=False)


def open_onnx(path: Path) -> Run:
    """Return the program in a file of `write_onnx`, on ONNX Runtime's CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return lambda images: np.asarray(session.run([OUTPUT], {INPUT: images})[0])


FORMATS = {"onnx": Format(write_onnx, open_onnx, 1e-4), "pt2": Format(write_pt2, open_pt2, 1e-5)}


def export(folder: Path, name: str, path: Path) -> Parity:
    """Write the checkpoint in `folder` to `path` in a format. Raises `UserError` if its answers are not the same."""
    from imageclf.inference import checkpoint

    loaded, form = checkpoint.load(folder), FORMATS[name]
    classifier, images = loaded.classifier(), sample_images(loaded.spec)
    with files.replacing(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about itself
        form.write(classifier, loaded.spec, temporary)
        parity = check(form, temporary, classifier, images)
        if not parity.holds(form.tolerance):
            raise UserError(f"{path} was not written, because its answers differ: {parity.sentence()}")
    return parity


def check(form: Format, path: Path, classifier: "Classifier", images: Pixels) -> Parity:
    """Compare the answers of a written file with those of the net, for all images at once and for a single one."""
    import torch

    with torch.inference_mode():
        expected = classifier(torch.from_numpy(images)).numpy()
    run = form.open(path)
    found = np.concatenate([run(images[:1]), run(images[1:])])
    return compare(found, expected)


def main(arguments: list[str] | None = None, prog: str | None = None) -> None:
    """Run the command `imageclf export`."""
    parser = argparse.ArgumentParser(prog, description="Write a trained model as an ONNX or PyTorch program.")
    parser.add_argument("--format", choices=FORMATS, required=True, help="pt2 is the format of torch.export")
    parser.add_argument("--model", help=addresses.HELP)
    parser.add_argument("--output", type=Path, help="the file to write (default model.onnx or model.pt2)")
    given = parser.parse_args(arguments)
    path = given.output or Path(f"model.{given.format}")
    with addresses.located(given.model) as folder:
        parity = export(folder, given.format, path)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB; {parity.sentence()}")
