"""The content of recipes.yaml: recipes, studies and references.

A recipe is a named set of parameters. A study is a list of pairs of recipes. A reference is a published test accuracy.
"""

import difflib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imageclf import params, yaml12
from imageclf.core import paths
from imageclf.core.errors import UserError
from imageclf.study.significance import Reference

RECIPES = Path("recipes.yaml")

Values = dict[str, Any]
"""Values by parameter; the key `runtime.threads` names a parameter of the group `runtime`."""

Differences = dict[str, tuple[Any, Any]]
"""The value that an experiment ran with and the value that its recipe has, by parameter."""

EARLIER: Values = {"activation": "relu", "pooling": "max"}
"""Values in experiments that are older than a parameter; a parameter that is not listed was off in them."""


@dataclass(frozen=True)
class Study:
    """Recipes to run and to compare in pairs."""

    title: str
    labels: tuple[str, str]
    """Words for the first and for the second recipe of each pair."""
    pairs: list[tuple[str, str]]
    note: str = ""
    """Sentences that end the page."""


def read(path: Path = RECIPES) -> dict[str, Values]:
    """Return each recipe's parameters: `common`, then those of the recipe that it is `like`, then its own."""
    book = yaml12.read(path)
    return {name: {**book["common"], **_own(name, book["recipes"])} for name in book["recipes"]}


def _own(name: str, entries: dict[str, Values]) -> Values:
    values = dict(entries[name])
    model = values.pop("like", None)
    return {**_own(model, entries), **values} if model else values


def read_studies(path: Path = RECIPES) -> dict[str, Study]:
    """Return the studies by name."""
    return {
        name: Study(
            entry["title"],
            tuple(entry["labels"]),
            [(first, second) for first, second in entry["pairs"]],
            entry.get("note", ""),
        )
        for name, entry in yaml12.read(path).get("studies", {}).items()
    }


def read_references(path: Path = RECIPES) -> dict[str, Reference]:
    """Return the references by recipe; recipes.yaml gives them in percent, `Reference` holds fractions."""
    return {name: reference(**values) for name, values in yaml12.read(path).get("references", {}).items()}


def reference(mean: float, std: float = 0.0, n: int = 1) -> Reference:
    """Return the reference whose mean and standard deviation are given in percent."""
    return Reference(mean / 100, std / 100, n)


def choose(names: Iterable[str], known: Collection[str], kind: str = "recipe") -> list[str]:
    """Return `names` without repetitions; raise `UserError` for an unknown one, naming the nearest known one."""
    names = list(dict.fromkeys(names))
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(known)}"
            raise UserError(f"{name!r} is not a {kind} in {RECIPES}; {hint}")
    return names


def plan(names: Iterable[str], seeds: int, changes: Values) -> dict[str, Values]:
    """Return the parameters of every experiment by its name; raise `UserError` if params.yaml would refuse them."""
    if "seed" in changes:
        raise UserError("seed: each experiment has its own; --seeds sets their number")
    book, base = read(), yaml12.read(paths.PARAMS)
    planned: dict[str, Values] = {}
    for name in choose(names, book):
        values = {**book[name], **changes}
        params.validate(merge(base, values), f"recipe {name}")
        planned |= {f"{name}-s{seed}": {**values, "seed": seed} for seed in range(seeds)}
    return planned


def merge(base: Values, changes: Values) -> Values:
    """Return what params.yaml holds after DVC has applied `changes` to `base`."""
    merged = {key: dict(value) if isinstance(value, dict) else value for key, value in base.items()}
    for key, value in changes.items():
        group, _, name = key.rpartition(".")
        inner = merged.get(group)
        if isinstance(inner, dict):
            inner[name] = value
        else:
            merged[key] = value
    return merged


def differences(ran: Values, recipe: Values, keys: Iterable[str]) -> Differences:
    """Return the parameters among `keys` whose values differ.

    A missing parameter has its value in `EARLIER`, or else counts as off (empty, false or 0), because an older
    experiment does not know newer parameters.
    """
    found: Differences = {}
    for key in keys:
        pair = ran.get(key, EARLIER.get(key)), recipe.get(key, EARLIER.get(key))
        are_off = not any(pair) and not (key in ran and key in recipe)
        if not are_off and params.as_list(pair[0]) != params.as_list(pair[1]):
            found[key] = pair
    return found


def parse_changes(texts: Iterable[str]) -> Values:
    """Parse `key=value`, with the value as in params.yaml; raise `UserError` if there is no `=`."""
    changes: Values = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--set {text}: should be key=value")
        changes[key.strip()] = yaml12.parse(value, f"--set {text}")
    return changes
