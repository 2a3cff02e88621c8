"""The model card: one page that says what a model is, what it was trained on, how good it is, and how to load it.

The page depends on the model, its data and its scores alone: it holds no time, path or machine.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from imageclf.contracts.dataset import DatasetManifest
from imageclf.contracts.model import ModelSpec
from imageclf.evaluation.quality import Calibration, PerClass, interval

FEW_IMAGES = 30
"""A class with fewer test images has a recall that is known to no better than about 15 points."""

WEAKEST = 5
"""Number of classes with the lowest recall that the page lists."""

MOST_NAMES = 20
"""Number of class names that the page lists."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Results of an evaluation.

    train: the scores of the training by split, as in metrics/train.json.
    test: the scores of the test split by name, as in metrics/test.json.
    remarks: sentences about the scores and the data, from `quality.remarks` and the data report.
    """

    train: dict[str, dict[str, float]]
    test: dict[str, float]
    classes: PerClass
    calibration: Calibration
    remarks: list[str]


def as_markdown(spec: ModelSpec, data: DatasetManifest, found: Findings) -> str:
    """Return the page."""
    parts = [
        f"# Model card: {spec.model} on {data.dataset}",
        f"A net that assigns one of {len(spec.classes):,} classes to an image: {_names(spec.classes)}.",
        "## Data",
        _data(spec, data),
        "## Parameters",
        _table(("parameter", "value"), ((key, _value(value)) for key, value in spec.parameters.items())),
        "## Scores",
        _scores(data.counts["test"], found),
        "## Weakest classes",
        _weakest(spec.classes, found.classes),
        "## Calibration",
        _calibration(found.calibration),
        "## Limits",
        "\n".join(f"- {sentence}" for sentence in _limits(spec, data, found)),
        "## Load",
        _load(spec),
    ]
    return "\n\n".join(parts) + "\n"


def _data(spec: ModelSpec, data: DatasetManifest) -> str:
    steps = {name: value for name, value in asdict(spec.preparation).items() if value not in (None, False, 0)}
    rows = [
        *((f"{split} images", f"{count:,}") for split, count in data.counts.items()),
        ("stored image (channels, height, width)", " x ".join(map(str, spec.image_shape))),
        ("preparation", ", ".join(f"{name} {value}" for name, value in steps.items()) or "none"),
        ("normalization", data.normalize),
        ("SHA-256 of the data", f"`{data.sha256}`"),
    ]
    return _table(("", ""), rows)


def _scores(count: int, found: Findings) -> str:
    shares = {"accuracy", "top5"}
    rows = [
        (f"test {name}", f"{value:.4f}", _ends(interval(value, count)) if name in shares else "")
        for name, value in found.test.items()
    ]
    for split in ("val", "train"):
        rows += [(f"{split} {name}", f"{value:.4f}", "") for name, value in found.train.get(split, {}).items()]
    note = (
        "The intervals (95%, Wilson) say how exactly this number of test images measures this model. Trainings with "
        "other seeds differ by more than that or by less: `uv run imageclf compare` measures it."
    )
    return f"{_table(('score', 'value', 'interval'), rows)}\n\n{note}"


def _weakest(names: Sequence[str], classes: PerClass) -> str:
    order: list[int] = np.argsort(classes.recall, kind="stable").tolist()[:WEAKEST]  # nan comes last
    rows: list[tuple[str, ...]] = []
    for number in order:
        images, recall, precision = (
            float(each[number]) for each in (classes.images, classes.recall, classes.precision)
        )
        if images:
            ends = _ends(interval(recall, int(images)))
            rows.append((_escape(names[number]), f"{images:,.0f}", f"{recall:.4f}", ends, _number(precision)))
    return _table(("class", "test images", "recall", "interval", "precision"), rows)


def _calibration(found: Calibration) -> str:
    count = found.images.sum()
    probability, accuracy = (np.nansum(values * found.images) / count for values in (found.probability, found.accuracy))
    sentence = (
        f"The predicted class has a mean probability of {probability:.2%} and is right for {accuracy:.2%} of the test "
        f"images. The expected calibration error is {found.error:.4f}."
    )
    rows = [
        (f"{number / len(found.images):.2f} to {(number + 1) / len(found.images):.2f}", f"{images:,}", f"{share:.4f}")
        for number, (images, share) in enumerate(zip(found.images, found.accuracy, strict=True))
        if images
    ]
    return f"{sentence}\n\n{_table(('probability', 'test images', 'accuracy'), rows)}"


def _limits(spec: ModelSpec, data: DatasetManifest, found: Findings) -> Iterable[str]:
    yield from map(_escape, found.remarks)
    yield from map(_escape, data.notes)
    few = int((found.classes.images < FEW_IMAGES).sum())
    if few:
        verb = "has" if few == 1 else "have"
        yield f"{few:,} of {len(spec.classes):,} classes {verb} fewer than {FEW_IMAGES} test images: rough scores."
    if spec.permutation is not None:
        yield "The net sees permuted pixels: it cannot use which pixels are neighbors."
    yield "An image that shows none of the classes still gets one of them, sometimes with a high probability."


def _load(spec: ModelSpec) -> str:
    return (
        "`uv run imageclf predict --model data/model picture.png` classifies image files; the model in MLflow loads "
        "with `mlflow.pyfunc.load_model` and takes the same files as base64 text.\n\n"
        f"SHA-256 of `model.safetensors`: `{spec.weights_sha256}`"
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _names(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > MOST_NAMES else ""
    return ", ".join(map(_escape, names[:MOST_NAMES])) + more


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else _escape(str(value))


def _number(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.4f}"


def _ends(ends: tuple[float, float]) -> str:
    return f"{ends[0]:.4f} to {ends[1]:.4f}"


def _escape(text: str) -> str:
    """Return Markdown that shows `text`, which may hold Markdown's own characters and control characters."""
    shown = "".join(
        each if each.isprintable() else each.encode("unicode_escape", "surrogatepass").decode() for each in text
    )
    return re.sub(r"([\\`*\[\]|<>&#])", r"\\\1", shown)
