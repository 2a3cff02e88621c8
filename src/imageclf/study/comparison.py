"""Groups of experiments compared: the scores of each over its seeds, and which of them differ significantly."""

import csv
import io
import itertools
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from imageclf.core import paths
from imageclf.core.errors import UserError
from imageclf.study import experiments, recipes
from imageclf.study.experiments import Experiment
from imageclf.study.recipes import Differences, Values
from imageclf.study.significance import (
    CONFIDENCE_LEVEL,
    McNemar,
    Reference,
    Summary,
    Welch,
    holm,
    mcnemar,
    percent,
    summarize,
    welch,
)


@dataclass(frozen=True)
class Group:
    """The experiments of a recipe, by seed. A single experiment is a group of one."""

    name: str
    members: dict[int, Experiment]

    def values(self, split: str, score: str) -> list[float]:
        """Return one score of each member."""
        return [member.metrics[split][score] for member in self.members.values()]

    @cached_property
    def accuracy(self) -> Summary:
        """Test accuracy, 0 to 1."""
        return summarize(self.values("test", "accuracy"))

    @cached_property
    def parameters(self) -> Values:
        """Parameters that all members share: all except `seed` and `runtime`."""
        first = next(iter(self.members.values()))
        return {key: value for key, value in first.params.items() if key not in {"seed", "runtime"}}


@dataclass(frozen=True)
class Pair:
    """Two groups, Welch's test over their seeds, and McNemar's test of net against net on the same images."""

    first: Group
    second: Group
    over_seeds: Welch | None
    """Result over the seeds; None if a group has a single seed."""
    on_images: dict[int, McNemar]
    """Results by seed, for the seeds that both groups have; key 0 for two single nets, even if their seeds differ.

    Empty if the test images differ or the predictions are not in DVC's cache.
    """
    p: float | None
    """p-value of `over_seeds` or of two single nets, adjusted for the number of pairs; None without a test."""


@dataclass(frozen=True)
class Comparison:
    """Content of a page: groups of experiments on `commit`, pairs of groups, and references by group."""

    title: str
    commit: str
    groups: Sequence[Group]
    pairs: Sequence[Pair]
    references: Mapping[str, Reference] = field(default_factory=dict)
    differences: Mapping[str, Differences] = field(default_factory=dict)
    """Groups that did not run with the parameters of the recipe of their name."""
    not_measured: Collection[str] = ()
    """Recipes that have no experiments yet."""
    labels: tuple[str, str] | None = None
    """Words for the first and for the second group of each pair; None if the plot has one row per group."""
    note: str = ""
    """Sentences that end the page."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Duration of the train stage, by experiment."""


def groups(names: Iterable[str], found: dict[str, Experiment]) -> list[Group]:
    """Return a group for each name: all experiments `<name>-s<seed>`, or else the experiment `<name>`.

    Raises `UserError` for a name without experiments, with unfinished ones, or with ones that differ not only in the
    seed.
    """
    return [_group(name, found) for name in dict.fromkeys(names)]


def _group(name: str, found: dict[str, Experiment]) -> Group:
    members = [each for each in found.values() if re.fullmatch(rf"{re.escape(name)}-s\d+", each.name)]
    if not members and name in found:
        members = [found[name]]
    if not members:
        existing = sorted({_recipe_name(each) for each in found})
        raise UserError(
            f"there is no experiment {name} or {name}-s0 on this commit, only {', '.join(existing) or 'none'}; "
            f"`uv run imageclf recipes {name}` runs a recipe, and --rev names another commit"
        )
    if unfinished := [f"{each.name} ({each.state})" for each in members if not each.complete]:
        raise UserError(
            f"{name} is not finished: {', '.join(unfinished)}; "
            "the command that queued it, `uv run imageclf recipes ...`, waits for it or runs it again"
        )
    _check_sample(name, members)
    return Group(name, {each.params["seed"]: each for each in sorted(members, key=lambda each: each.params["seed"])})


def _recipe_name(experiment: str) -> str:
    return re.sub(r"-s\d+$", "", experiment)


def _check_sample(name: str, members: list[Experiment]) -> None:
    """Raise `UserError` unless the members differ in the seed only."""
    keys = sorted(set().union(*(each.params for each in members)) - {"seed", "runtime"})
    different = set().union(*(recipes.differences(each.params, members[0].params, keys) for each in members))
    if different:
        raise UserError(f"the experiments {name}-s* differ in {', '.join(sorted(different))}, not only in the seed")
    if len({each.params["seed"] for each in members}) < len(members):
        raise UserError(f"some of the experiments {name}-s* have the same seed; each needs its own")


def differences(groups: Iterable[Group], book: Mapping[str, Values]) -> dict[str, Differences]:
    """Return, by group, the parameters that differ from those of the recipe of its name in `book`, if any.

    `folder` counts only with `dataset: folder`.
    """
    found = {}
    for group in groups:
        recipe = book.get(_recipe_name(group.name), {})
        ignored = {"seed"} if group.parameters.get("dataset") == "folder" else {"seed", "folder"}
        found[group.name] = recipes.differences(group.parameters, recipe, sorted(recipe.keys() - ignored))
    return {name: different for name, different in found.items() if different}


def pairs(groups: Sequence[Group], chosen: Sequence[tuple[str, str]] | None = None) -> list[Pair]:
    """Test the chosen pairs, or else every two groups; adjust each p-value for the number of pairs (Holm)."""
    by_name = {group.name: group for group in groups}
    couples = chosen or itertools.combinations(by_name, 2)
    tested = [_pair(by_name[first], by_name[second]) for first, second in couples]
    adjusted = iter(holm([pair.p for pair in tested if pair.p is not None]))
    return [pair if pair.p is None else replace(pair, p=next(adjusted)) for pair in tested]


def _pair(first: Group, second: Group) -> Pair:
    single = first.accuracy.n == second.accuracy.n == 1
    several = min(first.accuracy.n, second.accuracy.n) > 1
    couples = {seed: (first.members[seed], second.members[seed]) for seed in first.members if seed in second.members}
    if single:  # two nets can be compared even if their seeds differ
        couples = {0: (*first.members.values(), *second.members.values())}
    correct = {seed: _correct(*couple) for seed, couple in couples.items()}
    on_images = {seed: mcnemar(*both) for seed, both in correct.items() if both}
    if several:
        over_seeds = welch(first.accuracy, second.accuracy)
        return Pair(first, second, over_seeds, on_images, over_seeds.p)
    return Pair(first, second, None, on_images, on_images[0].p if single and on_images else None)


def _correct(first: Experiment, second: Experiment) -> tuple[NDArray[np.bool_], NDArray[np.bool_]] | None:
    """Return two arrays (n,), True for each test image that the first, and the second, net classified correctly.

    None if the images differ or DVC's cache does not hold the predictions.
    """
    if any(first.params.get(key) != second.params.get(key) for key in ("dataset", "folder", "classes")):
        return None
    texts = [experiments.read(each.revision, paths.PREDICTIONS) for each in (first, second)]
    if any(text is None for text in texts):
        return None
    tables = [[*csv.DictReader(io.StringIO(text))] for text in texts]
    if [row["actual"] for row in tables[0]] != [row["actual"] for row in tables[1]]:
        return None
    correct = [np.array([row["actual"] == row["predicted"] for row in table]) for table in tables]
    return correct[0], correct[1]


def sentence(pair: Pair) -> str:
    """Return the conclusion about a pair; a difference that is not significant is not called a difference."""
    first, second = sorted((pair.first, pair.second), key=lambda group: -group.accuracy.mean)
    numbers = f"{percent(first.accuracy)} against {percent(second.accuracy)}, {_count(first, second)}"
    if pair.p is None:
        single = first.accuracy.n == second.accuracy.n == 1
        reason = "no predictions of the same images" if single else "a single seed on one side"
        return f"{first.name} and {second.name} cannot be compared by a test ({numbers}): {reason}"
    test = f"p{'<0.001' if pair.p < 0.001 else f'={pair.p:.2g}'}"
    if pair.over_seeds and pair.on_images:
        significant = sum(p < 1 - CONFIDENCE_LEVEL for p in holm([each.p for each in pair.on_images.values()]))
        test += f"; net against net on the same images, significant for {significant} of {len(pair.on_images)} seeds"
    if pair.p >= 1 - CONFIDENCE_LEVEL:
        return f"{first.name} and {second.name} do not differ significantly: {numbers}, {test}"
    points = 100 * (first.accuracy.mean - second.accuracy.mean)
    better = f"{first.name} is better than {second.name} by {points:.2f} points"
    if pair.over_seeds is None:
        return f"{better} on the same images: {numbers}, {test}; more seeds are needed to compare the recipes"
    low, high = sorted(100 * abs(end) for end in pair.over_seeds.interval)
    return f"{better} ({CONFIDENCE_LEVEL:.0%} interval {low:.2f} to {high:.2f}): {numbers}, {test}"


def _count(first: Group, second: Group) -> str:
    sizes = first.accuracy.n, second.accuracy.n
    return f"n={sizes[0]}" if sizes[0] == sizes[1] else f"n={sizes[0]} and {sizes[1]}"
