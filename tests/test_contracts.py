"""Tests that `dvc.yaml` lists what the stages use, as DVC follows no imports, and that imports point one way."""

import ast
import graphlib
import itertools
import re
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest
from dvc.utils.serialize import parse_yaml
from imports import ROOT, SOURCE, imported_files, imported_names, module_file

from imageclf import models, params
from imageclf.contracts.preparation import Preparation
from imageclf.core import paths
from stages import check

LIBRARY = SOURCE / "imageclf"
STAGES: dict[str, dict[str, list[object]]] = parse_yaml((ROOT / "dvc.yaml").read_text(), "dvc.yaml")["stages"]
CLASSES = {
    "check": params.CheckParams,
    "list": params.DownloadParams,
    "download": params.DownloadParams,
    "preprocess": params.PreprocessParams,
    "weights": params.WeightsParams,
    "train": params.TrainParams,
    "evaluate": params.EvaluateParams,
}

NOT_LISTED = {
    "cluster": "it starts the stage on other machines, which compute the same",
    "tracking": "what MLflow and the terminal are told changes no output",
    "params.py": "it can only parse or refuse; the values themselves are listed as `params`",
    "param_errors.py": "the same",
    "yaml12.py": "the same",
}
"""Code that stages import but do not list in dvc.yaml, because a change of it must not run a stage again."""


def listed(stage: str, kind: str) -> set[str]:
    """Return the paths or keys in one list of a stage in dvc.yaml, without their options."""
    entries = STAGES[stage].get(kind, [])
    return {next(iter(entry)) if isinstance(entry, dict) else str(entry) for entry in entries}


def files_of(dependency: str) -> set[Path]:
    """Return a dependency, or the Python files in it if it is a folder."""
    path = ROOT / dependency
    return set(path.rglob("*.py")) if path.is_dir() else {path}


def not_listed() -> set[Path]:
    """Return the files of `NOT_LISTED`, and every `__init__.py` that holds only a docstring."""
    packages = {path for path in LIBRARY.rglob("__init__.py") if len(ast.parse(path.read_text()).body) == 1}
    return packages.union(*(files_of(f"src/imageclf/{name}") for name in NOT_LISTED))


def code_files(stage: str) -> set[Path]:
    """Return the Python files that a stage lists, itself or by their folder."""
    return set().union(*(files_of(name) for name in listed(stage, "deps") if name.startswith(("src/", "stages/"))))


def constants_read(path: Path) -> set[str]:
    """Return the `paths.NAME` constants that a file mentions."""
    return {
        node.attr
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "paths"
    }


def attributes_read(path: Path) -> set[str]:
    """Return the names of all attributes that a file reads."""
    return {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}


# --- code ---


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_lists_what_it_imports(stage: str) -> None:
    assert imported_files(ROOT / "stages" / f"{stage}.py", stop=not_listed()) <= code_files(stage)


def test_train_lists_nothing_that_it_does_not_import() -> None:
    imported = imported_files(ROOT / "stages" / "train.py", stop=not_listed())
    assert code_files("train") - not_listed() == imported


@pytest.mark.parametrize(
    "file",
    [
        "usage/addresses.py",
        "download/weights.py",
        "cluster/driver.py",
        "tracking/events.py",
        "tracking/recorder/__main__.py",
        "tracking/recorder/served_model.py",
        "tracking/progress.py",
        "inference/served.py",
        "inference/predictor.py",
        "evaluation/plots.py",
        "preprocess/transform.py",
        "download/fetch.py",
        "study/recipes.py",
    ],
)
def test_a_change_of_this_file_retrains_nothing(file: str) -> None:
    assert (LIBRARY / file).is_file()
    assert LIBRARY / file not in code_files("train")


# --- parameters and data ---


@pytest.mark.parametrize("stage", STAGES)
def test_params_are_the_fields_of_the_class_of_the_stage(stage: str) -> None:
    assert listed(stage, "params") - {str(paths.SOURCE)} == set(CLASSES[stage].model_fields)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_reads_each_of_its_params_and_no_others(stage: str) -> None:
    path = ROOT / "stages" / f"{stage}.py"
    read = attributes_read(path)
    if stage == "train":  # `assemble` reads what the stage hands on; `models.parameter_names` names those of the nets
        read |= attributes_read(LIBRARY / "training" / "assemble.py")
        read |= {name for net in models.MODELS for name in models.parameter_names(net)}
    if stage == "preprocess":  # `PreprocessParams.preparation` reads the fields of the preparation
        assert "preparation" in read
        read |= {"permute", *(field.name for field in fields(Preparation))}
    assert set(CLASSES[stage].model_fields) <= read
    classes = {name for name in (*read, *imported_names(path)) if name.endswith("Params") and name != "RuntimeParams"}
    assert {name.rpartition(".")[2] for name in classes} <= {CLASSES[stage].__name__, "RuntimeParams"}


@pytest.mark.parametrize("stage", STAGES)
def test_data_deps_and_outputs_are_the_paths_that_the_stage_names(stage: str) -> None:
    constants = constants_read(ROOT / "stages" / f"{stage}.py")
    if stage == "evaluate":  # it records the outputs of train if their run is not in MLflow
        constants |= constants_read(LIBRARY / "tracking" / "events.py")
    named = {str(getattr(paths, constant)) for constant in constants - {"repository"}}
    named = {"data/model" if path.startswith("data/model/") else path for path in named}
    declared = set().union(*(listed(stage, kind) for kind in ("deps", "outs", "metrics", "plots")))
    assert named - {"params.yaml", "dvc.yaml"} == {path for path in declared if path.startswith(("data/", "metrics/"))}


def test_every_path_constant_is_declared_in_dvc_yaml() -> None:
    declared = set().union(*(listed(stage, kind) for stage in STAGES for kind in ("outs", "metrics", "plots")))
    constants = {str(value) for name, value in vars(paths).items() if name.isupper() and isinstance(value, Path)}
    inside = {path for path in constants if str(Path(path).parent) in declared}
    assert constants - inside - {"params.yaml", "dvc.yaml", "metrics"} == declared


def test_no_stage_lists_the_settings_of_the_machine() -> None:
    assert not any(key.startswith("runtime") for stage in STAGES for key in listed(stage, "params"))


def test_every_key_of_params_yaml_belongs_to_a_stage_or_to_runtime() -> None:
    keys = set(parse_yaml((ROOT / "params.yaml").read_text(), "params.yaml"))
    assert keys == {"runtime"}.union(*(listed(stage, "params") for stage in STAGES)) - {str(paths.SOURCE)}


FIRST_TO_RUN = {
    "dataset": "check",
    "pretrained": "check",
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
    "shards": "preprocess",
    "model": "weights",
}
"""The first stage that runs again after a change of the key; train for all others. Later stages follow their data."""


@pytest.mark.parametrize("key", [key for key in params.Params.model_fields if key != "runtime"])
def test_a_changed_key_runs_the_right_stages_again(key: str) -> None:
    first = next(stage for stage in STAGES if key in listed(stage, "params"))
    assert first == FIRST_TO_RUN.get(key, "train")


CHAINS = [
    ["check", "list", "download", "preprocess", "train", "evaluate"],
    ["check", "weights", "train"],
]


@pytest.mark.parametrize("chain", CHAINS)
def test_the_stages_are_chains(chain: list[str]) -> None:
    assert set(itertools.chain(*CHAINS)) == set(STAGES)
    for before, after in itertools.pairwise(chain):
        reads = listed(after, "deps") | listed(after, "params")
        assert listed(before, "outs") & reads, f"{after} reads nothing of {before}"


def test_dvc_never_reads_the_users_folder() -> None:
    assert not any("$" in path for stage in STAGES for path in listed(stage, "deps"))


def source_of(folder: Path, **changes: str) -> tuple[bool, bool]:
    """Return what `check` has DVC look at each time, the folder and the weights, with changes of params.yaml."""
    text = (ROOT / "params.yaml").read_text()
    for key, value in changes.items():
        text = re.sub(rf"(?m)^{key}: .*$", f"{key}: {value}", text)
    (folder / "params.yaml").write_text(text)
    check.main()
    source = parse_yaml(paths.SOURCE.read_text(), paths.SOURCE)
    assert list(source) == ["watched", "pretrained"]
    return source["watched"] != source["watched"], source["pretrained"] != source["pretrained"]  # NaN


@pytest.mark.parametrize("dataset", get_args(params.Dataset))
def test_your_own_folder_is_listed_each_time_and_a_published_data_set_never(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert source_of(tmp_path, dataset=dataset) == (dataset == "folder", False)


@pytest.mark.parametrize(("pretrained", "watched"), [("", False), ("my-experiment", True), ("data/model", True)])
def test_weights_of_yours_are_read_each_time(
    pretrained: str, watched: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert source_of(tmp_path, pretrained=pretrained) == (False, watched)


@pytest.mark.parametrize("stage", ["list", "weights"])
def test_what_is_looked_at_each_time_is_not_taken_from_the_cache_of_runs(stage: str) -> None:
    """DVC uses this cache even if a parameter is NaN, unless an output is persistent."""
    assert any(isinstance(entry, dict) and str(paths.SOURCE) in entry for entry in STAGES[stage]["params"])
    options = [next(iter(entry.values())) for entry in STAGES[stage]["outs"] if isinstance(entry, dict)]
    assert [option["persist"] for option in options] == [True] * len(STAGES[stage]["outs"])


def test_published_weights_are_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert source_of(tmp_path, model="resnet18", pretrained="imagenet") == (False, False)


# --- imports ---

ROWS = [
    ["stages", "cli", "recipes", "compare"],
    ["usage"],
    ["study", "tracking", "inference", "evaluation"],
    ["training", "preprocess", "download", "cluster"],
    ["models", "params", "param_errors"],
    ["contracts"],
    ["commands", "core", "yaml12"],
]
"""Folders and modules of the library from top to bottom: imports point downward or stay within a row."""

MATHEMATICS = [
    "models",
    *(f"training/{name}" for name in ("losses", "optim", "loading/augment", "scoring", "gradients", "fit")),
]
"""Code that knows nothing of YAML and MLflow."""


def row(name: str) -> int:
    """Return the row of a module, by its dotted name."""
    top = name.removeprefix("imageclf.").split(".")[0]
    return next(number for number, names in enumerate(ROWS) if top in names)


def modules() -> list[Path]:
    """Return every module of the library and of the stages, without `__init__.py`."""
    return [path for path in (*SOURCE.rglob("*.py"), *(ROOT / "stages").glob("*.py")) if path.name != "__init__.py"]


def test_imports_point_downward() -> None:
    for path in modules():
        here = path.relative_to(LIBRARY).parts[0].removesuffix(".py") if path.is_relative_to(LIBRARY) else "stages"
        for name in imported_names(path):
            if name.startswith("imageclf.") and module_file(name):
                assert row(here) <= row(name), f"{path.relative_to(ROOT)} imports {name}"
            assert here == "stages" or not name.startswith("stages"), f"{path.relative_to(ROOT)} imports {name}"


def test_imports_within_the_library_have_no_cycle() -> None:
    imports = {path: {file for name in imported_names(path) if (file := module_file(name))} for path in modules()}
    library = {path: {file for file in used if file in imports} - {path} for path, used in imports.items()}
    list(graphlib.TopologicalSorter(library).static_order())


@pytest.mark.parametrize("stage", STAGES)
def test_stages_never_import_stages(stage: str) -> None:
    assert not any(name.startswith("stages") for name in imported_names(ROOT / "stages" / f"{stage}.py"))


@pytest.mark.parametrize("name", MATHEMATICS)
def test_the_mathematics_knows_nothing_of_yaml_or_mlflow(name: str) -> None:
    path = LIBRARY / name
    files = path.glob("*.py") if path.is_dir() else [path.with_suffix(".py")]
    reached = {file.relative_to(LIBRARY).as_posix() for each in files for file in imported_files(each)}
    assert not [file for file in reached if file.startswith(("tracking", "params", "yaml12"))]


def test_no_folder_holds_more_than_twelve_modules() -> None:
    for folder in (LIBRARY, *(path for path in LIBRARY.rglob("*") if path.is_dir())):
        assert len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) <= 12, folder
