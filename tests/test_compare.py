"""Groups of experiments side by side: who is in them, what is said of each pair, and the three files."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest
from imports import ROOT
from PIL import Image

from imageclf import compare, comparison, experiments, publication
from imageclf.comparison import Comparison, Group, Pair
from imageclf.errors import UserError
from imageclf.experiments import Experiment
from imageclf.significance import Reference


@pytest.fixture(autouse=True)
def predictions(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Texts of predictions.csv by revision; none for others."""
    texts: dict[str, str] = {}
    monkeypatch.setattr(experiments, "read", lambda revision, _path: texts.get(revision))
    return texts


def experiment(
    name: str, accuracy: float, *, seed: int = 0, state: str = "success", dataset: str = "mnist"
) -> Experiment:
    metrics = {
        "train": {"loss": 0.1, "accuracy": accuracy + 0.01},
        "epoch": 1,
        "test": {"loss": 0.2, "accuracy": accuracy, "top5": 1.0, "gap": 0.01},
    }
    params = {"seed": seed, "epochs": 5, "dataset": dataset, "folder": "data/custom", "classes": None}
    return Experiment(name, f"rev-{name}", state, params, metrics if state == "success" else {}, (), None)


def group(name: str, *accuracies: float, dataset: str = "mnist") -> Group:
    """A recipe with one seed for each accuracy."""
    members = [
        experiment(f"{name}-s{seed}", accuracy, seed=seed, dataset=dataset) for seed, accuracy in enumerate(accuracies)
    ]
    return comparison.groups([name], {member.name: member for member in members})[0]


def table(right: int, total: int = 200) -> str:
    """A predictions.csv of two classes whose first `right` images are recognized."""
    rows = [f"{row},{row % 2},{row % 2 if row < right else 1 - row % 2},1,1" for row in range(total)]
    return "\n".join(["index,actual,predicted,p_actual,p_predicted", *rows])


def said(first: Group, second: Group) -> str:
    (pair,) = comparison.pairs([first, second])
    return comparison.sentence(pair)


def test_a_name_is_all_its_seeds_or_else_one_experiment() -> None:
    names = ["a-s0", "a-s1", "a-s10", "a", "a-permuted-s0", "ab-s0"]
    found = {name: experiment(name, 0.5, seed=place) for place, name in enumerate(names)}
    groups = comparison.groups(["a", "a-s1", "ab", "a"], found)
    assert [[each.name for each in one.members.values()] for one in groups] == [
        ["a-s0", "a-s1", "a-s10"],
        ["a-s1"],
        ["ab-s0"],
    ]
    del found["a-s0"], found["a-s1"], found["a-s10"]
    assert [each.name for each in comparison.groups(["a"], found)[0].members.values()] == ["a"]


def test_what_is_not_there_is_told() -> None:
    found = {name: experiment(name, 0.5) for name in ("a-s0", "a-s1", "b")}
    with pytest.raises(
        UserError,
        match=r"no experiment c or c-s0 on this commit, only a, b: `uv run python -m imageclf.recipes c` runs a recipe",
    ):
        comparison.groups(["c"], found)
    with pytest.raises(UserError, match="only none"):
        comparison.groups(["c"], {})
    with pytest.raises(UserError, match=re.escape("not all of a has ended well: a-s1 (running)")):
        comparison.groups(["a"], {**found, "a-s1": experiment("a-s1", 0.5, state="running")})
    with pytest.raises(UserError, match="some have a seed in common"):
        comparison.groups(["a"], found)
    with pytest.raises(UserError, match="differ in dataset, not in the seed alone"):
        comparison.groups(["a"], {**found, "a-s1": experiment("a-s1", 0.5, seed=1, dataset="digits")})


def test_chance_is_not_called_a_difference() -> None:
    sentence = said(group("a", 0.9801, 0.9793, 0.9809), group("b", 0.9806, 0.9785, 0.9797))
    assert sentence == "a and b cannot be told apart: 98.01 ± 0.08 against 97.96 ± 0.11, n=3, p=0.55"


def test_a_difference_is_told_with_its_interval_the_better_first() -> None:
    sentence = said(group("low", 0.90, 0.91, 0.92), group("high", 0.95, 0.96))
    assert re.fullmatch(
        r"high is better than low by 4\.50 points \(95% interval [\d.]+ to [\d.]+\): "
        r"95\.50 ± 0\.71 against 91\.00 ± 1\.00, n=2 and 3, p=0\.0\d+",
        sentence,
    )


def test_single_nets_are_compared_on_their_images(predictions: dict[str, str]) -> None:
    one, other = group("a", 0.75), group("b", 0.9)
    assert said(one, other) == (
        "b and a cannot be compared by a test (90.00 against 75.00, n=1): no predictions of the same images"
    )
    predictions |= {"rev-a-s0": table(150), "rev-b-s0": table(180)}
    assert said(one, other) == (
        "b is better than a by 15.00 points on the same images: 90.00 against 75.00, n=1, p<0.001; "
        "of the recipes only more seeds can tell"
    )
    predictions["rev-b-s0"] = table(153)
    assert said(one, other) == "b and a cannot be told apart: 90.00 against 75.00, n=1, p=0.25"


@pytest.mark.parametrize("other", ["other labels", "other data"])
def test_other_images_are_not_paired(other: str, predictions: dict[str, str]) -> None:
    predictions |= {"rev-a-s0": table(150), "rev-b-s0": table(180, 198 if other == "other labels" else 200)}
    second = group("b", 0.9, dataset="kmnist" if other == "other data" else "mnist")
    (pair,) = comparison.pairs([group("a", 0.75), second])
    assert (pair.on_images, pair.p) == ({}, None)


def test_a_single_seed_against_several_is_no_test(predictions: dict[str, str]) -> None:
    predictions |= {"rev-a-s0": table(150), "rev-b-s0": table(180)}
    assert said(group("a", 0.75), group("b", 0.9, 0.91)).endswith("n=2 and 1): a single seed on one side")


def test_seeds_that_both_have_are_paired(predictions: dict[str, str]) -> None:
    predictions |= {f"rev-a-s{seed}": table(150) for seed in range(3)}
    predictions |= {"rev-b-s0": table(150), "rev-b-s1": table(190)}
    (pair,) = comparison.pairs([group("a", 0.75, 0.75, 0.75), group("b", 0.75, 0.95)])
    assert {seed: (test.only_first, test.only_second) for seed, test in pair.on_images.items()} == {
        0: (0, 0),
        1: (0, 40),
    }
    assert comparison.sentence(pair).endswith("; net against net on the same images, 1 of 2 seeds differ")


def test_several_pairs_raise_each_p() -> None:
    groups = [group("a", 0.90, 0.91, 0.92), group("b", 0.95, 0.96, 0.95), group("c", 0.90, 0.92, 0.91)]
    alone = comparison.pairs(groups, [("a", "b")])[0].p
    among = comparison.pairs(groups)
    assert [(pair.first.name, pair.second.name) for pair in among] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert alone is not None
    assert among[0].p == pytest.approx(3 * alone)
    assert among[1].p == 1


def publish(tmp_path: Path, groups: list[Group], pairs: list[Pair], references: dict[str, Reference]) -> Path:
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
    assert capsys.readouterr().out == text + "\n"
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
    assert "p: " not in text


def test_seconds_are_the_mean_of_all_seeds_or_left_out() -> None:
    compared = Comparison("a, b", "0123456789", [group("a", 0.5, 0.6), group("b", 0.5, 0.6)], [])
    seconds = {"a-s0": 10.0, "a-s1": 13.0, "b-s0": 10.0, "c-s0": 1.0}
    text = publication.as_markdown(compared, seconds, "plot.png")
    last = {row.split("|")[1].strip(): row.split("|")[-2].strip() for row in text.splitlines() if row.startswith("|")}
    assert (last["a"], last["b"]) == ("12", "")
    members = publication.as_json(compared, seconds)["groups"]["b"]["experiments"]
    assert {name: member["seconds"] for name, member in members.items()} == {"b-s0": 10.0, "b-s1": None}


def test_without_mlflow_the_comparison_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////dev/null/mlflow.db")
    assert publication.training_seconds("0123456789") == {}
    assert capsys.readouterr().out.startswith("the seconds are left out: MLflow failed (")


def test_an_interval_ends_at_none_and_all(tmp_path: Path) -> None:
    assert comparison.ends(group("a", 0.99, 1.0).accuracy) == pytest.approx((93.147, 100), abs=1e-3)
    assert comparison.ends(group("a", 0.0, 0.01).accuracy) == pytest.approx((0, 6.853), abs=1e-3)


def test_references_are_written_in_percent() -> None:
    assert asdict(compare.parse_reference("98.01,0.08,3")) == pytest.approx({"mean": 0.9801, "std": 0.0008, "n": 3})
    assert compare.parse_reference("62") == Reference(0.62)
    for wrong in ("", "a", "1,2", "1,2,3,4"):
        with pytest.raises(UserError, match="should be a mean, or mean,std,n"):
            compare.parse_reference(wrong)
    assert compare.read_references(ROOT / "recipes.yaml")["keras512"].mean == pytest.approx(0.9788)


def test_only_the_pairs_that_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {f"{name}-s{seed}": experiment(f"{name}-s{seed}", 0.5, seed=seed) for name in "abc" for seed in (0, 1)}
    published: list[Comparison] = []
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(compare.experiments, "show", lambda _revision: found)
    monkeypatch.setattr(publication, "publish", lambda compared, _out: published.append(compared))
    monkeypatch.setattr("sys.argv", ["compare", "a", "b", "c", "--pair", "c", "a", "--title", "Three"])
    compare.main()
    assert published[0].title == "Three"
    assert [(pair.first.name, pair.second.name) for pair in published[0].pairs] == [("c", "a")]
    monkeypatch.setattr("sys.argv", ["compare", "a", "--pair", "a", "b"])
    with pytest.raises(UserError, match="--pair: b is not among the names to compare"):
        compare.main()
