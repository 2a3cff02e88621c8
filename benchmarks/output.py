"""Results as tables, pages and figures: the part that the benchmarks share."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imageclf.core import files
from imageclf.core.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLACK, BLUE, GREEN, ORANGE, VERMILION = "#000000", "#0072B2", "#009E73", "#E69F00", "#D55E00"
"""Colors of Okabe and Ito, which color-blind readers can tell apart."""


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """Return lines of cells, the headings first, as padded Markdown: first column to the left, others to the right."""
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    rows = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in (lines[0], rule, *lines[1:])]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def result_file(out: Path, ending: str) -> Path:
    """Return the path of one file of a result: `docs/peers` and `md` give `docs/peers.md`."""
    return out.with_name(f"{out.name}.{ending}")


def read_numbers(out: Path) -> dict[str, Any]:
    """Return the content of OUT.json; raises `UserError` if the file does not exist."""
    path = result_file(out, "json")
    if not path.is_file():
        raise UserError(f"{path} does not exist; measure first, without --redraw")
    return json.loads(path.read_text())


def write_page(out: Path, page: str, figure: "Figure | None") -> None:
    """Write OUT.md, and OUT.png if there is a figure."""
    files.write_text(result_file(out, "md"), page)
    if figure is not None:
        with files.replacing(result_file(out, "png")) as temporary:
            figure.savefig(temporary, format="png", dpi=150, metadata={"Software": None})
