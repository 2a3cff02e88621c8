"""Compare the speed of this working tree with that of an earlier commit: two trainings that take turns.

    uv run python -m benchmarks.turns 2e015cf~1                              # eager, before and now
    uv run python -m benchmarks.turns 2e015cf~1 --set compile=true           # before eager, now compiled
    uv run python -m benchmarks.turns HEAD --recipes vgg-cifar10 --set precision=bfloat16

On a shared machine, two processes measured one after the other differ by more than most changes gain. Here both train
the whole time, and each is stopped while the other one takes its turn. The ratio is the median of the ratios of the
turns. Takes seven minutes for the three fully connected nets on 2 cores, and prints a table. Run nothing else at
the same time.
"""

import argparse
import re
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks import ROOT, machine, output, peers, projects
from imageclf import yaml12
from imageclf.core import files, paths, process

WARM_UP = 6
"""Epochs before the first turn: MLflow's process imports its modules meanwhile, and a step is compiled."""
TRAIN = ("-m", "stages.train")
END_OF_EPOCH = re.compile(r"epoch \d+/\d+: ")
MAKE = """
import sys
from pathlib import Path
from benchmarks import projects
folder, recipe, images, data = sys.argv[1:]
projects.make(Path(folder), recipe, int(images) or None, Path(data))
"""


class Training:
    """A training that makes progress only during its turns."""

    def __init__(self, stage: subprocess.Popen[str], warm_up: int = WARM_UP) -> None:
        self._stage, self._printed = stage, []
        self._epochs(warm_up)
        stage.send_signal(signal.SIGSTOP)

    def turn(self, epochs: int) -> float:
        """Train this many whole epochs; return the mean of their seconds.

        The rest of the epoch in which the training was stopped comes first, and is not timed.
        """
        self._stage.send_signal(signal.SIGCONT)
        self._epochs(1)
        start = time.perf_counter()
        self._epochs(epochs)
        seconds = time.perf_counter() - start
        self._stage.send_signal(signal.SIGSTOP)
        return seconds / epochs

    def _epochs(self, number: int) -> None:
        assert self._stage.stdout is not None
        while number:
            line = self._stage.stdout.readline()
            if not line:
                raise RuntimeError(f"the training has ended:\n{''.join(self._printed)[-4000:]}")
            self._printed.append(line)
            number -= bool(END_OF_EPOCH.match(line))


@contextmanager
def training(folder: Path, changes: dict[str, Any], command: Sequence[str] = TRAIN) -> Iterator[Training]:
    """Run the train stage of the project in `folder`, which holds its own code, until the end of the context."""
    file = folder / paths.PARAMS
    files.write_json(file, {**yaml12.read(file), "epochs": 100_000, **changes})
    with projects.start(folder, *command, PYTHONPATH=str(folder / "src")) as stage:
        try:
            yield Training(stage)
        finally:
            stage.terminate()
            stage.send_signal(signal.SIGCONT)
            stage.communicate()


@contextmanager
def checkout(commit: str, folder: Path) -> Iterator[Path]:
    """Check out a commit in `folder` until the end of the context."""
    subprocess.run(["git", "worktree", "add", "--quiet", "--detach", folder, commit], cwd=ROOT, check=True)
    try:
        yield folder
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", folder], cwd=ROOT, check=True)


def make(code: Path, folder: Path, recipe: str, data: Path) -> Path:
    """Make a project for a recipe with the code in `code`, and return its folder."""
    folder.parent.mkdir(exist_ok=True)
    arguments = (str(folder), recipe, str(peers.RECIPES[recipe] or 0), str(data.resolve()))
    projects.run(folder.parent, "-c", MAKE, *arguments, PYTHONPATH=f"{code}:{code / 'src'}")
    return folder


def compare(before: Path, now: Path, changes: dict[str, Any], rounds: int, epochs: int) -> list[tuple[float, float]]:
    """Return seconds per epoch of the projects `before` and `now`, the latter with `changes`, of each round."""
    with ExitStack() as stack:
        pair = [stack.enter_context(training(before, {})), stack.enter_context(training(now, changes))]
        return [(pair[0].turn(epochs), pair[1].turn(epochs)) for _ in range(rounds)]


def row(recipe: str, seconds: Sequence[tuple[float, float]]) -> list[str]:
    """Return a line of the table."""
    ratios = sorted(now / before for before, now in seconds)
    before, now = (statistics.median(column) for column in zip(*seconds, strict=True))
    spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
    return [recipe, f"{before:.3g}", f"{now:.3g}", f"{statistics.median(ratios):.2f}", spread]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --set, --rounds, --epochs and --data."""
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="parameters of this working tree")
    parser.add_argument("--rounds", type=int, default=8, help="turns of each training (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=2, help="timed epochs of a turn (default: %(default)s)")
    projects.add_data_argument(parser)


def changed_parameters(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the values that --set gives, by parameter."""
    return {name: yaml12.parse(value, "--set") for name, _, value in (each.partition("=") for each in arguments.set)}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Compare the speed of this working tree with that of a commit.")
    parser.add_argument("commit", help="the earlier commit")
    parser.add_argument("--recipes", nargs="+", choices=peers.RECIPES, default=["fc500", "keras512", "mlp5"])
    add_arguments(parser)
    arguments = parser.parse_args()
    projects.check_data(arguments.data)
    changes = changed_parameters(arguments)
    table = [["net", f"s per epoch, {arguments.commit}", "now", "ratio", "of the rounds"]]
    with tempfile.TemporaryDirectory(prefix="turns-") as work, checkout(arguments.commit, Path(work) / "code") as code:
        for recipe in arguments.recipes:
            before = make(code, Path(work) / "before" / recipe, recipe, arguments.data)
            now = make(ROOT, Path(work) / "now" / recipe, recipe, arguments.data)
            table.append(row(recipe, compare(before, now, changes, arguments.rounds, arguments.epochs)))
            print(output.markdown_table([table[0], table[-1]]), flush=True)
    print(machine.sentence(machine.describe_with_commit(("torch",))), output.markdown_table(table), sep="\n\n")


if __name__ == "__main__":
    process.run(main)
