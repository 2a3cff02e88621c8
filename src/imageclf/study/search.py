"""Search for good parameters: the command `imageclf search`.

    uv run --group search imageclf search lr=0.0001..0.1 model=mlp,cnn hidden=[128],[256,128] --trials 20 --jobs 2

Optuna proposes values; each trial is a DVC experiment `<name>-<number>` in DVC's queue. A range that spans a factor of
ten or more is searched on a logarithmic scale. The goal is the validation accuracy; the test split plays no part. The
same command continues a search that was interrupted.
"""

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from imageclf import params, yaml12
from imageclf.core import paths
from imageclf.core.errors import UserError
from imageclf.study import experiments, launch, recipes
from imageclf.study.recipes import Values

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

Space = dict[str, "BaseDistribution"]
"""The values to search, by parameter. The choices of a categorical distribution are JSON texts."""

SHOWN = 5
"""Number of the best trials that are listed at the end."""


def parse_space(texts: Sequence[str], base: Values) -> Space:
    """Parse `key=low..high` and `key=choice,choice`; raise `UserError` for a value that params.yaml would refuse."""
    space: Space = {}
    for text in texts:
        key, _, given = (part.strip() for part in text.partition("="))
        low, dots, high = given.partition("..")
        ends = [yaml12.parse(end, text) for end in (low, high)] if dots else yaml12.parse(f"[{given}]", text)
        for value in ends:
            params.validate(recipes.merge(base, {key: value}), text)
        space[key] = _distribution(text, ends, is_range=bool(dots))
    return space


def _distribution(text: str, ends: list[Any], *, is_range: bool) -> "BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not is_range:
        if len(ends) < 2:
            raise UserError(
                f"{text}: name two choices or more, such as model=mlp,cnn, or a range such as lr=0.001..0.1"
            )
        return CategoricalDistribution([json.dumps(value) for value in ends])
    low, high = ends
    if not all(type(end) in {int, float} for end in ends) or low >= high:
        raise UserError(f"{text}: the ends of a range should be two numbers, the smaller one first")
    log = low > 0 and high >= 10 * low
    kind = IntDistribution if type(low) is type(high) is int else FloatDistribution
    return kind(low, high, log=log)


def values_of(trial: "Trial | FrozenTrial", space: Space) -> Values:
    """Return the parameters of a trial; floats have four digits."""
    from optuna.distributions import CategoricalDistribution

    found: Values = {}
    for key, value in trial.params.items():
        if isinstance(space[key], CategoricalDistribution):
            found[key] = json.loads(value)
        else:
            found[key] = float(f"{value:.4g}") if isinstance(value, float) else value
    return found


def run(study: "Study", space: Space, trials: int, jobs: int) -> None:
    """Run rounds of `jobs` trials until `trials` have ended; raise `UserError` if all trials of a round fail."""
    from optuna.samplers import TPESampler
    from optuna.trial import TrialState

    while True:
        known = proposed(study, space)
        waiting = [trial for trial in known if trial.state == TrialState.RUNNING]  # left by an interrupted search
        ended = len(known) - len(waiting)
        # The seed is the number of trials: a sampler with one seed would propose the same values after each restart.
        study.sampler = TPESampler(seed=len(study.trials), constant_liar=True)
        chosen = [*waiting, *(study.ask(space) for _ in range(min(jobs, trials - ended) - len(waiting)))]
        if not chosen:
            return
        _run_round(study, {f"{study.study_name}-{trial.number}": trial for trial in chosen}, space, jobs)


def proposed(study: "Study", space: Space) -> "list[FrozenTrial]":
    """Return the trials that have all values; a search that is killed while it proposes them leaves one without."""
    return [trial for trial in study.trials if trial.params.keys() == space.keys()]


def _run_round(study: "Study", chosen: "dict[str, Trial | FrozenTrial]", space: Space, jobs: int) -> None:
    """Run these trials and store their scores; raise `UserError` if none has one, or if some have not ended."""
    from optuna.trial import TrialState

    failure: UserError | None = None
    try:
        launch.run({name: values_of(trial, space) for name, trial in chosen.items()}, jobs)
    except UserError as error:
        failure = error
    known = experiments.show()
    found = {name: known[name] for name in chosen if name in known and known[name].state in {"success", "failed"}}
    scores = {name: each.metrics["val"]["accuracy"] for name, each in found.items() if each.complete}
    if failure and not (scores and found.keys() == chosen.keys()):
        raise failure
    for name, trial in chosen.items():
        study.tell(trial.number, scores.get(name), state=None if name in scores else TrialState.FAIL)


def summarize(study: "Study", space: Space) -> str:
    """Return lines about the best trials, and how to get the best one."""
    from optuna.trial import TrialState

    done = sorted(study.get_trials(states=[TrialState.COMPLETE]), key=lambda trial: -(trial.value or 0))
    lines = [f"validation accuracy of the best of {len(proposed(study, space)):,} trials:"]
    for trial in done[:SHOWN]:
        values = values_of(trial, space)
        changes = " ".join(experiments.override(*pair) for pair in values.items())
        lines.append(f"  {study.study_name}-{trial.number}: {trial.value:.2%} with {changes}")
    best = f"{study.study_name}-{done[0].number}"
    lines.append(f"`uv run dvc exp apply {best}` brings the best one into the working tree, with its test scores")
    return "\n".join(lines)


def open_study(name: str, space: Space, base: Values) -> "Study":
    """Open the search of this name, or a new one; raise `UserError` if it was begun with something else."""
    import optuna
    from optuna.distributions import distribution_to_json

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = paths.repository() / ".resume/search.db"
    storage.parent.mkdir(exist_ok=True)
    study = optuna.create_study(
        storage=f"sqlite:///{storage}", study_name=name, direction="maximize", load_if_exists=True
    )
    begun_with = {
        "values": {key: distribution_to_json(each) for key, each in space.items()},
        "params.yaml": {key: value for key, value in base.items() if key != "runtime"},
        "commit": experiments.commit("HEAD"),
    }
    known = study.user_attrs or begun_with
    if different := [key for key, value in begun_with.items() if known[key] != value]:
        raise UserError(f"the search {name!r} was begun with other {', '.join(different)}; choose another --name")
    for key, value in begun_with.items():
        study.set_user_attr(key, value)
    return study


def main(arguments: list[str] | None = None, prog: str | None = None) -> None:
    """Run the command `imageclf search`."""
    parser = argparse.ArgumentParser(prog, description="Search for the parameters with the best validation accuracy.")
    parser.add_argument("values", nargs="+", metavar="KEY=VALUES", help="lr=0.0001..0.1, or model=mlp,cnn")
    parser.add_argument("--trials", type=launch.count, default=20, help="experiments in all (default 20)")
    parser.add_argument("--jobs", type=launch.count, default=1, help="experiments that run at a time (default 1)")
    parser.add_argument("--name", default="search", help="name of the search and of its experiments (default search)")
    given = parser.parse_args(arguments)
    with experiments.tree_at_rest():  # an interrupted search may have left DVC at work
        base = yaml12.read(paths.PARAMS)
    if not base.get("val_fraction"):
        raise UserError("search needs validation images; set val_fraction in params.yaml, for example to 0.1")
    try:
        space = parse_space(given.values, base)
    except ModuleNotFoundError as error:
        raise UserError(f"search needs {error.name}; `uv run --group search imageclf search ...` installs it") from None
    study = open_study(given.name, space, base)
    run(study, space, given.trials, given.jobs)
    print(summarize(study, space))
