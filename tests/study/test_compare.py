"""Tests of comparisons: the members of groups, the conclusion about each pair, and the command `imageclf compare`."""

import re
from dataclasses import asdict

import pytest
from imports import ROOT
from made_groups import experiment, group

from imageclf.core.errors import UserError
from imageclf.study import compare, comparison, experiments, publication
from imageclf.study.comparison import Comparison, Group
from imageclf.study.significance import Reference, ends


@pytest.fixture(autouse=True)
def predictions(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Return the texts of predictions.csv by revision, which is empty and can be filled."""
    texts: dict[str, str] = {}
    monkeypatch.setattr(experiments, "read", lambda revision, _path: texts.get(revision))
    return texts


def table(right: int, total: int = 200) -> str:
    """Return a predictions.csv of two classes whose first `right` images are classified correctly."""
    rows = [f"{row},{row % 2},{row % 2 if row < right else 1 - row % 2},1,1" for row in range(total)]
    return "\n".join(["index,actual,predicted,p_actual,p_predicted", *rows])


def conclusion(first: Group, second: Group) -> str:
    """Return the sentence about a pair."""
    (pair,) = comparison.pairs([first, second])
    return comparison.sentence(pair)


def test_a_name_stands_for_all_its_seeds_or_else_for_one_experiment() -> None:
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


def test_missing_and_unfinished_experiments_are_reported() -> None:
    found = {name: experiment(name, 0.5) for name in ("a-s0", "a-s1", "b")}
    with pytest.raises(
        UserError,
        match=r"no experiment c or c-s0 on this commit, only a, b; `uv run imageclf recipes c` runs a recipe",
    ):
        comparison.groups(["c"], found)
    with pytest.raises(UserError, match="only none"):
        comparison.groups(["c"], {})
    with pytest.raises(UserError, match=re.escape("a is not finished: a-s1 (running)")):
        comparison.groups(["a"], {**found, "a-s1": experiment("a-s1", 0.5, state="running")})
    with pytest.raises(UserError, match="some of the experiments a-s\\* have the same seed"):
        comparison.groups(["a"], found)
    with pytest.raises(UserError, match="differ in dataset, not only in the seed"):
        comparison.groups(["a"], {**found, "a-s1": experiment("a-s1", 0.5, seed=1, dataset="digits")})


def test_a_difference_that_is_not_significant_is_not_called_one() -> None:
    sentence = conclusion(group("a", 0.9801, 0.9793, 0.9809), group("b", 0.9806, 0.9785, 0.9797))
    assert sentence == "a and b do not differ significantly: 98.01 ± 0.08 against 97.96 ± 0.11, n=3, p=0.55"


def test_a_difference_has_an_interval_and_the_better_group_comes_first() -> None:
    sentence = conclusion(group("low", 0.90, 0.91, 0.92), group("high", 0.95, 0.96))
    assert re.fullmatch(
        r"high is better than low by 4\.50 points \(95% interval [\d.]+ to [\d.]+\): "
        r"95\.50 ± 0\.71 against 91\.00 ± 1\.00, n=2 and 3, p=0\.0\d+",
        sentence,
    )


def test_single_nets_are_compared_on_their_images(predictions: dict[str, str]) -> None:
    one, other = group("a", 0.75), group("b", 0.9)
    assert conclusion(one, other) == (
        "b and a cannot be compared by a test (90.00 against 75.00, n=1): no predictions of the same images"
    )
    predictions |= {"rev-a-s0": table(150), "rev-b-s0": table(180)}
    assert conclusion(one, other) == (
        "b is better than a by 15.00 points on the same images: 90.00 against 75.00, n=1, p<0.001; "
        "more seeds are needed to compare the recipes"
    )
    predictions["rev-b-s0"] = table(153)
    assert conclusion(one, other) == "b and a do not differ significantly: 90.00 against 75.00, n=1, p=0.25"


@pytest.mark.parametrize("other", ["other labels", "other data"])
def test_other_images_are_not_paired(other: str, predictions: dict[str, str]) -> None:
    predictions |= {"rev-a-s0": table(150), "rev-b-s0": table(180, 198 if other == "other labels" else 200)}
    second = group("b", 0.9, dataset="kmnist" if other == "other data" else "mnist")
    (pair,) = comparison.pairs([group("a", 0.75), second])
    assert (pair.on_images, pair.p) == ({}, None)


def test_a_single_seed_and_several_are_not_tested(predictions: dict[str, str]) -> None:
    predictions |= {"rev-a-s0": table(150), "rev-b-s0": table(180)}
    assert conclusion(group("a", 0.75), group("b", 0.9, 0.91)).endswith("n=2 and 1): a single seed on one side")


def test_seeds_that_both_have_are_paired(predictions: dict[str, str]) -> None:
    predictions |= {f"rev-a-s{seed}": table(150) for seed in range(3)}
    predictions |= {"rev-b-s0": table(150), "rev-b-s1": table(190)}
    (pair,) = comparison.pairs([group("a", 0.75, 0.75, 0.75), group("b", 0.75, 0.95)])
    assert {seed: (test.only_first, test.only_second) for seed, test in pair.on_images.items()} == {
        0: (0, 0),
        1: (0, 40),
    }
    assert comparison.sentence(pair).endswith("; net against net on the same images, significant for 1 of 2 seeds")


def test_p_values_are_adjusted_for_the_number_of_pairs() -> None:
    groups = [group("a", 0.90, 0.91, 0.92), group("b", 0.95, 0.96, 0.95), group("c", 0.90, 0.92, 0.91)]
    alone = comparison.pairs(groups, [("a", "b")])[0].p
    among = comparison.pairs(groups)
    assert [(pair.first.name, pair.second.name) for pair in among] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert alone is not None
    assert among[0].p == pytest.approx(3 * alone)
    assert among[1].p == 1


def test_an_interval_is_cut_at_0_and_100() -> None:
    assert ends(group("a", 0.99, 1.0).accuracy) == pytest.approx((93.147, 100), abs=1e-3)
    assert ends(group("a", 0.0, 0.01).accuracy) == pytest.approx((0, 6.853), abs=1e-3)


def test_a_reference_is_in_percent() -> None:
    assert asdict(compare.parse_reference("98.01,0.08,3")) == pytest.approx({"mean": 0.9801, "std": 0.0008, "n": 3})
    assert compare.parse_reference("62") == Reference(0.62)
    for wrong in ("", "a", "1,2", "1,2,3,4"):
        with pytest.raises(UserError, match="should be a mean, or mean,std,n"):
            compare.parse_reference(wrong)


def test_only_the_chosen_pairs_are_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {f"{name}-s{seed}": experiment(f"{name}-s{seed}", 0.5, seed=seed) for name in "abc" for seed in (0, 1)}
    published: list[Comparison] = []
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(compare.experiments, "show", lambda _revision: found)
    monkeypatch.setattr(publication, "publish", lambda compared, _out: published.append(compared))
    compare.main(["a", "b", "c", "--pair", "c", "a", "--title", "Three", "--not-measured", "vgg-cifar10"])
    assert published[0].title == "Three"
    assert [(pair.first.name, pair.second.name) for pair in published[0].pairs] == [("c", "a")]
    assert published[0].not_measured == ["vgg-cifar10"]
    with pytest.raises(UserError, match="--pair: b is not among the names to compare"):
        compare.main(["a", "--pair", "a", "b"])
    with pytest.raises(UserError, match=r"'vgg-cifar' is not a recipe in recipes\.yaml; did you mean 'vgg-cifar10'"):
        compare.main(["a", "--not-measured", "vgg-cifar"])
    found["fc500-s0"] = experiment("fc500-s0", 0.5)
    with pytest.raises(UserError, match="--not-measured: fc500 is among the names to compare"):
        compare.main(["fc500", "--not-measured", "fc500"])
