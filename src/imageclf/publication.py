"""A comparison for people and programs: a page of Markdown, its numbers as JSON, a plot, and a run of MLflow.

The seconds of each training come from MLflow: DVC's files hold no durations.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from imageclf import comparison, files, params, tracking
from imageclf.comparison import Comparison, Group
from imageclf.significance import LEVEL, Reference, reaches, summarize


def publish(compared: Comparison, out: Path) -> None:
    """Write `out`.md, .json and .png, print the first, and record all in MLflow."""
    enabled = params.load().runtime.tracking
    # Not with_suffix: a name may hold a dot.
    table, numbers, plot = (out.with_name(f"{out.name}.{kind}") for kind in ("md", "json", "png"))
    seconds = training_seconds(compared.commit) if enabled else {}
    text, content = as_markdown(compared, seconds, plot.name), as_json(compared, seconds)
    files.write_text(table, text)
    files.write_json(numbers, content)
    draw(plot, compared.groups)
    print(text)
    with tracking.recording("compare", enabled=enabled) as recorder:
        name = f"compare: {', '.join(content['groups'])}"
        recorder.tags({"mlflow.runName": name[:250], "mlflow.source.name": "src/imageclf/publication.py"})
        recorder.scores({name: group["scores"] for name, group in content["groups"].items()}, step=0)
        recorder.artifacts([table, numbers, plot])


def as_json(compared: Comparison, seconds: Mapping[str, float]) -> dict[str, Any]:
    """Every number of the comparison; accuracies are shares, 0 to 1, `seconds` those of trainings by experiment."""
    return {
        "commit": compared.commit,
        "groups": {
            group.name: _group_json(group, compared.references.get(group.name), seconds) for group in compared.groups
        },
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


def _group_json(group: Group, reference: Reference | None, seconds: Mapping[str, float]) -> dict[str, Any]:
    scores = {
        "accuracy": asdict(group.accuracy),
        "loss": asdict(summarize(group.values("test", "loss"))),
        "train_accuracy": asdict(summarize(group.values("train", "accuracy"))),
        "gap": asdict(summarize(group.values("test", "gap"))),
    }
    return {
        "scores": scores,
        "reference": asdict(reference) if reference else None,
        "reaches_reference": reaches(group.accuracy, reference) if reference else None,
        "experiments": {
            member.name: {
                "seed": seed,
                "revision": member.revision,
                "seconds": seconds.get(member.name),
                **member.metrics,
            }
            for seed, member in group.members.items()
        },
    }


def as_markdown(compared: Comparison, seconds: Mapping[str, float], plot: str) -> str:
    """The table, a sentence for each pair, the picture `plot`, and what the numbers mean."""
    header = [
        "",
        "test accuracy",
        f"{LEVEL:.0%} interval",
        "n",
        "train accuracy",
        "gap",
        "test loss",
        "epochs",
        "train s",
    ]
    rows = [_row(group, seconds) for group in compared.groups]
    if any(group.name in compared.references for group in compared.groups):
        header += ["reference", "verdict"]
        for row, group in zip(rows, compared.groups, strict=True):
            row.extend(_verdict(group, compared.references.get(group.name)))
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    parts = [
        f"# {compared.title}",
        "\n".join(f"| {' | '.join(line)} |" for line in lines),
        "\n".join(f"- {comparison.sentence(pair)}" for pair in compared.pairs),
        f"![{compared.title}]({plot})",
        _note(len(compared.pairs), compared.commit),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _note(num_pairs: int, commit: str) -> str:
    tests = (
        "p: Welch's test over seeds, or McNemar's exact test on the same images where there is a single seed"
        f"{f', raised for {num_pairs} pairs (Holm)' if num_pairs > 1 else ''}. "
    )
    return (
        f"Accuracies in percent: mean ± standard deviation over n seeds, {LEVEL:.0%} t-interval of the mean; a single "
        f"seed has neither. {tests if num_pairs else ''}train s: mean seconds of the train stage by MLflow's record, "
        f"whatever else the machine did. Experiments on commit {commit[:7]}."
    )


def _row(group: Group, seconds: Mapping[str, float]) -> list[str]:
    interval = comparison.ends(group.accuracy)
    epochs = {str(member.params["epochs"]) for member in group.members.values()}
    loss = summarize(group.values("test", "loss"))
    took = [seconds[member.name] for member in group.members.values() if member.name in seconds]
    return [
        group.name,
        comparison.percent(group.accuracy),
        f"{interval[0]:.2f} to {interval[1]:.2f}" if interval else "",
        str(group.accuracy.n),
        comparison.percent(summarize(group.values("train", "accuracy"))),
        comparison.percent(summarize(group.values("test", "gap"))),
        f"{loss.mean:.4f}",
        ", ".join(sorted(epochs)),
        f"{statistics.fmean(took):.0f}" if len(took) == len(group.members) else "",
    ]


def _verdict(group: Group, reference: Reference | None) -> list[str]:
    if reference is None:
        return ["", ""]
    spread = f" ± {100 * reference.std:.2f} (n={reference.n})" if reference.std else ""
    verdict = "reached" if reaches(group.accuracy, reference) else "below"
    return [f"{100 * reference.mean:.2f}{spread}", verdict]


def draw(path: Path, groups: Sequence[Group]) -> None:
    """A row for each group: a pale point for each seed, and the mean with its interval. Permuted twins are orange."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.2 + 0.45 * len(groups)), layout="constrained")
    axes = figure.subplots()
    for place, group in enumerate(groups):
        colour = "tab:orange" if group.name.endswith("-permuted") else "tab:blue"
        values = [100 * value for value in group.values("test", "accuracy")]
        axes.plot(values, [place] * len(values), "o", color=colour, alpha=0.3, markersize=5)
        mean, interval = 100 * group.accuracy.mean, comparison.ends(group.accuracy)
        reach = [[mean - interval[0]], [interval[1] - mean]] if interval else None
        axes.errorbar([mean], [place], xerr=reach, fmt="D", color=colour, capsize=4, markersize=6)
    axes.set(xlabel="test accuracy, percent", yticks=range(len(groups)), ylim=(len(groups) - 0.5, -0.5))
    axes.set_yticklabels([group.name for group in groups], parse_math=False)
    axes.grid(axis="x", alpha=0.3)
    with files.replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100, metadata={"Software": None})


def training_seconds(baseline: str) -> dict[str, float]:
    """Seconds of each experiment's training; none, and a sentence, where MLflow does not tell."""
    from imageclf.store import Store

    try:
        return Store().training_seconds(baseline)
    except Exception as error:  # noqa: BLE001 - whatever MLflow raises, the comparison is worth having
        print(f"the seconds are left out: MLflow failed ({str(error).splitlines()[0][:200]})", flush=True)
        return {}
