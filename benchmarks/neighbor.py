"""Measure how long an epoch takes next to one busy process, by the time for which waiting threads spin.

    uv run python -m benchmarks.neighbor

Each round trains every recipe with every spin count (`GOMP_SPINCOUNT`), first alone and then next to a Python process
that never waits. An epoch is timed from one printed line to the next; the numbers are medians. Takes about half an hour
on 2 cores and writes docs/neighbor.json. Run nothing else at the same time.
"""

import argparse
import contextlib
import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import machine, projects
from imageclf import yaml12
from imageclf.core import files, paths, process

OUT = Path("docs/neighbor.json")
RECIPES: dict[str, int | None] = {"fc500": None, "mlp5": 20_000, "cnn6": 18_000, "cifar-cnn": 9_000}
"""Recipes, and the number of train images of each (None: all)."""
SPIN_COUNTS = ("1000", "3000", "10000")
"""Rounds. By default, libgomp spins for about 300,000."""
EPOCHS = 6
WARM_UP = 3
"""Epochs that are not timed: MLflow's process imports its modules meanwhile."""


@contextlib.contextmanager
def busy_process() -> Iterator[None]:
    """Run a process that never waits."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as neighbor:
        try:
            yield
        finally:
            neighbor.kill()


def epoch_seconds(project: Path, spin_count: str) -> float:
    """Return the median seconds of an epoch after the warm-up."""
    ends: list[float] = []
    with projects.start(project, "-m", "stages.train", GOMP_SPINCOUNT=spin_count) as stage:
        assert stage.stdout is not None
        ends.extend(time.perf_counter() for line in stage.stdout if line.startswith("epoch "))
    assert stage.returncode == 0
    assert len(ends) == EPOCHS
    return statistics.median(end - start for start, end in itertools.pairwise(ends[WARM_UP - 1 :]))


def measure(work: Path, data: Path, rounds: int) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the seconds of an epoch, and the factor that the neighbor costs, by recipe and spin count."""
    names = ("alone", "next to a busy process")
    found: dict[str, dict[str, dict[str, Any]]] = {
        recipe: {count: {name: [] for name in names} for count in SPIN_COUNTS} for recipe in RECIPES
    }
    for recipe, images in RECIPES.items():
        projects.make(work / recipe, recipe, images, data)
        file = work / recipe / paths.PARAMS
        files.write_json(file, {**yaml12.read(file), "epochs": EPOCHS})
    for _ in range(rounds):
        for recipe, by_count in found.items():
            for count, seconds in by_count.items():
                seconds[names[0]].append(epoch_seconds(work / recipe, count))
                with busy_process():
                    seconds[names[1]].append(epoch_seconds(work / recipe, count))
                alone, shared = (statistics.median(seconds[name]) for name in names)
                seconds["factor"] = shared / alone
                print(f"{recipe}, {count}: {alone:.2f} s alone, {shared:.2f} s, {shared / alone:.1f} times", flush=True)
    return found


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Measure the seconds of an epoch next to a busy process.")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=OUT, help="default: %(default)s")
    projects.add_data_argument(parser)
    arguments = parser.parse_args()
    projects.check_data(arguments.data)
    with tempfile.TemporaryDirectory(prefix="neighbor-") as work:
        content = {
            "machine": machine.describe_with_commit(("torch", "numpy")),
            "seconds": measure(Path(work), arguments.data, arguments.rounds),
        }
    files.write_json(arguments.out, content)


if __name__ == "__main__":
    process.run(main)
