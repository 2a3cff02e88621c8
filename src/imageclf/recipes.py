"""Run recipes, the named sets of parameters in recipes.yaml, as DVC experiments, several seeds of each.

    uv run python -m imageclf.recipes fc500 keras512 --seeds 5

Each becomes an experiment `<recipe>-s<seed>` in DVC's queue, so that all of them run the code as it was when they
were queued, and `dvc exp show`, `dvc queue` and MLflow know them. The seed sets `seed`: weights, order, dropout and
augmentation; not `split_seed` and `permute_seed`, so that all seeds see the same images. What ran before with
equal parameters and code is not run again (the images of `dataset: folder` are not looked at). Other experiments
that wait in the queue run along.
"""

import argparse
import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from imageclf import errors, experiments, follow, params, paths, yaml12
from imageclf.errors import UserError
from imageclf.experiments import Experiment

RECIPES = Path("recipes.yaml")
TAIL = 15
"""Lines shown of a failed experiment's log."""

Values = dict[str, Any]


def read(path: Path = RECIPES) -> dict[str, Values]:
    """Each recipe's parameters: those in `common`, then those of the recipe that it is `like`, then its own."""
    book = yaml12.read(path)
    return {name: {**book["common"], **_own(name, book["recipes"])} for name in book["recipes"]}


def _own(name: str, entries: dict[str, Values]) -> Values:
    values = dict(entries[name])
    model = values.pop("like", None)
    return {**_own(model, entries), **values} if model else values


def choose(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """`names` without repetitions; raises `UserError` for one that is not known, with the nearest that is."""
    names, known = list(dict.fromkeys(names)), list(known)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            raise UserError(f"{name!r} is not a recipe in {RECIPES}; {hint}")
    return names


def plan(names: Iterable[str], seeds: int, changes: Values) -> dict[str, Values]:
    """The parameters of every experiment by its name; raises `UserError` where params.yaml would refuse them."""
    if "seed" in changes:
        raise UserError("seed: is set for each experiment; --seeds says how many there are")
    book, base = read(), yaml12.read(paths.PARAMS)
    planned: dict[str, Values] = {}
    for name in choose(names, book):
        values = {**book[name], **changes}
        params.validate(merge(base, values), f"recipe {name}")
        planned |= {f"{name}-s{seed}": {**values, "seed": seed} for seed in range(seeds)}
    return planned


def merge(base: Values, changes: Values) -> Values:
    """What params.yaml holds once DVC has applied `changes`; `runtime.threads` is a key of the group `runtime`."""
    merged = {key: dict(value) if isinstance(value, dict) else value for key, value in base.items()}
    for key, value in changes.items():
        group, _, name = key.rpartition(".")
        inner = merged.get(group)
        if isinstance(inner, dict):
            inner[name] = value
        else:
            merged[key] = value
    return merged


def override(key: str, value: object) -> str:
    """`key=value` for `dvc exp run --set-param`, in Hydra's grammar."""
    return f"{key}={_render(value)}"


def _render(value: object) -> str:
    match value:
        case None | bool():
            return {None: "null", True: "true", False: "false"}[value]
        case str():
            # Within quotes a quote is escaped, and so are the backslashes before it or at the end; and OmegaConf's ${.
            text = re.sub(r"(\\*)(\$\{|')", r"\1\1\\\2", value)
            return "'" + re.sub(r"(\\+)\Z", r"\1\1", text) + "'"
        case list():
            return f"[{','.join(map(_render, value))}]"
        case _:
            return repr(value)


def parse_changes(texts: Iterable[str]) -> Values:
    """`key=value`, the value as one would write it in params.yaml; raises `UserError` where there is no `=`."""
    changes: Values = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--set {text}: should be key=value")
        changes[key.strip()] = yaml12.parse(value, f"--set {text}")
    return changes


def missing(planned: dict[str, Values], known: dict[str, Experiment]) -> list[str]:
    """The names that are yet to be queued; raises `UserError` for those that DVC has with other contents."""
    base = yaml12.read(paths.PARAMS)
    stale = [name for name in planned if name in known and known[name].state != "failed"]
    reasons = {name: _why_stale(known[name], merge(base, planned[name])) for name in stale}
    wrong = {name: reason for name, reason in reasons.items() if reason}
    if wrong:
        lines = "\n".join(f"{name} exists {reason}" for name, reason in wrong.items())
        raise UserError(f"{lines}\n`uv run dvc exp remove {' '.join(wrong)}` removes them")
    return [name for name in planned if name not in stale]


def _why_stale(experiment: Experiment, wanted: Values) -> str | None:
    """Why an experiment is not what running `wanted` now would give; None if it is, or will be once it ends."""
    keys = sorted((wanted.keys() | experiment.params.keys()) - {"runtime"})
    pairs = [(key, experiment.params.get(key), wanted.get(key)) for key in keys]
    different = [f"{key} {had!r}, not {new!r}" for key, had, new in pairs if params.as_list(had) != params.as_list(new)]
    if different:
        return f"with other parameters: {', '.join(different)}"
    if changed := experiments.changed_code(experiment):
        return f"but was made by other code: {', '.join(changed)} changed since"
    if experiment.state == "success" and not experiment.complete:
        return "without results"
    return None


def run(names: Sequence[str], seeds: int, jobs: int, changes: Values) -> None:
    """Queue what is not there yet and wait until all is; raises `UserError` if an experiment failed."""
    planned = plan(names, seeds, changes)
    known = experiments.show()
    new = missing(planned, known)
    waiting = [name for name in planned if name in new or not known[name].complete]
    print(f"{len(planned) - len(waiting)} of {len(planned)} experiments are there already")
    if new:
        experiments.check_identity()
    experiments.forget_failed([name for name in new if name in known])
    _queue(new, planned)
    if waiting:
        _follow({name: planned[name] for name in waiting}, jobs)


def _queue(names: Iterable[str], planned: dict[str, Values]) -> None:
    for name in names:
        experiments.queue(name, [override(key, value) for key, value in planned[name].items()])
        print(f"queued {name}", flush=True)


def _follow(planned: dict[str, Values], jobs: int) -> None:
    """Run the queue and print a line for each experiment as it ends; raises `UserError` in the end if one failed."""
    names, failed = list(planned), []

    def revive(left: list[str]) -> None:
        print("DVC's queue worker ended before its time: starting it again", flush=True)
        experiments.forget_failed(left)
        _queue(left, planned)
        experiments.start(jobs)

    try:
        experiments.start(jobs)
        for number, experiment in enumerate(follow.ended(names, revive), start=1):
            print(f"{number}/{len(names)} {experiment.name}: {_outcome(experiment)}", flush=True)
            if not experiment.complete:
                failed.append(experiment.name)
    except KeyboardInterrupt:
        print(
            "\nthe queue runs on in the background; the same command follows it again, "
            "`uv run dvc queue stop --kill` ends it, `uv run dvc queue remove --queued` empties it"
        )
        raise
    if failed:
        raise UserError(f"{len(failed)} of {len(names)} failed: {', '.join(failed)}; the same command runs them again")


def _outcome(experiment: Experiment) -> str:
    if experiment.complete:
        return f"test accuracy {experiment.metrics['test']['accuracy']:.2%}"
    log = experiment.log
    text = log.read_text(errors="replace") if log and log.is_file() else "it left no log"
    lines = [line for line in text.splitlines() if line.strip()]
    return "\n".join(["failed", *(f"    {line}" for line in lines[-TAIL:])])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Run recipes from recipes.yaml as DVC experiments.")
    parser.add_argument("recipe", nargs="*", help="names in recipes.yaml")
    parser.add_argument("--all", action="store_true", help="every recipe")
    parser.add_argument("--list", action="store_true", help="show the recipes and run nothing")
    parser.add_argument("--seeds", type=int, default=1, help="how many: seeds 0, 1, ... (default 1)")
    parser.add_argument("--jobs", type=int, default=1, help="experiments at a time (default 1)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a parameter in all")
    arguments = parser.parse_args()
    if arguments.list:
        for name, values in yaml12.read(RECIPES)["recipes"].items():
            print(name, *(f"{key}={value}" for key, value in values.items()))
        return
    names = list(read()) if arguments.all else arguments.recipe
    if not names or arguments.seeds < 1 or arguments.jobs < 1:
        parser.error("name at least one recipe, or --all, or --list; --seeds and --jobs count from 1")
    run(names, arguments.seeds, arguments.jobs, parse_changes(arguments.set))


if __name__ == "__main__":
    errors.run(main)
