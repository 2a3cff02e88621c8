"""Tests of the names and texts on MLflow's pages."""

import json

import pytest
from helpers import new_manifest
from imports import ROOT

from imageclf import params, yaml12
from imageclf.tracking import descriptions
from imageclf.tracking.recorder import views

MANIFEST = new_manifest(
    counts={"train": 1294, "test": 359, "val": 144},
    files={
        f"{split}_{kind}.npy": split[0] * 64 for split in ("train", "val", "test") for kind in ("images", "targets")
    },
)


def settings(**changes: object) -> params.Params:
    return params.validate({**yaml12.read(ROOT / "params.yaml"), **changes}, "params.yaml")


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"dataset": "mnist", "model": "mlp"}, "mlp-mnist"),
        ({"dataset": "mnist", "permute": True}, "cnn-mnist-permuted"),
        ({"dataset": "folder", "folder": "~/my pets (2).tar"}, "cnn-my pets -2-"),
        ({"dataset": "folder", "folder": "/data/a:b%'\""}, "cnn-a-b-"),
    ],
)
def test_a_model_has_the_name_of_its_net_and_data(changes: dict[str, object], name: str) -> None:
    assert descriptions.model_name(settings(**changes)) == name


def test_each_split_is_a_dataset_with_its_digest_and_source() -> None:
    found = descriptions.datasets(settings(dataset="mnist"), MANIFEST)
    assert {split: each.context for split, each in found.items()} == {
        "train": "training",
        "val": "validation",
        "test": "testing",
    }
    assert found["train"].digest == "t" * 36
    assert json.loads(found["test"].source)["url"].startswith("https://")
    assert json.loads(found["test"].profile) == {"images": 359, "classes": 2}
    (own, *_) = descriptions.datasets(settings(dataset="folder", folder="/secret/place/pets"), MANIFEST).values()
    assert own.name == "pets-train"
    assert "secret" not in own.source


def test_a_description_says_how_to_get_the_files() -> None:
    text = descriptions.of_run(settings(), MANIFEST, "lr-01", {"accuracy": 0.98765})
    assert "1,294 train, 144 val, 359 test images" in text
    assert "98.77%" in text
    assert "`uv run dvc exp apply lr-01`" in text
    assert "dvc repro" in descriptions.of_run(settings(permute=True), MANIFEST, None)


def test_a_long_description_is_shortened_at_the_end_of_a_line() -> None:
    assert descriptions.shortened("short") == "short"
    shortened = descriptions.shortened("a line\n" * 1000)
    assert len(shortened) <= descriptions.TEXT
    assert shortened.endswith("a line\n\n(shortened)")


def test_the_columns_of_the_table_exist() -> None:
    assert set(views.PARAMETERS) <= set(yaml12.read(ROOT / "params.yaml"))
