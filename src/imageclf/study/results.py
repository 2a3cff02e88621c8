"""The JSON file of a comparison: all numbers from which its page and plot are drawn."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from imageclf.study import comparison
from imageclf.study.comparison import Comparison, Group, Pair
from imageclf.study.experiments import Experiment
from imageclf.study.significance import McNemar, Reference, Welch, reaches, summarize


def verdict(group: Group, compared: Comparison) -> str:
    """Return the verdict; a group that ran with other parameters than its recipe is not judged by its reference."""
    if group.name in compared.differences:
        return "other parameters"
    if group.name not in compared.references:
        return ""
    return "reached" if reaches(group.accuracy, compared.references[group.name]) else "below"


def as_json(compared: Comparison) -> dict[str, Any]:
    """Return the content of the JSON file; accuracies are fractions, 0 to 1."""
    return {
        "title": compared.title,
        "commit": compared.commit,
        "labels": compared.labels,
        "note": compared.note,
        "not_measured": {name: _reference_json(compared, name) for name in compared.not_measured},
        "groups": {group.name: _group_json(group, compared) for group in compared.groups},
        "pairs": [
            {
                "first": pair.first.name,
                "second": pair.second.name,
                "p": pair.p,
                "welch": asdict(pair.over_seeds) if pair.over_seeds else None,
                "mcnemar": {str(seed): asdict(test) for seed, test in pair.on_images.items()},
                "sentence": comparison.sentence(pair),
            }
            for pair in compared.pairs
        ],
    }


def _reference_json(compared: Comparison, name: str) -> dict[str, Any] | None:
    return asdict(compared.references[name]) if name in compared.references else None


def _group_json(group: Group, compared: Comparison) -> dict[str, Any]:
    different = compared.differences.get(group.name, {})
    return {
        "parameters": group.parameters,
        "other_parameters": {key: {"ran_with": ran, "recipe": recipe} for key, (ran, recipe) in different.items()},
        "scores": {
            "accuracy": asdict(group.accuracy),
            "loss": asdict(summarize(group.values("test", "loss"))),
            "train_accuracy": asdict(summarize(group.values("train", "accuracy"))),
            "gap": asdict(summarize(group.values("test", "gap"))),
        },
        "reference": _reference_json(compared, group.name),
        "reaches_reference": {"reached": True, "below": False}.get(verdict(group, compared)),
        "experiments": {
            member.name: {
                "seed": seed,
                "revision": member.revision,
                "seconds": compared.seconds.get(member.name),
                **member.metrics,
            }
            for seed, member in group.members.items()
        },
    }


def from_json(content: dict[str, Any]) -> Comparison:
    """Return the comparison whose JSON file has this content."""
    entries, unmeasured = content["groups"], content["not_measured"]
    groups = {name: _group_from_json(name, entry) for name, entry in entries.items()}
    references = {**{name: entry["reference"] for name, entry in entries.items()}, **unmeasured}
    members = {name: member for entry in entries.values() for name, member in entry["experiments"].items()}
    return Comparison(
        title=content["title"],
        commit=content["commit"],
        groups=list(groups.values()),
        pairs=[_pair_from_json(entry, groups) for entry in content["pairs"]],
        references={name: Reference(**values) for name, values in references.items() if values},
        differences={
            name: {key: (pair["ran_with"], pair["recipe"]) for key, pair in entry["other_parameters"].items()}
            for name, entry in entries.items()
            if entry["other_parameters"]
        },
        not_measured=list(unmeasured),
        labels=tuple(content["labels"]) if content["labels"] else None,
        note=content.get("note", ""),  # older files have none
        seconds={name: member["seconds"] for name, member in members.items() if member["seconds"] is not None},
    )


def _group_from_json(name: str, entry: dict[str, Any]) -> Group:
    members = {}
    for experiment, values in entry["experiments"].items():
        metrics = {key: value for key, value in values.items() if key not in {"seed", "revision", "seconds"}}
        parameters = {**entry["parameters"], "seed": values["seed"]}
        made = Experiment(experiment, values["revision"], "success", parameters, metrics, (), None)
        members[values["seed"]] = made
    return Group(name, members)


def _pair_from_json(entry: dict[str, Any], groups: Mapping[str, Group]) -> Pair:
    welch = entry["welch"]
    return Pair(
        groups[entry["first"]],
        groups[entry["second"]],
        Welch(welch["difference"], tuple(welch["interval"]), welch["p"]) if welch else None,
        {int(seed): McNemar(**test) for seed, test in entry["mcnemar"].items()},
        entry["p"],
    )
