"""Measure seconds per training epoch, of imageclf and of other frameworks; takes about 20 minutes on 2 cores.

    uv run --group peers python -m benchmarks.peers
    uv run python -m benchmarks.peers --redraw --out docs/peers   # page and figure again, from docs/peers.json

In each round, each competitor trains all recipes in a new process. The competitors take turns, so that a slow minute
of the machine does not affect only one of them. Writes docs/peers.json, .md and .png. Run nothing else at the same
time. `--quick` tries everything on few images; its numbers mean nothing.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import machine, output, projects, report
from benchmarks.competitors import COMPETITORS, NEEDS, RESULT, SHARES, SHORT
from imageclf.core import files, process

OUT = Path("docs/peers")
RECIPES: dict[str, int | None] = {
    "fc500": None,
    "keras512": None,
    "mlp5": None,
    "cnn6": None,
    "cifar-cnn": None,
    "vgg-cifar10": 8 * 256,
}
"""Recipes, and the number of train images of each (None: all).

An epoch of vgg-cifar10 takes minutes, so it has eight batches. Fewer would exaggerate what imageclf does once per
epoch (save a state of 74 MB, validate, score) when the time is scaled to a whole epoch.
"""
QUICK_IMAGES = {"vgg-cifar10": 256}
PACKAGES = ("torch", "torchvision", "keras", "jax", "tensorflow", "lightning", "mlflow", "numpy")

Rounds = dict[str, dict[str, list[dict[str, Any]]]]
"""Outcomes of the rounds, by recipe and competitor."""


def measure(work: Path, names: list[str], competitors: list[str], rounds: int, epochs: int) -> Rounds:
    """Let each competitor train each recipe once per round, in the projects in `work`."""
    found: Rounds = {recipe: {competitor: [] for competitor in competitors} for recipe in names}
    for number in range(1, rounds + 1):
        for competitor in competitors:
            print(f"round {number}/{rounds}: {competitor}", end="", flush=True)
            paths = [str((work / recipe).resolve()) for recipe in names]
            projects.run(work, "-m", "benchmarks.competitors", competitor, "--epochs", str(epochs), *paths)
            for recipe in names:
                outcome = projects.take_result(work / recipe / RESULT)
                found[recipe][competitor].append(outcome)
                print(f", {recipe} {min(outcome['seconds']):.3g} s", end="", flush=True)
            print(flush=True)
    return found


def to_whole_epoch(outcome: dict[str, Any], factor: float) -> dict[str, Any]:
    """Return an outcome with its seconds multiplied by `factor`, and the same accuracy."""
    return {**outcome, **{key: [factor * value for value in outcome[key]] for key in ("seconds", "warm_up")}}


def present(competitors: list[str]) -> list[str]:
    """Return the competitors whose packages are installed; print the others and what they lack."""
    lacking = {name: [each for each in NEEDS.get(name, ()) if not machine.installed(each)] for name in competitors}
    for name, packages in lacking.items():
        if packages:
            print(f"{name} is left out: {', '.join(packages)} not installed; run `uv sync --group peers`")
    return [name for name, packages in lacking.items() if not packages]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Measure seconds per training epoch, of imageclf and others.")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--competitors", nargs="+", choices=COMPETITORS, default=list(COMPETITORS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=1, help="timed epochs in each round, after one to warm up")
    parser.add_argument(
        "--quick", action="store_true", help="few images, to see that it runs; prints only, unless --out is given"
    )
    projects.add_arguments(parser, OUT)
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.epochs < 1:
        parser.error("--rounds and --epochs must be 1 or more")
    content = output.read_numbers(arguments.out) if arguments.redraw else run(arguments)
    figure = report.draw(content)
    page = report.as_markdown(content, f"{arguments.out.name}.png" if figure else None)
    if arguments.redraw or not _only_printed(arguments):
        output.write_page(arguments.out, page, figure)
    print(page)


def _only_printed(arguments: argparse.Namespace) -> bool:
    """Return True for a quick run without an --out of its own: it must not replace the published numbers."""
    return arguments.quick and arguments.out == OUT


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure, write the numbers to OUT.json, and return them."""
    projects.check_data(arguments.data)
    competitors = present(arguments.competitors)
    with tempfile.TemporaryDirectory(prefix="peers-") as work:
        sizes = prepare(Path(work), arguments.recipes, arguments.data, quick=arguments.quick)
        found = measure(Path(work), arguments.recipes, competitors, arguments.rounds, arguments.epochs)
    content = {
        "machine": machine.describe_with_commit(PACKAGES),
        "rounds": arguments.rounds,
        "epochs": arguments.epochs,
        "shares": SHARES,
        "shares_above": SHORT,
        "images": {recipe: {"train": some, "of": whole} for recipe, (some, whole) in sizes.items()},
        "seconds": {
            recipe: {
                name: [to_whole_epoch(outcome, sizes[recipe][1] / sizes[recipe][0]) for outcome in outcomes]
                for name, outcomes in rounds.items()
            }
            for recipe, rounds in found.items()
        },
    }
    if not _only_printed(arguments):
        files.write_json(output.result_file(arguments.out, "json"), content)
    return content


def prepare(work: Path, names: list[str], data: Path, *, quick: bool) -> dict[str, tuple[int, int]]:
    """Make a project in `work` for each recipe; return its number of train images, and that of a whole epoch."""
    sizes: dict[str, tuple[int, int]] = {}
    for recipe in names:
        print(f"preparing {recipe}", flush=True)
        images = QUICK_IMAGES.get(recipe, 2000) if quick else RECIPES[recipe]
        whole = projects.make(work / recipe, recipe, images, data)
        sizes[recipe] = (min(images or whole, whole), whole)
    return sizes


if __name__ == "__main__":
    process.run(main)
