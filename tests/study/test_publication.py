"""Tests of the page, the JSON file and the plot of a comparison, and that the published ones are up to date."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from imports import ROOT
from made_groups import group
from PIL import Image

from imageclf.core.errors import UserError
from imageclf.study import compare, comparison, experiments, plots, publication, recipes, results
from imageclf.study.comparison import Comparison, Group, Pair
from imageclf.study.significance import Reference


@pytest.fixture(autouse=True)
def _no_predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiments, "read", lambda _revision, _path: None)


def publish(tmp_path: Path, groups: list[Group], pairs: list[Pair], references: dict[str, Reference]) -> Path:
    """Publish without MLflow, under a name that holds a dot; return the folder of the three files."""
    text = (ROOT / "params.yaml").read_text().replace("tracking: true", "tracking: false")
    (tmp_path / "params.yaml").write_text(text)
    publication.publish(Comparison("a, b", "0123456789", groups, pairs, references), tmp_path / "out/a.b")
    return tmp_path / "out"


def test_the_three_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    groups = [group("a", 0.9801, 0.9793, 0.9809), group("b", 0.9799)]
    references = {"a": Reference(0.9801, 0.0008, 3), "b": Reference(0.99)}
    out = publish(tmp_path, groups, comparison.pairs(groups), references)
    text = (out / "a.b.md").read_text()
    printed = capsys.readouterr().out.splitlines()
    squeezed = [" ".join(line.split()) for line in printed[2:5]]
    assert squeezed == [
        "test accuracy 95% interval n train accuracy gap test loss epochs reference verdict",
        "a 98.01 ± 0.08 97.81 to 98.21 3 99.01 ± 0.08 1.00 ± 0.00 0.2000 5 98.01 ± 0.08 (n=3) reached",
        "b 97.99 1 98.99 1.00 0.2000 5 99.00 below",
    ]
    assert len({len(line) for line in printed[2:5]}) == 1
    assert "below: the mean is more than two standard errors below the reference" in printed
    assert printed[-1] == "wrote out/a.b.md, out/a.b.json, out/a.b.png".replace("out/", f"{tmp_path}/out/")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1
    reference = "98.01 ± 0.08 (n=3) | reached |"
    assert rows[2] == (
        f"| a | 98.01 ± 0.08 | 97.81 to 98.21 | 3 | 99.01 ± 0.08 | 1.00 ± 0.00 | 0.2000 | 5 |  | {reference}"
    )
    assert rows[3] == "| b | 97.99 |  | 1 | 98.99 | 1.00 | 0.2000 | 5 |  | 99.00 | below |"
    assert "\n- a and b cannot be compared by a test" in text
    assert "![a, b](a.b.png)" in text
    assert text.endswith("Experiments on commit 0123456.\n")

    numbers = json.loads((out / "a.b.json").read_text())
    assert numbers["commit"] == "0123456789"
    assert numbers["groups"]["a"]["scores"]["accuracy"]["mean"] == pytest.approx(0.9801)
    assert numbers["groups"]["a"]["reaches_reference"] is True
    assert numbers["groups"]["b"]["experiments"]["b-s0"]["test"]["accuracy"] == 0.9799
    assert numbers["pairs"][0]["p"] is None
    with Image.open(out / "a.b.png") as picture:
        picture.load()
        assert picture.width == 800


def test_without_references_there_is_no_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    out = publish(tmp_path, [group("a", 0.5)], [], {"elsewhere": Reference(0.9)})
    text = (out / "a.b.md").read_text()
    assert "verdict" not in text
    assert "Welch" not in text


def test_seconds_are_the_mean_of_all_seeds_or_empty() -> None:
    seconds = {"a-s0": 10.0, "a-s1": 13.0, "b-s0": 10.0, "c-s0": 1.0}
    groups = [group("a", 0.5, 0.6), group("b", 0.5, 0.6)]
    compared = Comparison("a, b", "0123456789", groups, [], seconds=seconds)
    text = publication.as_markdown(compared, "plot.png")
    last = {row.split("|")[1].strip(): row.split("|")[-2].strip() for row in text.splitlines() if row.startswith("|")}
    assert (last["a"], last["b"]) == ("12", "")
    members = results.as_json(compared)["groups"]["b"]["experiments"]
    assert {name: member["seconds"] for name, member in members.items()} == {"b-s0": 10.0, "b-s1": None}


def test_a_failure_of_mlflow_does_not_stop_the_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////dev/null/mlflow.db")
    assert publication.training_seconds("0123456789") == {}
    assert capsys.readouterr().out.startswith("MLflow failed (")


def table(text: str) -> dict[str, list[str]]:
    """Return the cells of each row of the page's table, by the name of the row."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    return {row[0]: row[1:] for row in rows}


BOOK: dict[str, dict[str, Any]] = {
    name: {"seed": 0, "epochs": 5, "dataset": "mnist", "folder": "images", "image_size": None, "hidden": [8, 4]}
    for name in ("a", "b", "c")
}
SAME: dict[str, Any] = {"image_size": None, "hidden": "8, 4"}


def test_only_the_recipe_of_that_name_reaches_its_reference() -> None:
    groups = [
        group("a", 0.9, 0.91, **SAME),
        group("b", 0.9, 0.91, **{**SAME, "image_size": 16, "epochs": 1, "hidden": [8]}),
        group("c", 0.9, **{**SAME, "dataset": "folder", "folder": "pictures"}),
        group("d", 0.9, 0.91, image_size=16),
    ]
    references = dict.fromkeys("abcd", Reference(0.8))
    compared = Comparison("a", "0", groups, [], references, comparison.differences(groups, BOOK))
    text = publication.as_markdown(compared, "plot.png")
    verdicts = {name: cells[-1] for name, cells in table(text).items() if name in "abcd" and name}
    assert verdicts == {"a": "reached", "b": "other parameters", "c": "other parameters", "d": "reached"}
    assert (
        "- b ran with epochs 1 in place of 5, hidden [8] in place of [8, 4], image_size 16 in place of empty\n" in text
    )
    assert "- c ran with dataset folder in place of mnist, folder pictures in place of images\n" in text
    content = results.as_json(compared)["groups"]
    assert {name: entry["reaches_reference"] for name, entry in content.items()} == {
        "a": True,
        "b": None,
        "c": None,
        "d": True,
    }
    assert content["b"]["other_parameters"]["image_size"] == {"ran_with": 16, "recipe": None}
    assert content["b"]["parameters"] == {
        key: value for key, value in groups[1].members[0].params.items() if key != "seed"
    }


def test_a_single_experiment_is_held_against_the_recipe_of_its_name() -> None:
    (found,) = comparison.differences([replace(group("a", 0.9, **SAME, epochs=1), name="a-s0")], BOOK).items()
    assert found == ("a-s0", {"epochs": (1, 5)})


def test_a_recipe_without_experiments_is_not_yet_measured() -> None:
    compared = Comparison("a", "0", [group("a", 0.9)], [], {"b": Reference(0.92)}, not_measured=["b"])
    assert table(publication.as_markdown(compared, "plot.png"))["b"] == [*[""] * 8, "92.00", "not yet measured"]


def test_a_page_can_be_drawn_again_from_its_json_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "params.yaml").read_text().replace("tracking: true", "tracking: false")
    (tmp_path / "params.yaml").write_text(text)
    groups = [group("a", 0.9, 0.91, **SAME, epochs=1), group("b", 0.8, 0.7), group("c", 0.5)]
    compared = Comparison(
        "Title",
        "0123456789",
        groups,
        comparison.pairs(groups),
        {"a": Reference(0.9), "d": Reference(0.92)},
        comparison.differences(groups[:1], BOOK),
        ["d"],
    )
    publication.publish(compared, tmp_path / "page")
    files = {path: path.read_bytes() for path in tmp_path.glob("page.*")}
    (tmp_path / "page.md").unlink()
    (tmp_path / "page.png").unlink()
    compare.main(["--redraw", str(tmp_path / "page")])
    assert {path: path.read_bytes() for path in tmp_path.glob("page.*")} == files
    seconds = {"a-s0": 2.0, "a-s1": 3.0}
    content = json.loads(
        json.dumps(results.as_json(replace(compared, seconds=seconds, labels=("x", "y"), note="A note.")))
    )
    again = results.from_json(content)
    assert (again.seconds, again.labels, again.note) == (seconds, ("x", "y"), "A note.")
    assert publication.as_markdown(again, "plot.png").endswith("\n\nA note.\n")
    assert json.loads(json.dumps(results.as_json(again))) == content


def test_redraw_refuses_other_files(tmp_path: Path) -> None:
    for text in ("no JSON", "[]", '{"a": 1}'):
        (tmp_path / "page.json").write_text(text)
        with pytest.raises(UserError, match=r"page\.json is not the JSON file of a comparison"):
            publication.redraw(tmp_path / "page")
    with pytest.raises(UserError, match=r"other\.json does not exist; `uv run imageclf compare \.\.\. --out .*other`"):
        publication.redraw(tmp_path / "other")


@pytest.mark.parametrize("name", ["recipes", *recipes.read_studies(ROOT / "recipes.yaml")])
def test_a_published_page_shows_its_json_file_and_names_every_other_parameter(name: str, tmp_path: Path) -> None:
    shutil.copy(ROOT / f"docs/{name}.json", tmp_path)
    publication.redraw(tmp_path / name)
    assert (tmp_path / f"{name}.md").read_text() == (ROOT / f"docs/{name}.md").read_text()
    compared = results.from_json(json.loads((ROOT / f"docs/{name}.json").read_text()))
    assert compared.differences == comparison.differences(compared.groups, recipes.read(ROOT / "recipes.yaml"))


def points(axes: Any) -> set[tuple[float, ...]]:
    """Return the accuracies that each line or group of markers shows."""
    return {tuple(round(float(value), 2) for value in line.get_xdata()) for line in axes.get_lines()}


def test_panels_are_data_sets_with_their_own_range() -> None:
    assert plots.data_set({"dataset": "folder", "folder": "~/my pictures.zip", "classes": ["x", "y"]}) == (
        "my pictures.zip, 2 classes"
    )
    assert plots.data_set({"dataset": "mnist", "image_size": 16}) == "mnist, resized to 16x16"
    groups = [
        group("a", 0.72, 0.73),
        group("b", 0.993, 0.9931, 0.9932),
        group("c", 0.5, 0.51, dataset="kmnist"),
        group("d", 1.0, dataset="digits"),
    ]
    mnist, kmnist, digits = plots.figure(Comparison("a", "0", groups, [])).axes
    assert [label.get_text() for label in mnist.get_yticklabels()] == ["a", "b"]
    assert (mnist.get_xscale(), kmnist.get_xscale(), digits.get_xscale()) == ("function", "linear", "linear")
    for axes, values in ((mnist, [72, 73, 99.3, 99.32]), (kmnist, [50, 51]), (digits, [100])):
        low, high = axes.get_xlim()
        assert all(low < value < high for value in values)
        assert len([tick for tick in axes.get_xticks() if low <= tick <= high]) >= 3
    assert kmnist.get_xlim()[1] < 60
    assert {(72.0, 73.0), (72.5,), (99.3, 99.31, 99.32)} <= points(mnist)


def test_a_pair_with_labels_is_joined_by_a_line() -> None:
    groups = [group("a", 0.9, 0.92), group("a-permuted", 0.8, 0.82)]
    pairs = comparison.pairs(groups)
    figure = plots.figure(Comparison("a", "0", groups, pairs, labels=("plain", "permuted")))
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a"]
    assert (91.0, 81.0) in points(axes)
    assert [text.get_text() for text in axes.texts] == ["-10.0 points"]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["mean, plain", "mean, permuted", "95% interval", "one seed"]


def test_pairs_with_the_same_first_group_have_the_names_of_their_second_ones() -> None:
    pairs = comparison.pairs([group(name, 0.9, 0.92) for name in "abc"], [("a", "b"), ("a", "c")])
    assert plots.row_names(pairs) == ["b", "c"]
    (axes,) = plots.figure(Comparison("a", "0", [], pairs, labels=("x", "y"))).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["b", "c"]
