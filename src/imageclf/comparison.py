"""Groups of experiments side by side: what each scored over its seeds, and which of them really differ."""

import csv
import io
import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from imageclf import experiments, paths
from imageclf.errors import UserError
from imageclf.experiments import Experiment
from imageclf.significance import LEVEL, McNemar, Reference, Summary, Welch, holm, mcnemar, summarize, welch


@dataclass(frozen=True)
class Group:
    """A recipe's experiments, one for each seed; an experiment on its own is a group of one."""

    name: str
    members: dict[int, Experiment]

    def values(self, split: str, score: str) -> list[float]:
        """A number of each member's metrics."""
        return [member.metrics[split][score] for member in self.members.values()]

    @cached_property
    def accuracy(self) -> Summary:
        """Of the test split."""
        return summarize(self.values("test", "accuracy"))


@dataclass(frozen=True)
class Pair:
    """Two groups: Welch's test over their seeds, and McNemar's of net against net."""

    first: Group
    second: Group
    over_seeds: Welch | None
    """None where a group has a single seed."""
    on_images: dict[int, McNemar]
    """By seed, of the seeds that both have; of two single nets whatever their seeds. None of other test images."""
    p: float | None
    """Of `over_seeds`, or of two single nets on the same images, else None; raised for the number of pairs."""


@dataclass(frozen=True)
class Comparison:
    """What is shown: groups that were started from `commit`, pairs of them, and references by group."""

    title: str
    commit: str
    groups: Sequence[Group]
    pairs: Sequence[Pair]
    references: dict[str, Reference] = field(default_factory=dict)


def groups(names: Iterable[str], found: dict[str, Experiment]) -> list[Group]:
    """`name` is every experiment `<name>-s<seed>`, else the experiment `name`.

    Raises `UserError` for a name that has none, or some that have not ended well or differ in more than the seed.
    """
    return [_group(name, found) for name in dict.fromkeys(names)]


def _group(name: str, found: dict[str, Experiment]) -> Group:
    members = [each for each in found.values() if re.fullmatch(rf"{re.escape(name)}-s\d+", each.name)]
    if not members and name in found:
        members = [found[name]]
    if not members:
        have = sorted({re.sub(r"-s\d+$", "", each) for each in found})
        raise UserError(
            f"there is no experiment {name} or {name}-s0 on this commit, only {', '.join(have) or 'none'}: "
            f"`uv run python -m imageclf.recipes {name}` runs a recipe, and --rev names another commit"
        )
    if unfinished := [f"{each.name} ({each.state})" for each in members if not each.complete]:
        raise UserError(
            f"not all of {name} has ended well: {', '.join(unfinished)}; "
            "the command that queued it, `uv run python -m imageclf.recipes ...`, follows it or runs it again"
        )
    _check_sample(name, members)
    return Group(name, {each.params["seed"]: each for each in sorted(members, key=lambda each: each.params["seed"])})


def _check_sample(name: str, members: list[Experiment]) -> None:
    """Raise `UserError` unless the members differ in the seed, and in nothing else."""
    keys = set().union(*(each.params for each in members)) - {"seed", "runtime"}
    different = [
        key for key in sorted(keys) if any(each.params.get(key) != members[0].params.get(key) for each in members)
    ]
    if different:
        raise UserError(f"the experiments {name}-s* differ in {', '.join(different)}, not in the seed alone")
    if len({each.params["seed"] for each in members}) < len(members):
        raise UserError(f"of the experiments {name}-s* some have a seed in common: they are no sample of seeds")


def pairs(groups: Sequence[Group], chosen: Sequence[tuple[str, str]] | None = None) -> list[Pair]:
    """The chosen pairs, else every two groups, tested; each p is raised for the number of pairs (Holm)."""
    by_name = {group.name: group for group in groups}
    couples = chosen or itertools.combinations(by_name, 2)
    tested = [_pair(by_name[first], by_name[second]) for first, second in couples]
    raised = iter(holm([pair.p for pair in tested if pair.p is not None]))
    return [
        pair if pair.p is None else Pair(pair.first, pair.second, pair.over_seeds, pair.on_images, next(raised))
        for pair in tested
    ]


def _pair(first: Group, second: Group) -> Pair:
    single = first.accuracy.n == second.accuracy.n == 1
    several = min(first.accuracy.n, second.accuracy.n) > 1
    couples = {seed: (first.members[seed], second.members[seed]) for seed in first.members if seed in second.members}
    if single:  # two nets may be compared whatever their seeds
        couples = {0: (*first.members.values(), *second.members.values())}
    recognized = {seed: _recognized_by_both(*couple) for seed, couple in couples.items()}
    on_images = {seed: mcnemar(*both) for seed, both in recognized.items() if both}
    if several:
        over_seeds = welch(first.accuracy, second.accuracy)
        return Pair(first, second, over_seeds, on_images, over_seeds.p)
    return Pair(first, second, None, on_images, on_images[0].p if single and on_images else None)


def _recognized_by_both(first: Experiment, second: Experiment) -> tuple[NDArray[np.bool_], NDArray[np.bool_]] | None:
    """Which test images each recognized; None where the images are not the same, or the predictions not at hand."""
    if any(first.params.get(key) != second.params.get(key) for key in ("dataset", "folder", "classes")):
        return None
    texts = [experiments.read(each.revision, paths.PREDICTIONS) for each in (first, second)]
    if any(text is None for text in texts):
        return None
    ours, theirs = ([*csv.DictReader(io.StringIO(text))] for text in texts)
    if [row["actual"] for row in ours] != [row["actual"] for row in theirs]:
        return None
    right, also = (np.array([row["actual"] == row["predicted"] for row in rows]) for rows in (ours, theirs))
    return right, also


def sentence(pair: Pair) -> str:
    """What may be said of a pair; chance is not called a difference."""
    first, second = sorted((pair.first, pair.second), key=lambda group: -group.accuracy.mean)
    numbers = f"{percent(first.accuracy)} against {percent(second.accuracy)}, {_count(first, second)}"
    if pair.p is None:
        single = first.accuracy.n == second.accuracy.n == 1
        reason = "no predictions of the same images" if single else "a single seed on one side"
        return f"{first.name} and {second.name} cannot be compared by a test ({numbers}): {reason}"
    test = f"p{'<0.001' if pair.p < 0.001 else f'={pair.p:.2g}'}"
    if pair.over_seeds and pair.on_images:
        differing = sum(p < 1 - LEVEL for p in holm([each.p for each in pair.on_images.values()]))
        test += f"; net against net on the same images, {differing} of {len(pair.on_images)} seeds differ"
    if pair.p >= 1 - LEVEL:
        return f"{first.name} and {second.name} cannot be told apart: {numbers}, {test}"
    points = 100 * (first.accuracy.mean - second.accuracy.mean)
    better = f"{first.name} is better than {second.name} by {points:.2f} points"
    if pair.over_seeds is None:
        return f"{better} on the same images: {numbers}, {test}; of the recipes only more seeds can tell"
    low, high = sorted(100 * abs(end) for end in pair.over_seeds.interval)
    return f"{better} ({LEVEL:.0%} interval {low:.2f} to {high:.2f}): {numbers}, {test}"


def ends(accuracy: Summary) -> tuple[float, float] | None:
    """The interval in percent, cut at 0 and 100: with few seeds it may reach beyond; None for a single value."""
    if accuracy.interval is None:
        return None
    low, high = accuracy.interval
    return max(0.0, 100 * low), min(100.0, 100 * high)


def percent(accuracy: Summary) -> str:
    """`98.01 ± 0.08`, or `98.01` for a single value."""
    spread = "" if accuracy.std is None else f" ± {100 * accuracy.std:.2f}"
    return f"{100 * accuracy.mean:.2f}{spread}"


def _count(first: Group, second: Group) -> str:
    sizes = first.accuracy.n, second.accuracy.n
    return f"n={sizes[0]}" if sizes[0] == sizes[1] else f"n={sizes[0]} and {sizes[1]}"
