"""What `benchmarks.peers` measured as a table for each recipe and a picture. No number is made here, only shown."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import machine
from imageclf import files

TUTORIAL, OURS, FLOOR = "tutorial-0", "ours", "floor"
COLOURS = {OURS: "tab:orange", FLOOR: "tab:gray"}


@dataclass(frozen=True)
class Row:
    """A contestant on a recipe: median, least and most seconds an epoch over the rounds."""

    name: str
    median: float
    least: float
    most: float
    accuracy: float | None
    epochs: float
    """Trained when the accuracy was taken, those that warmed up among them."""


def row(name: str, outcomes: Sequence[dict[str, Any]]) -> Row:
    """A round's number is the mean of the epochs timed in it; the accuracy is the rounds' median."""
    seconds = [statistics.fmean(outcome["seconds"]) for outcome in outcomes]
    accuracies = [outcome["accuracy"] for outcome in outcomes if outcome["accuracy"] is not None]
    accuracy = statistics.median(accuracies) if accuracies else None
    return Row(name, statistics.median(seconds), min(seconds), max(seconds), accuracy, outcomes[0]["epochs"])


def rows(contestants: dict[str, list[dict[str, Any]]]) -> list[Row]:
    """The contestants of a recipe, the slowest first."""
    return sorted((row(name, outcomes) for name, outcomes in contestants.items()), key=lambda each: -each.median)


def ratio(compared: Row | None, to: Row) -> float | None:
    """How many of `to`'s epochs fit into one of `compared`; None where that did not take part."""
    return None if compared is None else compared.median / to.median


def best_peer(table: Sequence[Row]) -> Row | None:
    """The fastest that is neither ours nor the floor."""
    return min((each for each in table if each.name not in {OURS, FLOOR}), key=lambda each: each.median, default=None)


def as_markdown(content: dict[str, Any], plot: str) -> str:
    """Tables, the picture `plot`, and what the numbers mean."""
    parts = ["# Seconds an epoch, beside peers", machine.sentence(content["machine"])]
    for recipe, contestants in content["seconds"].items():
        images = content["images"][recipe]
        some = "" if images["train"] == images["of"] else f", scaled from {images['train']:,}"
        parts += [f"## {recipe}: {images['of']:,} train images{some}", _table(rows(contestants))]
    return "\n\n".join([*parts, f"![Seconds an epoch]({plot})", _note(content)]) + "\n"


def _table(table: list[Row]) -> str:
    by_name = {each.name: each for each in table}
    peer = best_peer(table)
    header = ["", "s an epoch", "min to max", "against tutorial-0", "against best peer", "of the floor's rate"]
    lines = [[*header, "test accuracy", "after epochs"], ["---", *["---:"] * 7]]
    for each in table:
        floor = by_name.get(FLOOR)
        share = None if floor is None else floor.median / each.median
        trained = each.accuracy is not None
        lines.append(
            [
                each.name,
                f"{each.median:.3g}",
                f"{each.least:.3g} to {each.most:.3g}",
                _times(ratio(by_name.get(TUTORIAL), each)),
                _times(ratio(peer, each)),
                "" if share is None else f"{share:.1%}",
                f"{100 * each.accuracy:.2f}" if each.accuracy is not None else "",
                f"{each.epochs:.3g}" if trained else "",
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}x"


def _note(content: dict[str, Any]) -> str:
    shares = ", ".join(f"{name} {share:.0%}" for name, share in content["shares"].items())
    return f"""\
Median over {content["rounds"]} rounds, with the least and the most; {content["epochs"]} timed epoch(s) a round (of \
ours up to three times as many where they are short), after those that warm up. "2.00x" is twice as fast. All have the \
same net, loss, optimizer, batch size and train images (nine tenths of the official ones), and each framework chooses \
its threads. Of more than {content["shares_above"]:,} images these train only a part in each epoch, scaled: {shares}; \
their accuracies are after fewer epochs.

- tutorial-0, tutorial-2: torchvision's data set (of CIFAR-10 the same on decoded JPEG), ToTensor, Normalize, a \
DataLoader with 0 and 2 workers, torch.nn, torch.optim, a plain loop.
- keras-jax, keras-tensorflow: Keras' `fit` on normalized arrays in memory.
- lightning: its Trainer on tutorial-0's loader; no logger, no checkpoints, no bar.
- ours: the train stage as DVC runs it, which alone also validates after each epoch, keeps the best weights and \
records to MLflow. Its first epochs, while MLflow is being imported beside it, count as start-up; the JSON has them. \
Its accuracy is that of the epoch that validation chose.
- floor: the epoch's multiply-adds (forward, gradients of weights, and of all inputs but the images) at the rate of a \
2048x2048 float32 product. Norms, pools, losses, optimizers and validation are not in it.

vgg-cifar10, where it takes part, is without augmentation, label smoothing, weight decay and schedule, lr 0.01, for \
all. Its few batches are scaled to an epoch, and its accuracy means nothing."""


def draw(path: Path, content: dict[str, Any]) -> None:
    """A panel for each recipe: a bar for each contestant, on a log scale, with the least and the most."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    recipes = content["seconds"]
    columns = min(2, len(recipes))
    lines = -(-len(recipes) // columns)
    figure = Figure(figsize=(5.5 * columns, 0.4 + 2.7 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for panel in panels[len(recipes) :]:
        panel.set_visible(False)
    for panel, (recipe, contestants) in zip(panels, recipes.items(), strict=False):
        table = rows(contestants)
        places = range(len(table))
        medians = [each.median for each in table]
        reach = [[each.median - each.least for each in table], [each.most - each.median for each in table]]
        colours = [COLOURS.get(each.name, "tab:blue") for each in table]
        panel.barh(places, medians, color=colours, xerr=reach, capsize=3)
        panel.set(title=recipe, xscale="log", yticks=places, xlim=(min(medians) / 2, max(medians) * 3))
        panel.set_yticklabels([each.name for each in table])
        panel.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        panel.xaxis.set_minor_formatter(NullFormatter())  # the bars say their seconds
        for place, each in zip(places, table, strict=True):
            panel.text(each.most * 1.1, place, f"{each.median:.3g} s", va="center", fontsize=8)
        panel.invert_yaxis()
        panel.grid(axis="x", alpha=0.3)
    figure.supxlabel("seconds an epoch (log scale)")
    with files.replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100, metadata={"Software": None})
