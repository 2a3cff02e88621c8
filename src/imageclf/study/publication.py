"""Pages of comparisons: a page of Markdown, its numbers as JSON, a plot, and a run in MLflow.

The page and the plot are drawn from the content of the JSON file alone, so that they can be drawn again.
"""

import json
import statistics
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from imageclf import params
from imageclf.core import files
from imageclf.core.errors import UserError
from imageclf.study import comparison, plots, results
from imageclf.study.comparison import Comparison, Group
from imageclf.study.recipes import Differences
from imageclf.study.significance import CONFIDENCE_LEVEL, Reference, ends, percent, summarize
from imageclf.tracking import client as tracking
from imageclf.tracking import events
from imageclf.tracking.opening import Opening

BELOW = "below"
"""The verdict of `results.verdict` for a recipe that does not reach its reference."""


def publish(compared: Comparison, out: Path) -> None:
    """Write `out`.md, .json and .png, print the page, and record all in MLflow with the seconds of each training."""
    enabled = params.load().runtime.tracking
    if enabled:
        compared = replace(compared, seconds=training_seconds(compared.commit))
    content = results.as_json(compared)
    files.write_json(_path(out, "json"), content)
    _write_page(compared, out)
    with tracking.recording(Opening("compare") if enabled else None) as recorder:
        name = f"compare: {', '.join(content['groups'])}"
        recorder.tags({"mlflow.runName": name[:250], "mlflow.source.name": "src/imageclf/study/publication.py"})
        scores = {name: group["scores"] for name, group in content["groups"].items()}
        recorder.metrics(events.flatten(scores), step=0)
        recorder.artifacts([_path(out, kind) for kind in ("md", "json", "png")])


def redraw(out: Path) -> None:
    """Write `out`.md and `out`.png from `out`.json; raise `UserError` if that is not the JSON file of a comparison."""
    path = _path(out, "json")
    try:
        compared = results.from_json(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; `uv run imageclf compare ... --out {out}` writes it") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is not the JSON file of a comparison") from None
    _write_page(compared, out)


def _path(out: Path, kind: str) -> Path:
    return out.with_name(f"{out.name}.{kind}")  # not with_suffix: a name may hold a dot


def _write_page(compared: Comparison, out: Path) -> None:
    text, plot = as_markdown(compared, _path(out, "png").name), _path(out, "png")
    files.write_text(_path(out, "md"), text)
    plots.draw(plot, compared)
    print(as_text(compared))
    print("wrote", ", ".join(str(_path(out, kind)) for kind in ("md", "json", "png")))


def as_markdown(compared: Comparison, plot: str) -> str:
    """Return the page: the table, the differences from the recipes, a sentence for each pair, the plot, and notes."""
    header, *rows = table(compared)
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    parts = [
        f"# {compared.title}",
        "\n".join(f"| {' | '.join(line)} |" for line in lines),
        other_parameters(compared.differences),
        "\n".join(f"- {comparison.sentence(pair)}" for pair in compared.pairs),
        f"![{compared.title}]({plot})",
        _notes(compared),
        compared.note,
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def as_text(compared: Comparison) -> str:
    """Return the table in aligned columns, without the empty ones, and the sentences, for a terminal."""
    columns = [column for column in zip(*table(compared), strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    lines = [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in zip(*columns, strict=True)
    ]
    sentences = [comparison.sentence(pair) for pair in compared.pairs]
    if BELOW in columns[-1]:
        sentences.append(f"{BELOW}: the mean is more than two standard errors below the reference")
    return "\n".join([compared.title, "", *lines, "", *sentences, other_parameters(compared.differences)]).rstrip()


def table(compared: Comparison) -> list[list[str]]:
    """Return the cells of the table, the headings first."""
    header = ["", "test accuracy", f"{CONFIDENCE_LEVEL:.0%} interval", "n", "train accuracy", "gap", "test loss"]
    header += ["epochs", "train s"]
    rows = [_row(group, compared.seconds) for group in compared.groups]
    rows += [[name, *[""] * (len(header) - 1)] for name in compared.not_measured]
    names = [row[0] for row in rows]
    if compared.differences or compared.not_measured or any(name in compared.references for name in names):
        header += ["reference", "verdict"]
        verdicts = [results.verdict(group, compared) for group in compared.groups]
        verdicts += ["not yet measured"] * len(compared.not_measured)
        for row, verdict in zip(rows, verdicts, strict=True):
            row += [_reference_text(compared.references.get(row[0])), verdict]
    return [header, *rows]


def other_parameters(differences: Mapping[str, Differences]) -> str:
    """Return a line for each group that did not run with the parameters of its recipe; equal ones share a line."""
    names: dict[str, list[str]] = {}
    for name, different in differences.items():
        listed = [f"{key} {_value(ran)} in place of {_value(recipe)}" for key, (ran, recipe) in different.items()]
        names.setdefault(", ".join(listed), []).append(name)
    lines = [f"- {', '.join(groups)} ran with {listed}" for listed, groups in names.items()]
    return "\n".join(["Other parameters than those of the recipe of that name:", "", *lines]) if lines else ""


def _value(value: object) -> str:
    return "empty" if value is None else value if isinstance(value, str) else json.dumps(value)


def _row(group: Group, seconds: Mapping[str, float]) -> list[str]:
    interval = ends(group.accuracy)
    loss = summarize(group.values("test", "loss"))
    took = [seconds[member.name] for member in group.members.values() if member.name in seconds]
    return [
        group.name,
        percent(group.accuracy),
        f"{interval[0]:.2f} to {interval[1]:.2f}" if interval else "",
        str(group.accuracy.n),
        percent(summarize(group.values("train", "accuracy"))),
        percent(summarize(group.values("test", "gap"))),
        f"{loss.mean:.4f}",
        str(group.parameters["epochs"]),
        f"{statistics.fmean(took):.0f}" if len(took) == len(group.members) else "",
    ]


def _reference_text(reference: Reference | None) -> str:
    if reference is None:
        return ""
    spread = f" ± {100 * reference.std:.2f} (n={reference.n})" if reference.std else ""
    return f"{100 * reference.mean:.2f}{spread}"


def _notes(compared: Comparison) -> str:
    tests, count = "", len(compared.pairs)
    if count:
        adjusted = f", adjusted for {count} pairs (Holm)" if count > 1 else ""
        tests = f"p: Welch's test over seeds, or McNemar's exact test on the same images for single seeds{adjusted}. "
    return (
        f"Accuracies in percent: mean ± standard deviation over n seeds, and the {CONFIDENCE_LEVEL:.0%} t-interval of "
        f"the mean; a single seed has neither. gap: train accuracy minus test accuracy. {tests}train s: mean duration "
        "of the train stage in seconds, as recorded in MLflow, which depends on what else the machine did. Experiments "
        f"on commit {compared.commit[:7]}."
    )


def training_seconds(baseline: str) -> dict[str, float]:
    """Return the duration of each experiment's training on that commit; print a sentence if MLflow fails."""
    from imageclf.tracking.recorder.store import Store

    try:
        return Store().training_seconds(baseline)
    except Exception as error:  # noqa: BLE001 - MLflow raises many types, and the comparison works without it
        print(f"MLflow failed ({str(error).splitlines()[0][:200]}); the page has no seconds", flush=True)
        return {}
