"""Classify image files: the command `imageclf predict`.

    uv run imageclf predict picture.png folder/ --top 3

Each image gets a line: the most probable classes with their probabilities, and the name of the file. `--json` prints a
JSON object per line instead. Files are decoded on all cores. A file that is not an image is named on stderr, the others
are classified, and the exit code is 1.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from tqdm import tqdm

from imageclf.core.cores import allowed_cores
from imageclf.core.errors import UserError
from imageclf.download.entries import readable
from imageclf.usage import addresses, chunks, models

if TYPE_CHECKING:
    from imageclf.inference.predictor import Predictor

Ranking = list[tuple[str, float]]
"""The most probable classes of an image and their probabilities, the most probable first."""

BAR_AFTER_S = 2
"""Seconds after which a progress bar is shown."""


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _parser(prog: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog, description="Classify image files, and the images in folders.")
    add = parser.add_argument
    add("path", nargs="+", type=Path, help="an image file, or a folder; folders in it are included")
    add("--model", help=addresses.HELP)
    add("--top", type=_positive, default=1, metavar="N", help="number of classes per image (default 1)")
    add("--json", action="store_true", help="print a JSON object per line: file, class, probability, top")
    add("--device", choices=["auto", "cuda", "mps", "cpu"], default="auto", help="default auto: a GPU if there is one")
    return parser


def main(arguments: list[str] | None = None, prog: str | None = None) -> None:
    """Run the command `imageclf predict`. Raises `UserError` after the last file if one was refused."""
    given = _parser(prog).parse_args(arguments)
    count = sum(1 for _ in chunks.entries(given.path))
    if count == 0:
        raise UserError(f"{', '.join(map(str, given.path))}: there are no files in it")
    predictor = models.load(given.model, given.device)
    refused = _predict(predictor, given.path, count, given.top, as_json=given.json)
    if refused:
        raise UserError(f"refused {refused:,} of {count:,} files, named above")


def _predict(predictor: "Predictor", named: list[Path], count: int, top: int, *, as_json: bool) -> int:
    """Print a line per image; return the number of files that were refused."""
    spec, refused = predictor.spec, 0
    width = max(map(len, map(shown, spec.classes)))
    read = chunks.read(chunks.entries(named), count, spec.raw_shape, spec.gray16_bits, allowed_cores())
    with tqdm(total=count, unit=" images", disable=None, delay=BAR_AFTER_S, leave=False) as bar:
        for chunk in read:
            named_rankings = zip(chunk.names, _rankings(predictor, chunk, top), strict=True)
            lines = (_as_json(*each) if as_json else _as_row(*each, width) for each in named_rankings)
            with bar.external_write_mode(sys.stdout):
                _print(lines, sys.stdout)
            with bar.external_write_mode(sys.stderr):
                _print((f"refused {shown(name)}: {reason}" for name, reason in chunk.refused), sys.stderr)
            refused += len(chunk.refused)
            bar.update(len(chunk.names) + len(chunk.refused))
    return refused


def _rankings(predictor: "Predictor", chunk: chunks.Chunk, top: int) -> Iterator[Ranking]:
    if not chunk.names:
        return
    probabilities = predictor.probabilities(chunk.pixels)
    order = (-probabilities).argsort(axis=1, kind="stable")[:, :top]  # among equals, the first class, as in evaluate
    for row, best in zip(probabilities, order, strict=True):
        yield [(predictor.spec.classes[index], float(row[index])) for index in best]


def shown(name: str) -> str:
    """Return a name that fits on a line: control characters are escaped."""
    return name if name.isprintable() else repr(readable(name))[1:-1]


def _as_row(name: str, ranking: Ranking, width: int) -> str:
    return "  ".join([*(f"{value:7.2%} {shown(label):{width}}" for label, value in ranking), shown(name)])


def _as_json(name: str, ranking: Ranking) -> str:
    top = [{"class": label, "probability": value} for label, value in ranking]
    return json.dumps({"file": name, **top[0], "top": top})


def _print(lines: Iterable[str], file: TextIO) -> None:
    file.writelines(f"{line}\n" for line in lines)
    file.flush()
