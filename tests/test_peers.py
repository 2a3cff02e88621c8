"""The benchmark against peers: its arithmetic, and that its nets are ours."""

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import floor, machine, nets, peers, projects, report, tutorial
from benchmarks.contestants import CONTESTANTS, NEEDS, SETTLE, compute_floor, train_tutorial
from benchmarks.task import Task, outcome
from imageclf import models, params, paths, recipes, splits, yaml12
from imageclf.prepare import prepare
from imageclf.raw import Images, RawData
from imageclf.splits import Prepared
from imageclf.summary import describe_layers

SHAPES = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32), "folder": (3, 32, 32)}


def knobs(recipe: str, **changes: Any) -> params.Params:
    """A recipe's parameters, as the benchmark changes them."""
    values = projects.values(recipe, Path("no/data")) | changes
    return params.validate(recipes.merge(yaml12.read(projects.ROOT / paths.PARAMS), values), recipe)


def ours(settings: params.Params) -> torch.nn.Module:
    """The pipeline's own net for those parameters."""
    arguments = {key: getattr(settings, key) for key in models.parameter_names(settings.model)}
    return models.build(settings.model, SHAPES[settings.dataset], 10, **arguments)


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    """120 colour images of 32x32 in 10 classes, 100 of them to train on."""
    random = np.random.default_rng(0)
    labels = np.arange(120) % 10
    images = random.integers(256, size=(120, 3, 32, 32), dtype=np.uint8)
    part = Images(labels, lambda: iter([images]))
    raw = RawData({"train": part, "test": part}, tuple("abcdefghij"), (3, 32, 32))
    prepare(
        raw,
        tmp_path / "processed",
        dataset="folder",
        classes=None,
        val_fraction=1 / 6,
        split_seed=0,
        grayscale=False,
        image_size=None,
        pad=0,
        normalize="standard",
        permute_seed=None,
        one_hot=False,
    )
    return splits.read(tmp_path / "processed")


def test_floor_of_an_mlp_counts_three_products_a_layer_but_two_of_the_first() -> None:
    settings = knobs("mlp5")
    first, *rest = 784 * 512, 512 * 256, 256 * 128, 128 * 64, 64 * 10
    assert floor.multiply_adds(describe_layers(ours(settings), (1, 28, 28)), images=7) == 7 * (
        2 * first + 3 * sum(rest)
    )


def test_floor_of_a_cnn_counts_each_weight_once_a_position() -> None:
    settings = knobs("cnn6")
    first, second = 6 * 1 * 25 * 24 * 24, 6 * 6 * 25 * 8 * 8
    dense = 96 * 50 + 50 * 10
    expected = 2 * first + 3 * (second + dense)
    assert floor.multiply_adds(describe_layers(ours(settings), (1, 28, 28)), images=1) == expected == 361_500


def test_product_rate_is_plausible() -> None:
    assert 1e6 < floor.product_rate(side=64, repeats=3) < 1e15


@pytest.mark.parametrize("recipe", peers.RECIPES)
def test_the_tutorials_net_has_as_many_parameters_as_ours(recipe: str) -> None:
    settings = knobs(recipe)
    net = nets.torch_net(nets.layers(settings, 10), SHAPES[settings.dataset])
    counts = [sum(weight.numel() for weight in each.parameters()) for each in (net, ours(settings))]
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("recipe", peers.RECIPES)
def test_every_recipe_has_what_the_contestants_look_up(recipe: str) -> None:
    settings = knobs(recipe)
    assert recipe in SETTLE
    assert settings.optimizer in tutorial.OPTIMIZERS
    assert settings.loss in tutorial.LOSSES
    # What no contestant but ours would do.
    assert (settings.shift, settings.flip, settings.cutout, settings.dropout) == (0, False, 0, 0)
    assert (settings.label_smoothing, settings.weight_decay, settings.schedule) == (0, 0, "constant")


def test_an_epoch_of_the_tutorial_is_scaled_from_its_share(prepared: Prepared, one_thread: None) -> None:
    task = Task("cifar-cnn", knobs("cifar-cnn", batch_size=10), prepared, epochs=2, share=0.5)
    assert task.steps == (5, 10)
    found = train_tutorial(task, workers=0)
    assert len(found.seconds) == 2
    assert min(found.seconds) > 0
    assert found.warm_up == []
    assert found.epochs == 1.5
    assert 0 <= (found.accuracy or 0) <= 1


def test_outcome_takes_the_last_epochs() -> None:
    data = {"train": range(95)}
    task = Task("fc500", knobs("fc500", batch_size=10), data, epochs=2, share=0.5)  # type: ignore[arg-type]
    found = outcome(task, [100.0, 103.0, 105.0, 106.0], accuracy=0.5, threads=2)
    assert task.steps == (5, 10)
    assert (found.warm_up, found.seconds, found.epochs) == ([6.0], [4.0, 2.0], 2.0)


def test_the_floor_is_below_the_tutorial(prepared: Prepared, one_thread: None) -> None:
    task = Task("cifar-cnn", knobs("cifar-cnn", **{"runtime.threads": 1}), prepared, epochs=1, share=1.0)
    assert 0 < compute_floor(task).seconds[0] < train_tutorial(task, workers=0).seconds[0]


def test_normalized_is_what_the_loader_gives(prepared: Prepared) -> None:
    loader = tutorial.loader(knobs("cifar-cnn"), prepared, workers=0)
    images = torch.from_numpy(tutorial.normalized(prepared, "train"))
    for row in (0, 57):
        image, label = loader.dataset[row]
        torch.testing.assert_close(image, images[row])
        assert label == prepared["train"].labels[row]


def test_thin_keeps_a_share_of_each_split_that_reads_as_before(prepared: Prepared) -> None:
    projects.thin(prepared.folder, 50)
    thinned = splits.read(prepared.folder)
    assert thinned.manifest["counts"] == {"train": 50, "val": 10, "test": 60}
    assert np.bincount(thinned["train"].labels).tolist() == [5] * 10
    assert thinned["train"].images.shape == (50, 3, 32, 32)


def made(*rounds: list[float], accuracy: float | None = 0.9, epochs: float = 2.0) -> list[dict[str, Any]]:
    """Outcomes of rounds whose epochs took so many seconds."""
    return [
        {"seconds": seconds, "warm_up": [], "accuracy": accuracy, "epochs": epochs, "threads": 2} for seconds in rounds
    ]


CONTENT = {
    "machine": {
        "commit": "0123456789",
        "changed_since": False,
        "processor": "a chip",
        "cores": 2,
        "python": "3.11",
        "packages": {"torch": "2"},
    },
    "rounds": 3,
    "epochs": 2,
    "shares": {"tutorial-0": 0.5},
    "shares_above": 10,
    "images": {"fc500": {"train": 100, "of": 1000}},
    "seconds": {
        "fc500": {
            "tutorial-0": made([8.0], [12.0], [10.0]),
            "keras-jax": made([4.0], [3.0], [5.0]),
            "ours": made([1.0, 3.0], [2.0, 2.0], [5.0, 5.0], accuracy=0.98),
            "floor": made([0.5], [0.5], [0.4], accuracy=None),
        }
    },
}


def test_a_row_is_the_median_of_the_rounds_means() -> None:
    row = report.row("ours", CONTENT["seconds"]["fc500"]["ours"])
    assert (row.median, row.least, row.most, row.accuracy) == (2.0, 2.0, 5.0, 0.98)


def test_the_table_compares_with_the_tutorial_the_best_peer_and_the_floor() -> None:
    text = report.as_markdown(CONTENT, "peers.png")
    assert "## fc500: 1,000 train images, scaled from 100" in text
    assert "| ours | 2 | 2 to 5 | 5.00x | 2.00x | 25.0% | 98.00 | 2 |" in text
    assert "| tutorial-0 | 10 | 8 to 12 | 1.00x | 0.40x | 5.0% | 90.00 | 2 |" in text
    assert "| floor | 0.5 | 0.4 to 0.5 | 20.00x | 8.00x | 100.0% |  |  |" in text


def test_the_table_has_no_ratio_to_a_contestant_who_did_not_take_part() -> None:
    alone = {**CONTENT, "seconds": {"fc500": {"ours": made([2.0])}}}
    assert "| ours | 2 | 2 to 2 |  |  |  | 90.00 | 2 |" in report.as_markdown(alone, "peers.png")


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    report.draw(tmp_path / "peers.png", CONTENT)
    assert (tmp_path / "peers.png").read_bytes().startswith(b"\x89PNG")


def test_an_outcome_on_few_images_is_scaled_in_seconds_only() -> None:
    (scaled,) = [peers.scale(each, 10) for each in made([1.0, 2.0])]
    assert (scaled["seconds"], scaled["accuracy"], scaled["epochs"]) == ([10.0, 20.0], 0.9, 2.0)


def test_who_lacks_a_package_is_left_out_and_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "installed", lambda package: package != "jax")
    assert peers.present(["ours", "keras-jax", "keras-tensorflow"]) == ["ours", "keras-tensorflow"]
    assert "keras-jax is left out: jax" in capsys.readouterr().out
    assert set(NEEDS) <= set(CONTESTANTS)


def test_the_machine_is_described() -> None:
    described = machine.describe(["numpy", "no-such-package"])
    assert described["packages"] == {"numpy": importlib.metadata.version("numpy")}
    assert json.loads(json.dumps(described))["cores"] >= 1
    assert described["commit"][:7] in machine.sentence(described)
