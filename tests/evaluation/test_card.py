"""Tests of the model card."""

import dataclasses
from typing import Any

import numpy as np
from helpers import new_manifest, new_spec

from imageclf.contracts.preparation import Preparation
from imageclf.evaluation import card, quality

CONFUSION = np.array([[97, 3, 0], [10, 40, 0], [1, 4, 0]])


def findings(confusion: Any = CONFUSION, notes: tuple[str, ...] = ()) -> card.Findings:
    """Return what an evaluation finds whose predictions have a probability of 0.9."""
    labels = np.repeat(np.arange(len(confusion)), confusion.sum(axis=1))
    predicted = np.concatenate([np.repeat(np.arange(len(row)), row) for row in confusion])
    probabilities = np.full((len(labels), len(confusion)), 0.1 / (len(confusion) - 1), np.float32)
    probabilities[np.arange(len(labels)), predicted] = 0.9
    return card.Findings(
        train={"train": {"loss": 0.1, "accuracy": 0.95}, "val": {"loss": 0.2, "accuracy": 0.93}},
        test={"loss": 0.3, "accuracy": 137 / 155},
        classes=quality.per_class(confusion),
        calibration=quality.calibration(labels, probabilities),
        remarks=list(notes),
    )


def page(found: card.Findings | None = None, **changes: Any) -> str:
    spec = new_spec(**{"classes": ["cat", "dog", "owl"], "weights_sha256": "a" * 64, **changes})
    manifest = new_manifest(classes=spec.classes, counts={"train": 900, "val": 100, "test": 155}, notes=["12 files"])
    return card.as_markdown(spec, manifest, found or findings())


def rows(text: str) -> dict[str, list[str]]:
    """Return the cells of the rows of all tables, by the first cell."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return {cells[1].strip(): [each.strip() for each in cells[2:-1]] for cells in (line.split("|") for line in lines)}


def test_the_page_says_what_the_model_is_and_how_good_it_is() -> None:
    text = page(
        parameters={"lr": 0.01, "hidden": [8, 4], "flip": False, "patience": None},
        preparation=Preparation(grayscale=True, image_size=4),
    )
    found = rows(text)
    assert text.startswith(
        "# Model card: mlp on made\n\nA net that assigns one of 3 classes to an image: cat, dog, owl."
    )
    assert found["test images"] == ["155"]
    assert found["preparation"] == ["grayscale True, image_size 4"]
    assert (found["lr"], found["hidden"], found["flip"], found["patience"]) == (["0.01"], ["8, 4"], ["false"], [""])
    assert found["test accuracy"] == ["0.8839", "0.8239 to 0.9253"]
    assert found["val accuracy"] == ["0.9300", ""]
    assert "mean probability of 90.00% and is right for 88.39%" in text
    assert "`" + "a" * 64 + "`" in text


def test_the_weakest_classes_come_first() -> None:
    text = page()
    names = [name for name in rows(text) if name in {"cat", "dog", "owl"}]
    assert names == ["owl", "dog", "cat"]
    assert rows(text)["owl"] == ["5", "0.0000", "0.0000 to 0.4345", ""]


def test_the_limits_hold_the_remarks_and_the_notes_of_the_data() -> None:
    text = page(findings(notes=("over-fitting: a lot",)))
    limits = text.split("## Limits")[1].split("## Load")[0]
    assert "- over-fitting: a lot\n- 12 files\n- 1 of 3 classes has fewer than 30 test images" in limits
    assert "permuted" not in limits
    assert "The net sees permuted pixels" in page(permutation=[1, 0])


def test_names_cannot_break_the_page() -> None:
    names = ["a|b", "<b>", "new\nline *x*"]
    text = page(classes=names)
    assert "assigns one of 3 classes to an image: a\\|b, \\<b\\>, new\\\\nline \\*x\\*." in text
    widths = {line.replace("\\|", "").count("|") for line in text.splitlines() if "0.4345" in line}
    assert widths == {6}


def test_a_class_without_test_images_is_no_weak_class() -> None:
    confusion = np.array([[9, 1, 0], [0, 10, 0], [0, 0, 0]])
    assert "owl" not in rows(page(findings(confusion)))


def test_the_page_depends_on_its_arguments_alone() -> None:
    assert page() == page()
    found = findings()
    assert page(found) != page(dataclasses.replace(found, test={**found.test, "loss": 0.4}))
