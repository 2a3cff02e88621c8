"""`dvc.yaml` says what the stages really do: DVC re-runs by its lists and does not follow imports."""

import ast
import itertools
from pathlib import Path
from typing import get_args

import pytest
from dvc.utils.serialize import parse_yaml
from imports import ROOT, SOURCE, imported_files, imported_names

from imageclf import params, paths
from stages import check

STAGES: dict[str, dict[str, list[object]]] = parse_yaml((ROOT / "dvc.yaml").read_text(), "dvc.yaml")["stages"]
CLASSES = {
    "check": params.CheckParams,
    "list": params.DownloadParams,
    "download": params.DownloadParams,
    "preprocess": params.PreprocessParams,
    "train": params.TrainParams,
    "evaluate": params.EvaluateParams,
}

# Imported, and yet no reason to run a stage again.
NOT_A_REASON = {
    "params.py": "holds the whole schema; it can only refuse or parse, and the values are listed as `params`",
    "tracking.py": "what MLflow is told changes no output",
    "recorder.py": "the same",
    "store.py": "the same",
    "yaml12.py": "it can only refuse or parse, as `params` does",
}
NOT_A_REASON_TO_TRAIN = {
    "reports.py": "the wording of a table must not retrain a net",
    "progress.py": "nor that of a progress bar",
    "summary.py": "nor a printed table",
}


def listed(stage: str, kind: str) -> set[str]:
    """The paths or keys under one list of a stage in dvc.yaml, options left away."""
    entries = STAGES[stage].get(kind, [])
    return {next(iter(entry)) if isinstance(entry, dict) else str(entry) for entry in entries}


def files_of(dependency: str) -> set[Path]:
    """A dependency that is a folder of code stands for the files in it."""
    path = ROOT / dependency
    return set(path.rglob("*.py")) if path.is_dir() else {path}


def constants_read(path: Path) -> set[str]:
    """The `paths.NAME` constants that a file mentions."""
    return {
        node.attr
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "paths"
    }


@pytest.mark.parametrize("stage", STAGES)
def test_code_deps_are_what_the_stage_imports(stage: str) -> None:
    excused = {*NOT_A_REASON, *(NOT_A_REASON_TO_TRAIN if stage == "train" else {})}
    imported = imported_files(ROOT / "stages" / f"{stage}.py", stop={SOURCE / "imageclf" / name for name in excused})
    dependencies = {name for name in listed(stage, "deps") if name.startswith(("src/", "stages/"))}
    assert set().union(*map(files_of, dependencies)) == imported


@pytest.mark.parametrize("stage", STAGES)
def test_params_are_the_fields_of_the_stages_class(stage: str) -> None:
    assert listed(stage, "params") - {str(paths.SOURCE)} == set(CLASSES[stage].model_fields)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_reads_each_of_its_params_and_no_others(stage: str) -> None:
    tree = ast.parse((ROOT / "stages" / f"{stage}.py").read_text())
    read = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    if stage == "train":  # the nets' own knobs are taken by name
        from imageclf import models

        read |= {knob for name in models.MODELS for knob in models.parameter_names(name)}
    assert set(CLASSES[stage].model_fields) <= read
    of = {
        node.args[0].attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "of"
        and isinstance(node.args[0], ast.Attribute)
    }
    assert of <= {CLASSES[stage].__name__}


@pytest.mark.parametrize("stage", STAGES)
def test_data_deps_and_outputs_are_the_paths_the_stage_names(stage: str) -> None:
    named: set[str] = set()
    for constant in constants_read(ROOT / "stages" / f"{stage}.py") - {"repository"}:
        path = str(getattr(paths, constant))
        named.add("data/model" if path.startswith("data/model/") else path)
    declared = set().union(*(listed(stage, kind) for kind in ("deps", "outs", "metrics", "plots")))
    assert named - {"params.yaml", "dvc.yaml"} == {path for path in declared if path.startswith(("data/", "metrics/"))}


def test_every_path_constant_is_declared_in_dvc_yaml() -> None:
    declared = set().union(*(listed(stage, kind) for stage in STAGES for kind in ("outs", "metrics", "plots")))
    constants = {str(value) for name, value in vars(paths).items() if name.isupper() and isinstance(value, Path)}
    inside = {path for path in constants if str(Path(path).parent) in declared}
    assert constants - inside - {"params.yaml", "dvc.yaml", "metrics"} == declared


def test_no_stage_lists_the_machines_settings() -> None:
    assert not any(key.startswith("runtime") for stage in STAGES for key in listed(stage, "params"))


def test_every_key_of_params_yaml_belongs_to_a_stage_or_to_runtime() -> None:
    keys = set(parse_yaml((ROOT / "params.yaml").read_text(), "params.yaml"))
    assert keys == {"runtime"}.union(*(listed(stage, "params") for stage in STAGES)) - {str(paths.SOURCE)}


# The first stage that a change of the key runs again; train for all others. Later stages follow through their data.
FIRST_TO_RUN = {
    "dataset": "check",
    "folder": "list",
    "classes": "preprocess",
    "val_fraction": "preprocess",
    "split_seed": "preprocess",
    "grayscale": "preprocess",
    "image_size": "preprocess",
    "pad": "preprocess",
    "normalize": "preprocess",
    "permute": "preprocess",
    "permute_seed": "preprocess",
    "one_hot": "preprocess",
}


@pytest.mark.parametrize("key", [key for key in params.Params.model_fields if key != "runtime"])
def test_a_changed_key_runs_the_right_stages_again(key: str) -> None:
    first = next(stage for stage in STAGES if key in listed(stage, "params"))
    assert first == FIRST_TO_RUN.get(key, "train")


def test_the_stages_are_a_chain() -> None:
    names = list(STAGES)
    assert names == ["check", "list", "download", "preprocess", "train", "evaluate"]
    for before, after in itertools.pairwise(names):
        reads = listed(after, "deps") | listed(after, "params")
        assert listed(before, "outs") & reads, f"{after} reads nothing of {before}"


def test_dvc_never_looks_into_the_users_folder() -> None:
    assert not any("$" in path for stage in STAGES for path in listed(stage, "deps"))


@pytest.mark.parametrize("dataset", get_args(params.Dataset))
def test_a_folder_of_ones_own_is_listed_each_time_and_a_published_data_set_never(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text.replace("\ndataset: digits ", f"\ndataset: {dataset} "))
    check.main()
    source = parse_yaml(paths.SOURCE.read_text(), paths.SOURCE)
    assert list(source) == ["watched"]
    assert (source["watched"] != source["watched"]) is (dataset == "folder")  # not a number


ARROWS = [
    ["stages"],
    ["permuted"],
    ["compare", "publication", "comparison", "recipes", "experiments"],
    ["tracking", "recorder", "reports", "resume", "significance", "summary", "progress", "fetch", "pack", "prepare"],
    ["store", "places", "channel", "checkpoint", "fit", "scoring", "batches", "splits", "datasets", "folder"],
    ["models", "losses", "optim", "cifar", "images", "npy", "origins", "pixels", "whitening"],
    ["params", "yaml12", "paths", "runtime", "files", "errors", "detached", "raw", "cores"],
    ["store", "checkpoint", "fit", "scoring", "batches", "splits", "datasets", "folder", "members", "census"],
    ["models", "losses", "optim", "cifar", "images", "npy", "origins", "pixels", "whitening", "fonts", "partition"],
    ["params", "yaml12", "paths", "runtime", "files", "errors", "raw", "cores"],
    ["store", "checkpoint", "fit", "scoring", "batches", "splits", "datasets", "folder", "listing"],
    ["models", "losses", "optim", "cifar", "images", "npy", "layout", "origins", "pixels", "whitening"],
    [
        "store",
        "checkpoint",
        "fit",
        "scoring",
        "batches",
        "splits",
        "datasets",
        "folder",
        "members",
        "census",
        "listing",
    ],
    [
        "models",
        "losses",
        "optim",
        "cifar",
        "images",
        "npy",
        "layout",
        "origins",
        "pixels",
        "whitening",
        "fonts",
        "partition",
    ],
    ["archives", "directories"],
    ["params", "yaml12", "paths", "runtime", "files", "entries", "errors", "raw", "cores"],
]
"""Imports point downwards; within a row they must not go round."""


def layer(name: str) -> int:
    """The row of a module in ARROWS, by its dotted name."""
    top = name.removeprefix("imageclf.").split(".")[0]
    return next(row for row, names in enumerate(ARROWS) if top in names)


def modules() -> list[Path]:
    """Every module of the library and of the stages."""
    return [path for path in (*SOURCE.rglob("*.py"), *(ROOT / "stages").glob("*.py")) if path.name != "__init__.py"]


def test_imports_point_one_way() -> None:
    for path in modules():
        here = path.stem if path.parent.name == "imageclf" else path.parent.name
        for name in imported_names(path):
            top = name.removeprefix("imageclf.").split(".")[0]
            if name.startswith("imageclf.") and any(top in row for row in ARROWS) and top != here:
                assert layer(here) <= layer(name), f"{path.name} imports {name}"
        assert here == "stages" or not any(name.startswith("stages") for name in imported_names(path))


@pytest.mark.parametrize("stage", STAGES)
def test_stages_never_import_stages(stage: str) -> None:
    assert not any(name.startswith("stages") for name in imported_names(ROOT / "stages" / f"{stage}.py"))


@pytest.mark.parametrize("name", ["models/mlp", "losses", "optim", "scoring", "fit", "batches"])
def test_the_mathematics_knows_nothing_of_yaml_or_mlflow(name: str) -> None:
    reached = {path.stem for path in imported_files(SOURCE / "imageclf" / f"{name}.py")}
    assert not reached & {"params", "yaml12", "tracking", "recorder", "store", "reports"}
