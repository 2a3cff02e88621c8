"""The contract between train and evaluate: `metrics/history.csv`, one row per epoch."""

import csv
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from imageclf.core import files

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imageclf.training.fit import Epoch


def write(path: Path, epochs: "Sequence[Epoch]") -> None:
    """Write one row per epoch. Without a val split, the `val_*` columns are empty."""
    rows = [asdict(epoch) for epoch in epochs]
    header = ["epoch" if key == "number" else key for key in rows[0]]
    files.write_csv(path, header, [row.values() for row in rows])


def read(path: Path) -> list[dict[str, float]]:
    """Return the rows as numbers by column name, without empty cells."""
    return parse(path.read_text(encoding="utf-8"))


def parse(text: str) -> list[dict[str, float]]:
    """Return the rows of a file with this content, as `read` does."""
    return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(text.splitlines())]
