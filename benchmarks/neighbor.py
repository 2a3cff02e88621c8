"""Measure how long an epoch takes next to one busy process, with and without waiting threads that adapt to it.

    uv run python -m benchmarks.neighbor

Two trainings of each recipe take turns, first alone and then next to a Python process that never waits. In one of
them, threads that wait for each other sleep early while other programs need the cores, as everywhere in imageclf. In
the other one they always spin as long as libgomp lets them. Takes 20 minutes on 2 cores and writes docs/neighbor.json.
Run nothing else at the same time.
"""

import argparse
import contextlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks import machine, output, projects, turns
from imageclf.core import files, process

OUT = Path("docs/neighbor.json")
RECIPES: dict[str, int | None] = {"fc500": None, "mlp5": 20_000, "cnn6": 18_000, "cifar-cnn": 9_000}
"""Recipes, and the number of train images of each (None: all)."""
WITHOUT_ADAPTING = """
import runpy
from imageclf.core import spinning
spinning.adapt = lambda compute: None
runpy.run_module("stages.train", run_name="__main__")
"""
COMMANDS = {"fixed": ("-c", WITHOUT_ADAPTING), "adaptive": turns.TRAIN}
PLACES = ("alone", "next to a busy process")

Seconds = dict[str, dict[str, list[float]]]
"""Seconds per epoch of the rounds, by command and place."""


@contextlib.contextmanager
def busy_process() -> Iterator[None]:
    """Run a process that never waits."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as neighbor:
        try:
            yield
        finally:
            neighbor.kill()


def measure(folders: dict[str, Path], rounds: int, epochs: int, changes: dict[str, Any]) -> Seconds:
    """Return the seconds per epoch of the trainings in `folders`, one for each command."""
    found: Seconds = {name: {place: [] for place in PLACES} for name in folders}
    with ExitStack() as stack:
        trainings = {
            name: stack.enter_context(turns.training(folder, changes, COMMANDS[name]))
            for name, folder in folders.items()
        }
        for _ in range(rounds):
            for place, context in zip(PLACES, (contextlib.nullcontext(), busy_process()), strict=True):
                with context:
                    for name, training in trainings.items():
                        found[name][place].append(training.turn(epochs))
    return found


def row(recipe: str, seconds: Seconds) -> list[str]:
    """Return a line of the table: medians, the factors that the busy process costs, and the cost of adapting alone."""
    medians = [statistics.median(seconds[name][place]) for name in COMMANDS for place in PLACES]
    factors = [f"{medians[place + 1] / medians[place]:.1f}" for place in (0, 2)]
    pairs = zip(seconds["adaptive"]["alone"], seconds["fixed"]["alone"], strict=True)
    cost = statistics.median(adaptive / fixed for adaptive, fixed in pairs)
    return [recipe, *(f"{each:.2f}" for each in medians), *factors, f"{cost:.2f}"]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Measure the seconds of an epoch next to a busy process.")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    turns.add_arguments(parser)
    parser.add_argument("--out", type=Path, default=OUT, help="default: %(default)s")
    arguments = parser.parse_args()
    projects.check_data(arguments.data)
    changes = turns.changed_parameters(arguments)
    columns = [f"{name}, {place}" for name in COMMANDS for place in PLACES]
    table = [["net", *columns, *(f"factor, {name}" for name in COMMANDS), "adaptive / fixed, alone"]]
    found: dict[str, Seconds] = {}
    with tempfile.TemporaryDirectory(prefix="neighbor-") as work:
        for recipe in arguments.recipes:
            folders = {name: Path(work) / recipe / name for name in COMMANDS}
            for folder in folders.values():
                projects.make(folder, recipe, RECIPES[recipe], arguments.data)
            found[recipe] = measure(folders, arguments.rounds, arguments.epochs, changes)
            table.append(row(recipe, found[recipe]))
            print(output.markdown_table([table[0], table[-1]]), flush=True)
    about = machine.describe_with_commit(("torch", "numpy"))
    files.write_json(arguments.out, {"machine": about, "changes": changes, "seconds": found})
    print(machine.sentence(about), output.markdown_table(table), sep="\n\n")


if __name__ == "__main__":
    process.run(main)
