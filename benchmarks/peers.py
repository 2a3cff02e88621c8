"""Seconds a training epoch, ours beside what people use: one command, about 20 minutes on 2 cores.

    uv run --group peers python -m benchmarks.peers

Rounds: in each, every contestant trains every recipe in a fresh process, one contestant after the other, so that a
slow minute of the machine does not fall on one of them alone. Writes docs/peers.md, .json and .png. Nothing else
should run meanwhile. `--quick` tries everything on few images; its numbers mean nothing and are only printed.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import machine, projects, report
from benchmarks.contestants import CONTESTANTS, NEEDS, RESULT, SHARES, SHORT
from imageclf import errors, files
from imageclf.errors import UserError

OUT = Path("docs/peers")
RECIPES: dict[str, int | None] = {
    "fc500": None,
    "keras512": None,
    "mlp5": None,
    "cnn6": None,
    "cifar-cnn": None,
    "vgg-cifar10": 8 * 256,
}
"""The recipes, and the train images of each: eight batches of the last, whose epoch takes minutes.

Of fewer, what ours does once an epoch (keep 74 MB of state, validate, score) would be scaled up beyond its weight.
"""
QUICK_IMAGES = {"vgg-cifar10": 256}
PACKAGES = ("torch", "torchvision", "keras", "jax", "tensorflow", "lightning", "mlflow", "numpy")

Rounds = dict[str, dict[str, list[dict[str, Any]]]]
"""Outcomes of each round, by recipe and contestant."""


def measure(work: Path, names: list[str], contestants: list[str], rounds: int, epochs: int) -> Rounds:
    """Let every contestant train every recipe once a round, in the projects that `work` holds."""
    found: Rounds = {recipe: {contestant: [] for contestant in contestants} for recipe in names}
    for number in range(1, rounds + 1):
        for contestant in contestants:
            print(f"round {number}/{rounds}: {contestant}", end="", flush=True)
            paths = [str((work / recipe).resolve()) for recipe in names]
            projects.run(work, "-m", "benchmarks.contestants", contestant, "--epochs", str(epochs), *paths)
            for recipe in names:
                outcome = projects.take(work / recipe / RESULT)
                found[recipe][contestant].append(outcome)
                print(f", {recipe} {min(outcome['seconds']):.3g} s", end="", flush=True)
            print(flush=True)
    return found


def scale(outcome: dict[str, Any], factor: float) -> dict[str, Any]:
    """An outcome on few images as if on all of them: seconds times `factor`; the accuracy stays what it is."""
    return {**outcome, **{key: [factor * value for value in outcome[key]] for key in ("seconds", "warm_up")}}


def present(contestants: list[str]) -> list[str]:
    """Those whose packages are there; tells which are left out, and why."""
    lacking = {name: [each for each in NEEDS.get(name, ()) if not machine.installed(each)] for name in contestants}
    for name, packages in lacking.items():
        if packages:
            print(f"{name} is left out: {', '.join(packages)} not installed; `uv sync --group peers`")
    return [name for name, packages in lacking.items() if not packages]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure seconds a training epoch, ours beside peers.")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=1, help="timed in each round, after one that is not (default 1)")
    parser.add_argument("--data", type=Path, default=projects.DATA, help=f"the archives (default {projects.DATA})")
    parser.add_argument("--out", type=Path, help=f"write OUT.md, .json, .png (default {OUT}; none with --quick)")
    parser.add_argument("--quick", action="store_true", help="few images: try that it works")
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.epochs < 1:
        parser.error("--rounds and --epochs count from 1")
    if not arguments.data.is_dir():
        raise UserError(f"{arguments.data} is not here: --data names the folder of mnist/ and cifar10-images.tar.xz")
    contestants = present(arguments.contestants)
    with tempfile.TemporaryDirectory(prefix="peers-") as work:
        sizes = prepare(Path(work), arguments.recipes, arguments.data, quick=arguments.quick)
        found = measure(Path(work), arguments.recipes, contestants, arguments.rounds, arguments.epochs)
    publish(found, sizes, arguments)


def prepare(work: Path, names: list[str], data: Path, *, quick: bool) -> dict[str, tuple[int, int]]:
    """A project in `work` for each recipe; returns the train images that it has, and that a whole epoch has."""
    sizes: dict[str, tuple[int, int]] = {}
    for recipe in names:
        print(f"preparing {recipe}", flush=True)
        images = QUICK_IMAGES.get(recipe, 2000) if quick else RECIPES[recipe]
        whole = projects.make(work / recipe, recipe, images, data)
        sizes[recipe] = (min(images or whole, whole), whole)
    return sizes


def publish(found: Rounds, sizes: dict[str, tuple[int, int]], arguments: argparse.Namespace) -> None:
    """Print the tables, and write them."""
    scaled = {
        recipe: {
            name: [scale(outcome, sizes[recipe][1] / sizes[recipe][0]) for outcome in outcomes]
            for name, outcomes in contestants.items()
        }
        for recipe, contestants in found.items()
    }
    content = {
        "machine": machine.describe(PACKAGES),
        "rounds": arguments.rounds,
        "epochs": arguments.epochs,
        "shares": SHARES,
        "shares_above": SHORT,
        "images": {recipe: {"train": some, "of": whole} for recipe, (some, whole) in sizes.items()},
        "seconds": scaled,
    }
    out = arguments.out or (None if arguments.quick else OUT)
    text = report.as_markdown(content, f"{(out or OUT).name}.png")
    print(text)
    if out is not None:
        files.write_text(out.with_name(f"{out.name}.md"), text)
        files.write_json(out.with_name(f"{out.name}.json"), content)
        report.draw(out.with_name(f"{out.name}.png"), content)


if __name__ == "__main__":
    errors.run(main)
