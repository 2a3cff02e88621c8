"""Tests of the benchmark against other frameworks: its arithmetic, its nets, its page and its figure."""

import importlib.metadata
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import prepare_with
from matplotlib.container import ErrorbarContainer

from benchmarks import ROOT, lower_bound, machine, nets, output, peers, projects, report, tutorial
from benchmarks.competitors import COMPETITORS, NEEDS, WARM_UP, compute_lower_bound, train_tutorial
from benchmarks.task import Task, outcome
from imageclf import models, params, yaml12
from imageclf.contracts import dataset
from imageclf.contracts.dataset import Prepared
from imageclf.contracts.raw import Images, RawData
from imageclf.core import paths
from imageclf.core.errors import UserError
from imageclf.study import recipes
from imageclf.tracking.summary import describe_layers

SHAPES = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32), "folder": (3, 32, 32)}


def parameters(recipe: str, **changes: Any) -> params.Params:
    """Return a recipe's parameters, as the benchmark changes them."""
    values = projects.parameters(recipe, Path("no/data")) | changes
    return params.validate(recipes.merge(yaml12.read(ROOT / paths.PARAMS), values), recipe)


def pipeline_net(chosen: params.Params) -> torch.nn.Module:
    """Return the net that the pipeline trains with these parameters."""
    arguments = {key: getattr(chosen, key) for key in models.parameter_names(chosen.model)}
    return models.build(chosen.model, SHAPES[chosen.dataset], 10, **arguments)


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    """Return prepared data of 120 color images of 32x32 pixels in 10 classes, 100 of them for training."""
    random = np.random.default_rng(0)
    labels = np.arange(120) % 10
    images = random.integers(256, size=(120, 3, 32, 32), dtype=np.uint8)
    part = Images(labels, lambda: iter([images]))
    raw = RawData({"train": part, "test": part}, tuple("abcdefghij"), (3, 32, 32))
    prepare_with(raw, tmp_path / "processed", dataset="folder", val_fraction=1 / 6)
    return dataset.read(tmp_path / "processed")


def test_lower_bound_of_an_mlp_counts_three_products_per_layer_and_two_for_the_first() -> None:
    chosen = parameters("mlp5")
    first, *rest = 784 * 512, 512 * 256, 256 * 128, 128 * 64, 64 * 10
    assert lower_bound.multiply_adds(describe_layers(pipeline_net(chosen), (1, 28, 28)), images=7) == 7 * (
        2 * first + 3 * sum(rest)
    )


def test_lower_bound_of_a_cnn_counts_each_weight_once_per_position() -> None:
    chosen = parameters("cnn6")
    first, second = 6 * 1 * 25 * 24 * 24, 6 * 6 * 25 * 8 * 8
    dense = 96 * 50 + 50 * 10
    expected = 2 * first + 3 * (second + dense)
    assert (
        lower_bound.multiply_adds(describe_layers(pipeline_net(chosen), (1, 28, 28)), images=1) == expected == 361_500
    )


def test_product_rate_is_plausible() -> None:
    assert 1e6 < lower_bound.product_rate(side=64, repeats=3) < 1e15


@pytest.mark.parametrize("recipe", peers.RECIPES)
def test_the_tutorials_net_has_as_many_parameters_as_the_pipelines(recipe: str) -> None:
    chosen = parameters(recipe)
    net = nets.torch_net(nets.layers(chosen, 10), SHAPES[chosen.dataset])
    counts = [sum(weight.numel() for weight in each.parameters()) for each in (net, pipeline_net(chosen))]
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("recipe", peers.RECIPES)
def test_every_recipe_has_what_the_competitors_look_up(recipe: str) -> None:
    chosen = parameters(recipe)
    assert recipe in WARM_UP
    assert chosen.optimizer in tutorial.OPTIMIZERS
    assert chosen.loss in tutorial.LOSSES
    # The other competitors have none of these.
    assert (chosen.shift, chosen.flip, chosen.cutout, chosen.dropout) == (0, False, 0, 0)
    assert (chosen.label_smoothing, chosen.weight_decay, chosen.schedule) == (0, 0, "constant")


def test_an_epoch_of_the_tutorial_is_scaled_from_its_share(prepared: Prepared, one_thread: None) -> None:
    task = Task("cifar-cnn", parameters("cifar-cnn", batch_size=10), prepared, epochs=2, share=0.5)
    assert task.steps == (5, 10)
    found = train_tutorial(task, workers=0)
    assert len(found.seconds) == 2
    assert min(found.seconds) > 0
    assert found.warm_up == []
    assert found.epochs == 1.5
    assert 0 <= (found.accuracy or 0) <= 1


def test_outcome_takes_the_last_epochs() -> None:
    data = {"train": range(95)}
    task = Task("fc500", parameters("fc500", batch_size=10), data, epochs=2, share=0.5)  # type: ignore[arg-type]
    found = outcome(task, [100.0, 103.0, 105.0, 106.0], accuracy=0.5, threads=2)
    assert task.steps == (5, 10)
    assert (found.warm_up, found.seconds, found.epochs) == ([6.0], [4.0, 2.0], 2.0)


def test_the_lower_bound_is_below_the_tutorial(prepared: Prepared, one_thread: None) -> None:
    task = Task("cifar-cnn", parameters("cifar-cnn", **{"runtime.threads": 1}), prepared, epochs=1, share=1.0)
    assert 0 < compute_lower_bound(task).seconds[0] < train_tutorial(task, workers=0).seconds[0]


def test_normalized_is_what_the_loader_gives(prepared: Prepared) -> None:
    loader = tutorial.loader(parameters("cifar-cnn"), prepared, workers=0)
    images = torch.from_numpy(tutorial.normalized(prepared, "train"))
    for row in (0, 57):
        image, label = loader.dataset[row]
        torch.testing.assert_close(image, images[row])
        assert label == prepared["train"].labels[row]


def test_subsample_keeps_a_share_of_each_split_that_is_still_verified(prepared: Prepared) -> None:
    projects.subsample(prepared.folder, 50)
    kept = dataset.read(prepared.folder)
    assert kept.manifest.counts == {"train": 50, "val": 10, "test": 60}
    assert np.bincount(kept["train"].labels).tolist() == [5] * 10
    assert kept["train"].images.shape == (50, 3, 32, 32)


def made(*rounds: list[float], accuracy: float | None = 0.9, epochs: float = 2.0) -> list[dict[str, Any]]:
    """Return outcomes of rounds whose epochs took the given seconds."""
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
    assert (row.median, row.rounds, row.accuracy) == (2.0, [2.0, 2.0, 5.0], 0.98)


def page(content: dict[str, Any]) -> str:
    """Return the page without the padding of its tables."""
    return re.sub(" +", " ", report.as_markdown(content, "peers.png"))


def test_the_table_compares_with_the_tutorial_the_best_peer_and_the_lower_bound() -> None:
    text = page(CONTENT)
    assert "## fc500: 1,000 train images, scaled from 100" in text
    assert "| imageclf | 2 | 2 to 5 | 5.00x | 2.00x | 25.0% | 98.00 | 2 |" in text
    assert "| tutorial-0 | 10 | 8 to 12 | 1.00x | 0.40x | 5.0% | 90.00 | 2 |" in text
    assert "| lower-bound | 0.5 | 0.4 to 0.5 | 20.00x | 8.00x | 100.0% | | |" in text


def test_a_remark_in_the_numbers_is_on_the_page() -> None:
    assert "\n\nOne round is missing.\n\nSeconds are" in page({**CONTENT, "remarks": ["One round is missing."]})


def test_old_and_new_names_of_competitors_give_the_same_page() -> None:
    renamed = {report.OLD_NAMES.get(name, name): rounds for name, rounds in CONTENT["seconds"]["fc500"].items()}
    assert {"imageclf", "lower-bound"} < set(renamed) < set(COMPETITORS)
    assert page({**CONTENT, "seconds": {"fc500": renamed}}) == page(CONTENT)


def test_without_the_tutorial_loop_there_are_no_ratios_and_no_figure() -> None:
    alone = {**CONTENT, "seconds": {"fc500": {"ours": made([2.0])}}}
    assert "| imageclf | 2 | 2 to 2 | | | | 90.00 | 2 |" in page(alone)
    assert report.draw(alone) is None


def test_the_figure_shows_ratios_to_the_tutorial_loop_on_one_range_for_all_recipes() -> None:
    slow = {name: made(*rounds) for name, rounds in {"tutorial-0": [[10.0]], "keras-jax": [[30.0], [10.0]]}.items()}
    figure = report.draw({**CONTENT, "seconds": {**CONTENT["seconds"], "mlp5": slow}})
    assert figure is not None
    first, second = figure.axes
    assert first.get_xlim() == second.get_xlim() == (0, pytest.approx(3.6))
    labels = [label.get_text() for label in first.get_yticklabels()]
    assert labels == ["tutorial loop", "Keras on JAX", "imageclf", "lower bound (multiply-adds)"]
    dots = [container for container in first.containers if isinstance(container, ErrorbarContainer)]
    markers = [np.asarray(dot.lines[0].get_xydata()).tolist() for dot in dots]
    assert markers == [[[1.0, 0]], [[0.4, 1]], [[0.2, 2]], [[0.05, 3]]]
    ((low, high),) = dots[2].lines[2][0].get_segments()
    assert (low[0], high[0]) == (0.2, 0.5), "fastest to slowest round"


def test_redraw_makes_page_and_figure_from_the_numbers_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "peers.json").write_text(json.dumps(CONTENT))
    monkeypatch.setattr("sys.argv", ["peers", "--redraw", "--data", "no/data", "--out", str(tmp_path / "peers")])
    peers.main()
    assert (tmp_path / "peers.md").read_text() == report.as_markdown(CONTENT, "peers.png")
    assert (tmp_path / "peers.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "peers.json").unlink()
    with pytest.raises(UserError, match="does not exist; measure first"):
        peers.main()


def test_a_table_is_padded_markdown() -> None:
    assert output.markdown_table([["", "s"], ["a", "1234"], ["name", "5"]]).splitlines() == [
        "|      |    s |",
        "| ---- | ---: |",
        "| a    | 1234 |",
        "| name |    5 |",
    ]


def test_an_outcome_on_few_images_is_scaled_in_seconds_only() -> None:
    (scaled,) = [peers.to_whole_epoch(each, 10) for each in made([1.0, 2.0])]
    assert (scaled["seconds"], scaled["accuracy"], scaled["epochs"]) == ([10.0, 20.0], 0.9, 2.0)


def test_a_competitor_without_its_package_is_left_out_and_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "installed", lambda package: package != "jax")
    assert peers.present(["imageclf", "keras-jax", "keras-tensorflow"]) == ["imageclf", "keras-tensorflow"]
    assert "keras-jax is left out: jax" in capsys.readouterr().out
    assert set(NEEDS) <= set(COMPETITORS)


@pytest.mark.parametrize(
    ("competitor", "changes"),
    [("imageclf-compile", {"compile": True}), ("imageclf-bfloat16", {"precision": "bfloat16"}), ("imageclf", {})],
)
def test_a_competitor_leaves_the_parameters_as_they_were(
    competitor: str, changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise, from the second round on, all of them train with the options of the last one."""
    monkeypatch.chdir(tmp_path)
    before = {"compile": False, "precision": "float32", "epochs": 40}
    paths.PARAMS.write_text(json.dumps(before))
    found = {}

    def stop_before_training(*_: object) -> None:
        found.update(yaml12.read(paths.PARAMS))
        raise InterruptedError

    monkeypatch.setattr(projects, "run", stop_before_training)
    data = Prepared.__new__(Prepared)
    with pytest.raises(InterruptedError):
        COMPETITORS[competitor](Task("fc500", parameters("fc500"), data, epochs=1, share=1.0))
    assert found == {**before, **changes, "epochs": 15}
    assert yaml12.read(paths.PARAMS) == before


def test_the_machine_is_described() -> None:
    described = machine.describe_with_commit(["numpy", "no-such-package"])
    assert described["packages"] == {"numpy": importlib.metadata.version("numpy")}
    assert json.loads(json.dumps(described))["cores"] >= 1
    assert described["commit"][:7] in machine.sentence(described)
