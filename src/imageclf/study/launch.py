"""Run recipes as DVC experiments, several seeds of each: the command `imageclf recipes`.

    uv run imageclf recipes fc500 keras512 --seeds 5

Each experiment is named `<recipe>-s<seed>` and waits in DVC's queue, so that all of them run the code as it was when
they were queued, and `dvc exp show`, `dvc queue` and MLflow list them. The seed sets `seed` (weights, order, dropout
and augmentation), not `split_seed` and `permute_seed`: all seeds see the same images. An experiment that exists with
equal parameters and code is not run again. A changed image in the folder of `dataset: folder` is not noticed: remove
the experiment with `dvc exp remove` first. Other experiments in the queue run too.
"""

import argparse
from collections.abc import Iterable

from imageclf import commands, yaml12
from imageclf.core import paths
from imageclf.core.errors import UserError
from imageclf.study import experiments, follow, recipes
from imageclf.study.experiments import Experiment
from imageclf.study.recipes import Values

TAIL = 15
"""Lines shown of the log of a failed experiment."""


def run(planned: dict[str, Values], jobs: int) -> None:
    """Queue the experiments that do not exist and wait until all have ended; raise `UserError` if one failed."""
    with experiments.tree_at_rest():
        known = experiments.show()
        new = missing(planned, known)
    waiting = [name for name in planned if name in new or not known[name].complete]
    print(f"{len(planned) - len(waiting)} of {len(planned)} experiments exist already")
    if new:
        commands.check_identity()
    experiments.forget_failed([name for name in new if name in known])
    _queue(new, planned)
    if waiting:
        _follow({name: planned[name] for name in waiting}, jobs)


def missing(planned: dict[str, Values], known: dict[str, Experiment]) -> list[str]:
    """Return the names to queue; raise `UserError` for experiments that exist with other content."""
    base = yaml12.read(paths.PARAMS)
    existing = [name for name in planned if name in known and known[name].state != "failed"]
    reasons = {name: _why_other(known[name], recipes.merge(base, planned[name])) for name in existing}
    wrong = {name: reason for name, reason in reasons.items() if reason}
    if wrong:
        lines = "\n".join(f"{name} exists {reason}" for name, reason in wrong.items())
        raise UserError(f"{lines}\n`uv run dvc exp remove {' '.join(wrong)}` removes them")
    return [name for name in planned if name not in existing]


def _why_other(experiment: Experiment, wanted: Values) -> str | None:
    """Return the reason why an experiment differs from what running `wanted` now would give; None if it does not."""
    keys = sorted((wanted.keys() | experiment.params.keys()) - {"runtime"})
    if different := recipes.differences(experiment.params, wanted, keys):
        listed = ", ".join(f"{key} {had!r}, not {new!r}" for key, (had, new) in different.items())
        return f"with other parameters: {listed}"
    if changed := experiments.changed_code(experiment):
        return f"but was made by other code: {', '.join(changed)} changed since"
    if experiment.state == "success" and not experiment.complete:
        return "without results"
    return None


def _queue(names: Iterable[str], planned: dict[str, Values]) -> None:
    for name in names:
        experiments.queue(name, planned[name])
        print(f"queued {name}", flush=True)


def _follow(planned: dict[str, Values], jobs: int) -> None:
    """Run the queue and print a line as each experiment ends; raise `UserError` at the end if one failed."""
    names, failed = list(planned), []

    def restart(left: list[str]) -> None:
        print("DVC's queue worker died; starting it again", flush=True)
        experiments.forget_failed(left)
        _queue(left, planned)
        experiments.start(jobs)

    try:
        experiments.start(jobs)
        for number, experiment in enumerate(follow.ended(names, restart), start=1):
            print(f"{number}/{len(names)} {experiment.name}: {_outcome(experiment)}", flush=True)
            if not experiment.complete:
                failed.append(experiment.name)
    except KeyboardInterrupt:
        print(
            "\nthe queue continues in the background; the same command follows it again, "
            "`uv run dvc queue stop --kill` ends it, `uv run dvc queue remove --queued` empties it"
        )
        raise
    if failed:
        raise UserError(f"{len(failed)} of {len(names)} failed: {', '.join(failed)}; the same command runs them again")


def _outcome(experiment: Experiment) -> str:
    if experiment.complete:
        return f"test accuracy {experiment.metrics['test']['accuracy']:.2%}"
    log = experiment.log
    text = log.read_text(errors="replace") if log and log.is_file() else "no log exists"
    lines = [line for line in text.splitlines() if line.strip()]
    return "\n".join(["failed", *(f"    {line}" for line in lines[-TAIL:])])


def add_options(parser: argparse.ArgumentParser, seeds: int) -> None:
    """Add the options `--seeds` (with this default), `--jobs` and `--set`."""
    parser.add_argument("--seeds", type=count, default=seeds, help=f"number of seeds: 0, 1, ... (default {seeds})")
    parser.add_argument("--jobs", type=count, default=1, help="experiments that run at a time (default 1)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a parameter in all")


def count(text: str) -> int:
    """Parse a whole number of at least 1 for `argparse`."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"should be a whole number of at least 1, not {text!r}")
    return int(text)


def main(arguments: list[str] | None = None, prog: str | None = None) -> None:
    """Run the command `imageclf recipes`."""
    parser = argparse.ArgumentParser(prog, description="Run recipes from recipes.yaml as DVC experiments.")
    parser.add_argument("recipe", nargs="*", help="names in recipes.yaml")
    parser.add_argument("--all", action="store_true", help="run every recipe")
    parser.add_argument("--list", action="store_true", help="show the recipes and run nothing")
    add_options(parser, seeds=1)
    given = parser.parse_args(arguments)
    if given.list:
        for name, values in yaml12.read(recipes.RECIPES)["recipes"].items():
            print(name, *(f"{key}={value}" for key, value in values.items()))
        return
    names = list(recipes.read()) if given.all else given.recipe
    if not names:
        parser.error("name at least one recipe, or use --all or --list")
    run(recipes.plan(names, given.seeds, recipes.parse_changes(given.set)), given.jobs)
