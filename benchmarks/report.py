"""Page and figure of `benchmarks.peers`, made from its numbers."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks import machine
from benchmarks.output import BLACK, BLUE, GREEN, ORANGE, VERMILION, markdown_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TUTORIAL, OURS, BOUND = "tutorial-0", "imageclf", "lower-bound"
ALL_OURS = {OURS, "imageclf-compile", "imageclf-bfloat16"}
OLD_NAMES = {"ours": OURS, "floor": BOUND}
"""Names of two competitors in files that were written before they were renamed."""

STYLES = {
    TUTORIAL: ("tutorial loop", BLUE, "o"),
    "tutorial-2": ("tutorial loop, 2 workers", BLUE, "v"),
    "lightning": ("Lightning", ORANGE, "^"),
    "keras-tensorflow": ("Keras on TensorFlow", GREEN, "s"),
    "keras-jax": ("Keras on JAX", GREEN, "P"),
    "jax-scan": ("JAX, an epoch as one scan", GREEN, "*"),
    OURS: ("imageclf", VERMILION, "D"),
    "imageclf-compile": ("imageclf, compile: true", VERMILION, "s"),
    "imageclf-bfloat16": ("imageclf, bfloat16", VERMILION, "o"),
    BOUND: ("lower bound (multiply-adds)", BLACK, "X"),
}
"""Label, color and marker of each competitor, in the order of the figure's rows."""


@dataclass(frozen=True)
class Row:
    """Seconds per epoch of a competitor on a recipe, in each round, and its test accuracy after `epochs` epochs."""

    name: str
    rounds: list[float]
    accuracy: float | None
    epochs: float

    @property
    def median(self) -> float:
        """Median of the rounds."""
        return statistics.median(self.rounds)


def row(name: str, outcomes: Sequence[dict[str, Any]]) -> Row:
    """Return the mean of the epochs timed in each round, and the median of the rounds' accuracies."""
    seconds = [statistics.fmean(outcome["seconds"]) for outcome in outcomes]
    accuracies = [outcome["accuracy"] for outcome in outcomes if outcome["accuracy"] is not None]
    accuracy = statistics.median(accuracies) if accuracies else None
    return Row(OLD_NAMES.get(name, name), seconds, accuracy, outcomes[0]["epochs"])


def rows(competitors: dict[str, list[dict[str, Any]]]) -> dict[str, Row]:
    """Return the competitors of a recipe by name, the slowest first."""
    found = [row(name, outcomes) for name, outcomes in competitors.items()]
    return {each.name: each for each in sorted(found, key=lambda each: -each.median)}


def as_markdown(content: dict[str, Any], plot: str | None) -> str:
    """Return a page: tables, the figure `plot` if there is one, remarks by hand, an explanation of the numbers."""
    parts = ["# Seconds per epoch, compared with other frameworks", machine.sentence(content["machine"])]
    for recipe, competitors in content["seconds"].items():
        images = content["images"][recipe]
        some = "" if images["train"] == images["of"] else f", scaled from {images['train']:,}"
        parts += [f"## {recipe}: {images['of']:,} train images{some}", _table(rows(competitors))]
    if plot is not None:
        parts.append(f"![Time per epoch divided by the time of the tutorial loop]({plot})")
    return "\n\n".join([*parts, *content.get("remarks", []), _note(content)]) + "\n"


def _table(table: dict[str, Row]) -> str:
    peers = [each for name, each in table.items() if name not in ALL_OURS | {BOUND}]
    best = min(peers, key=lambda each: each.median, default=None)
    header = ["", "s per epoch", "min to max", "speed / tutorial-0", "speed / best peer", "speed / lower-bound"]
    lines = [[*header, "test accuracy", "after epochs"]]
    for each in table.values():
        seconds = [f"{each.median:.3g}", f"{min(each.rounds):.3g} to {max(each.rounds):.3g}"]
        speeds = [_speed(each, other, "{:.2f}x") for other in (table.get(TUTORIAL), best)]
        accuracy = ["", ""] if each.accuracy is None else [f"{100 * each.accuracy:.2f}", f"{each.epochs:.3g}"]
        lines.append([each.name, *seconds, *speeds, _speed(each, table.get(BOUND), "{:.1%}"), *accuracy])
    return markdown_table(lines)


def _speed(each: Row, other: Row | None, form: str) -> str:
    """Return the speed of `each` divided by the speed of `other`; an empty text if `other` was not measured."""
    return "" if other is None else form.format(other.median / each.median)


def _note(content: dict[str, Any]) -> str:
    shares = ", ".join(f"{name} {share:.0%}" for name, share in content["shares"].items())
    vgg = """

In vgg-cifar10, all train without augmentation, label smoothing, weight decay and schedule, at a learning rate of \
0.01. A few batches are timed and scaled to an epoch; the accuracy after them means nothing."""
    return f"""\
Seconds are the median of {content["rounds"]} rounds. A round times {content["epochs"]} epoch(s) after at least one \
to warm up; for imageclf up to three times as many if they are short. "2.00x" means twice as fast. The best peer is \
the fastest competitor except imageclf. imageclf-compile and imageclf-bfloat16 are imageclf with `compile: true` and \
`precision: bfloat16`. All use the same net, loss, optimizer, batch size and train images (nine \
tenths of the official ones), and each framework chooses its number of threads. If there are more than \
{content["shares_above"]:,} images, these train on a part of them in each epoch, and their time is scaled to all: \
{shares}. Their accuracies are therefore after fewer epochs.

- tutorial-0, tutorial-2: torchvision's data set (for CIFAR-10 an equal one on decoded JPEG files), ToTensor, \
Normalize, a DataLoader with 0 or 2 workers, torch.nn, torch.optim and a plain loop.
- keras-jax, keras-tensorflow: Keras' `fit` on normalized arrays in memory.
- jax-scan: the same Keras net and optimizer on JAX, an epoch as one compiled `lax.scan`, without a smaller last batch.
- lightning: its Trainer with the loader of tutorial-0, without logger, checkpoints and progress bar.
- imageclf: the train stage as DVC runs it. Only this one also validates after each epoch, keeps the best weights and \
records to MLflow. Its first epochs, while another process imports MLflow, are not timed; the JSON file has them. Its \
accuracy is that of the epoch with the best validation.
- lower-bound: no training, but the least time for the multiply-adds of an epoch (forward, gradients of the weights, \
and of all inputs except the images), at the speed of a 2048x2048 float32 matrix product. Norms, pools, losses, \
optimizers and validation are not counted.{vgg if "vgg-cifar10" in content["seconds"] else ""}"""


def draw(content: dict[str, Any]) -> "Figure | None":
    """Return a figure with a panel for each recipe; None if the tutorial loop, its unit, was not measured."""
    from matplotlib.figure import Figure

    tables = {recipe: rows(competitors) for recipe, competitors in content["seconds"].items()}
    if not all(TUTORIAL in table for table in tables.values()):
        return None
    names = [name for name in STYLES if any(name in table for table in tables.values())]
    columns = min(2, len(tables))
    lines = -(-len(tables) // columns)
    figure = Figure(figsize=(8, 1.3 + lines * (0.5 + 0.24 * len(names))), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for panel in panels[len(tables) :]:
        panel.set_visible(False)
    for panel, (recipe, table) in zip(panels, tables.items(), strict=False):
        _draw_panel(panel, table, names)
        panel.set_title(f"{recipe} (tutorial loop: {table[TUTORIAL].median:.3g} s)", fontsize=11)
    slowest = max(max(each.rounds) / table[TUTORIAL].median for table in tables.values() for each in table.values())
    panels[0].set(xlim=(0, 1.2 * slowest), ylim=(len(names) - 0.5, -0.5))
    panels[0].set_yticks(range(len(names)), [STYLES[name][0] for name in names])
    figure.suptitle("Time per epoch, relative to the tutorial loop: further left is faster")
    figure.supxlabel(
        "time per epoch / time per epoch of the tutorial loop (1 = as fast as the tutorial loop)\n"
        f"marker and number: median of {content['rounds']} rounds; line: fastest to slowest round",
        fontsize=10,
    )
    return figure


def _draw_panel(panel: "Axes", table: dict[str, Row], names: list[str]) -> None:
    panel.axvline(1, color="gray", linestyle="--", linewidth=1)
    for place, name in enumerate(names):
        if name in table:
            _, color, marker = STYLES[name]
            ratios = [seconds / table[TUTORIAL].median for seconds in table[name].rounds]
            median = statistics.median(ratios)
            reach = [[median - min(ratios)], [max(ratios) - median]]
            panel.errorbar([median], [place], xerr=reach, fmt=marker, color=color, capsize=3, markersize=7)
            where = {"xytext": (8, 0), "textcoords": "offset points", "va": "center"}
            panel.annotate(f"{median:.2f}", (max(ratios), place), **where, bbox={"color": "white", "pad": 0.5})
    panel.grid(axis="x", alpha=0.3)
    panel.tick_params(labelbottom=True)
