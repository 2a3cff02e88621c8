"""Plots of comparisons: one dot per seed, and the mean with its confidence interval.

The colors are those of Okabe and Ito, which color-blind readers can tell apart; markers differ, too.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imageclf.core import files
from imageclf.study.comparison import Comparison, Group, Pair
from imageclf.study.recipes import Values
from imageclf.study.significance import CONFIDENCE_LEVEL, ends

Style = tuple[str, str, int]
"""Color, marker and size of the marker in points."""
FIRST, SECOND = ("#0072B2", "o", 9), ("#D55E00", "D", 6)
RATIO = 4
"""The axis of a panel is logarithmic in the test error if the largest error is this many times the smallest."""
TICKS = 100 - np.array([1, 2, 3, 5]) * 10.0 ** np.arange(1, -3, -1)[:, None]
"""Accuracies at which a logarithmic axis may have a tick: 90, 80, 70, 50, 99, 98, 97, ..."""


def draw(path: Path, compared: Comparison) -> None:
    """Write the plot of a comparison to a PNG file that is 800 pixels wide."""
    with files.replacing(path) as temporary:
        figure(compared).savefig(temporary, format="png", dpi=100, metadata={"Software": None})


def figure(compared: Comparison) -> Any:
    """Return a figure with a row per pair if pairs have labels, or else a row per group and a panel per data set."""
    from matplotlib.figure import Figure

    if compared.labels:
        drawn = Figure(figsize=(8, 1.3 + 0.8 * len(compared.pairs)), layout="constrained")
        _draw_pairs(drawn, compared.pairs, compared.labels)
        return drawn
    panels: dict[str, list[Group]] = {}
    for group in compared.groups:
        panels.setdefault(data_set(group.parameters), []).append(group)
    drawn = Figure(figsize=(8, 0.7 + 0.75 * len(panels) + 0.36 * len(compared.groups)), layout="constrained")
    _draw_panels(drawn, panels, compared)
    return drawn


def data_set(parameters: Values) -> str:
    """Return the name of a data set; it says if images were resized or classes selected."""
    name = parameters["dataset"] if parameters["dataset"] != "folder" else Path(parameters["folder"]).name
    size, classes = parameters.get("image_size"), parameters.get("classes")
    return name + (f", resized to {size}x{size}" if size else "") + (f", {len(classes)} classes" if classes else "")


def _draw_pairs(figure: Any, pairs: Sequence[Pair], labels: tuple[str, str]) -> None:
    """Draw each pair in a row: both means, joined by a line that has the difference above it."""
    axes = figure.subplots()
    for row, pair in enumerate(pairs):
        means = [100 * group.accuracy.mean for group in (pair.first, pair.second)]
        axes.plot(means, [row, row], color="0.7", linewidth=4, zorder=0)
        _draw_group(axes, row, pair.first, FIRST, below=0.18)
        _draw_group(axes, row, pair.second, SECOND, below=0.32)
        difference = f"{means[1] - means[0]:+z.1f} points"
        axes.annotate(difference, (sum(means) / 2, row), (0, 8), textcoords="offset points", ha="center")
    axes.set(yticks=range(len(pairs)), ylim=(len(pairs) - 0.4, -0.6))
    axes.set_yticklabels(row_names(pairs), parse_math=False)
    axes.set_xlabel("test accuracy, percent")
    axes.grid(axis="x", alpha=0.3)
    _add_legend(figure, {f"mean, {labels[0]}": FIRST, f"mean, {labels[1]}": SECOND}, references=False)


def row_names(pairs: Sequence[Pair]) -> list[str]:
    """Return the name of each pair's first group, or of its second one if several pairs have the same first."""
    firsts = [pair.first.name for pair in pairs]
    return firsts if len(set(firsts)) == len(firsts) else [pair.second.name for pair in pairs]


def _draw_panels(figure: Any, panels: dict[str, list[Group]], compared: Comparison) -> None:
    """Draw a panel for each data set, each with its own range of accuracies."""
    heights = [len(groups) + 0.5 for groups in panels.values()]
    column = figure.subplots(len(panels), squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for axes, (name, groups) in zip(column, panels.items(), strict=True):
        for row, group in enumerate(groups):
            _draw_group(axes, row, group, SECOND if group.name in compared.differences else FIRST, below=0.25)
            if reference := compared.references.get(group.name):
                axes.plot(100 * reference.mean, row, "|", color="black", markersize=16)
        axes.set(yticks=range(len(groups)), ylim=(len(groups) - 0.4, -0.6))
        axes.set_yticklabels([group.name for group in groups], parse_math=False)
        title = f"{name} (axis logarithmic in the test error)" if _set_scale(axes) else name
        axes.set_title(title, loc="left", fontsize="medium", parse_math=False)
        axes.grid(axis="x", alpha=0.3)
    column[-1].set_xlabel("test accuracy, percent")
    several = {"mean, recipe's parameters": FIRST, "mean, other parameters": SECOND}
    shown = several if compared.differences else {"mean": FIRST}
    _add_legend(figure, shown, references=any(group.name in compared.references for group in compared.groups))


def _draw_group(axes: Any, row: float, group: Group, style: Style, *, below: float) -> None:
    """Draw the mean with its interval, and a dot for each seed a little below it (`below` is a part of a row)."""
    color, marker, size = style
    values = [100 * value for value in group.values("test", "accuracy")]
    if len(values) > 1:
        axes.plot(values, [row + below] * len(values), ".", color=color, alpha=0.6, markersize=8, markeredgewidth=0)
    mean, interval = 100 * group.accuracy.mean, ends(group.accuracy)
    bars = [[mean - interval[0]], [interval[1] - mean]] if interval else None
    axes.errorbar([mean], [row], xerr=bars, fmt=marker, color=color, capsize=4, markersize=size)


def _set_scale(axes: Any) -> bool:
    """Set the range of the axis; return True if the scale is logarithmic, to show small errors."""
    low, high = axes.dataLim.intervalx
    if high >= 100 or 100 - low < RATIO * (100 - high):
        axes.margins(x=0.06)
        return False
    ends = np.log10([100 - low, 100 - high])
    margin = 0.06 * (ends[0] - ends[1])
    axes.set_xscale("function", functions=(_log_error, _from_log_error))
    axes.set_xlim(_from_log_error(-ends[0] - margin), _from_log_error(-ends[1] + margin))
    first, last = axes.get_xlim()
    ticks = [tick for tick in sorted(TICKS.ravel()) if first <= tick <= last]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    return True


def _log_error(accuracy: NDArray[np.float64]) -> NDArray[np.float64]:
    return -np.log10(np.maximum(100 - np.asarray(accuracy), 1e-3))


def _from_log_error(scaled: NDArray[np.float64] | float) -> NDArray[np.float64]:
    return 100 - 10.0 ** -np.asarray(scaled)


def _add_legend(figure: Any, styles: dict[str, Style], *, references: bool) -> None:
    """Add a legend above the plot that explains the styles, the dots, and the ticks of references."""
    from matplotlib.lines import Line2D

    entries = {label: {"color": each[0], "marker": each[1], "markersize": each[2]} for label, each in styles.items()}
    entries[f"{CONFIDENCE_LEVEL:.0%} interval"] = {"color": "0.4", "linestyle": "-"}
    entries["one seed"] = {"color": "0.4", "marker": ".", "markersize": 8}
    if references:
        entries["reference"] = {"color": "black", "marker": "|", "markersize": 14}
    handles = [Line2D([], [], label=label, **{"linestyle": "", **entry}) for label, entry in entries.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False, fontsize="small")
