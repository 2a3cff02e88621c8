"""Texts for MLflow's pages: names and descriptions of runs and models, and the data that a net saw."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from imageclf.params import Params

if TYPE_CHECKING:
    from imageclf.contracts.dataset import DatasetManifest

CONTEXTS = {"train": "training", "val": "validation", "test": "testing"}
DIGEST, TEXT = 36, 5000
"""Maximum length of a digest, and of a description: MLflow's limits."""


@dataclass(frozen=True)
class DatasetInput:
    """One split as MLflow's dataset input.

    digest: the first digits of the SHA-256 of the split's images, as `data/processed/dataset.json` has it.
    source_type, source: the official address, or the name of the folder; `source` is JSON.
    profile: the number of images and of classes, as JSON.
    """

    name: str
    digest: str
    source_type: str
    source: str
    context: str
    profile: str


def datasets(settings: Params, data: "DatasetManifest") -> dict[str, DatasetInput]:
    """Return the splits by name."""
    source_type, source = _source(settings)
    return {
        split: DatasetInput(
            name=f"{_data_name(settings)}-{split}",
            digest=data.images_sha256(split)[:DIGEST],
            source_type=source_type,
            source=json.dumps(source),
            context=CONTEXTS[split],
            profile=json.dumps({"images": count, "classes": len(data.classes)}),
        )
        for split, count in data.counts.items()
    }


def _source(settings: Params) -> tuple[str, dict[str, str]]:
    """Return the type and the address of the source of the data."""
    from imageclf.download.datasets import DATASETS

    if settings.dataset == "folder":
        return "local", {"uri": Path(settings.folder).name}
    addresses = DATASETS[settings.dataset].addresses
    return ("http", {"url": addresses[0]}) if addresses else ("code", {"package": "scikit-learn"})


def _data_name(settings: Params) -> str:
    return Path(settings.folder).stem if settings.dataset == "folder" else settings.dataset


def model_name(settings: Params) -> str:
    """Return a name such as `cnn-mnist` or `resnet18-pets`; MLflow allows no dots, slashes, colons and quotes."""
    permuted = "-permuted" if settings.permute else ""
    return re.sub(r"[^\w -]+", "-", f"{settings.model}-{_data_name(settings)}{permuted}")


def of_run(
    settings: Params, data: "DatasetManifest", experiment: str | None, scores: dict[str, float] | None = None
) -> str:
    """Return the description of a run, in Markdown: net, data, the test accuracy if known, and how to get its files."""
    counts = ", ".join(f"{data.counts[split]:,} {split}" for split in CONTEXTS if split in data.counts)
    permuted = " with permuted pixels" if settings.permute else ""
    parts = [f"**{settings.model}** on **{_data_name(settings)}**{permuted}: {counts} images, seed {settings.seed}."]
    if scores is not None:
        parts.append(f"Test accuracy **{scores['accuracy']:.2%}**.")
    if experiment is not None:
        parts.append(f"`uv run dvc exp apply {experiment}` brings back its files.")
    else:
        parts.append("Run with `dvc repro`: the commit that holds its dvc.lock brings back its files.")
    return "\n\n".join(parts)


def shortened(text: str) -> str:
    """Return a description that is at most as long as MLflow allows."""
    return text if len(text) <= TEXT else f"{text[: TEXT - 40].rpartition(chr(10))[0]}\n\n(shortened)"
