"""Tests of the pipeline with real DVC in a temporary clone, including the rows and files of MLflow."""

import hashlib
import json
import sys
import time
from pathlib import Path

import pytest
from project import Project

pytestmark = pytest.mark.pipeline

EPOCHS = 2


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return a clone after its first `dvc repro`, with the results committed."""
    made = Project(tmp_path_factory.mktemp("project"), epochs=str(EPOCHS))
    assert made.stages_run(made.run("dvc", "repro"))[-5:] == ["download", "preprocess", "weights", "train", "evaluate"]
    made.commit()
    return made


def model_sha256(project: Project) -> str:
    return hashlib.sha256((project.root / "data/model/model.safetensors").read_bytes()).hexdigest()


def test_repro_makes_every_output_and_a_finished_run(project: Project) -> None:
    run = project.runs()[0]
    scores = json.loads((project.root / "metrics/test.json").read_text())["test"]
    assert set(scores) == {"loss", "accuracy", "top5", "balanced_accuracy", "macro_f1", "calibration_error", "gap"}
    assert run.status == "FINISHED"
    assert {key: run.metrics[f"test/{key}"] for key in scores} == {key: [value] for key, value in scores.items()}
    assert {
        len(run.metrics[key])
        for key in ("epoch/train_loss", "epoch/train_accuracy", "epoch/val_loss", "epoch/val_accuracy", "epoch/lr")
    } == {EPOCHS}
    assert run.params["epochs"] == str(EPOCHS)
    assert run.params["model"] == "cnn"
    assert run.tags["model_sha256"] == model_sha256(project)
    manifest = json.loads((project.root / "data/processed/dataset.json").read_text())
    assert run.tags["data_sha256"] == manifest["sha256"]
    for artifact in (
        "plots/confusion.png",
        "plots/samples.png",
        "plots/mistakes.png",
        "predictions.csv",
        "history.csv",
        "model_card.md",
    ):
        assert (run.artifacts / artifact).is_file(), artifact
    assert run.model is not None
    assert (run.model / "data/model/model.safetensors").is_file()


def test_the_record_names_nothing_of_the_machine(project: Project) -> None:
    texts = [str(project.runs()), (project.root / "dvc.lock").read_text()]
    texts += [path.read_text() for path in (project.root / "metrics").glob("*.*")]
    for run in project.runs():
        assert run.model is not None
        texts.append((run.model / "MLmodel").read_text().replace(str(project.root), "").replace("file://", ""))
    everything = "\n".join(texts).replace(str(project.root), "")
    assert str(Path.home()) not in everything
    assert "mlflow.user': 'root'" not in everything


def test_a_second_repro_runs_nothing(project: Project) -> None:
    output = project.run("dvc", "repro")
    assert project.stages_run(output) == []
    assert "up to date" in output
    assert project.run("dvc", "status") == "Data and pipelines are up to date.\n"
    assert project.stages_run(project.run("dvc", "repro", "--dry", "--allow-missing")) == []


def test_a_change_of_lr_runs_only_train_and_evaluate(project: Project) -> None:
    (project.root / "uv.lock").write_text("version = 1\n")  # as `uv run` writes it
    output = project.run("dvc", "exp", "run", "-n", "faster", "-S", "lr=0.01")
    assert project.stages_run(output) == ["train", "evaluate"]
    run = project.only_run("faster")
    assert (run.status, run.params["lr"]) == ("FINISHED", "0.01")
    assert run.tags["dvc.exp.name"] == "faster"
    assert run.tags["dvc.exp.baseline_rev"] == project.run("git", "rev-parse", "HEAD").strip()
    assert len(run.metrics["test/accuracy"]) == 1
    assert run.model is not None
    assert not {"uv.lock", "pyproject.toml"} & {file.name for file in run.model.iterdir()}
    changed = json.loads(project.run("dvc", "metrics", "diff", "--json"))
    assert changed["metrics/test.json"]["test.accuracy"]["diff"] != 0
    assert "faster" in project.run("dvc", "exp", "show", "--csv")
    plots = project.run("dvc", "plots", "show", "--json")
    assert "train_loss" in plots
    assert "confusion" in plots
    predict = [str(Path(sys.executable).parent / "imageclf"), "predict", "metrics/plots/samples.png", "--json"]
    ours, by_name, baseline = (
        project.run(*predict, *model) for model in ([], ["--model", "faster"], ["--model", "HEAD"])
    )
    assert json.loads(ours)["file"] == "metrics/plots/samples.png"
    assert ours == by_name != baseline


def test_a_change_of_permute_in_a_temporary_copy_runs_preprocess_and_is_recorded_here(project: Project) -> None:
    output = project.run("dvc", "exp", "run", "--temp", "-n", "shuffled", "-S", "permute=true")
    assert project.stages_run(output) == ["preprocess", "train", "evaluate"]
    run = project.only_run("shuffled")
    assert run.status == "FINISHED"
    assert run.artifacts.is_relative_to(project.root / "mlartifacts")
    assert (run.artifacts / "plots/samples.png").is_file()
    assert run.model is not None
    assert (run.model / "data/model/model.safetensors").is_file()
    assert not list((project.root / ".dvc/tmp/exps").glob("**/mlflow.db"))


def test_the_same_seed_gives_the_same_bits_and_each_name_its_own_run(project: Project) -> None:
    first, second = (
        project.run("dvc", "exp", "run", "-f", "-n", name, "-S", "seed=7") and model_sha256(project)
        for name in ("twin-a", "twin-b")
    )
    assert first == second
    for name in ("twin-a", "twin-b"):
        run = project.only_run(name)
        assert run.tags["model_sha256"] == first
        assert len(run.metrics["test/accuracy"]) == 1
        assert "restored" not in run.tags


def test_evaluate_records_a_training_that_dvc_restores(project: Project) -> None:
    project.run("git", "checkout", "-q", "--", ".")
    project.run("dvc", "checkout", "-q", "--force")
    before = project.runs()[0]
    (project.root / "mlflow.db").rename(project.root / "mlflow.db.moved")
    try:
        assert project.stages_run(project.run("dvc", "repro", "-f", "-s", "evaluate")) == ["evaluate"]
        (run,) = project.runs()
    finally:
        (project.root / "mlflow.db.moved").replace(project.root / "mlflow.db")
    assert run.tags["restored"] == "true"
    assert run.status == "FINISHED"
    assert run.params == before.params
    assert run.tags["model_sha256"] == before.tags["model_sha256"]
    assert run.metrics["test/accuracy"] == before.metrics["test/accuracy"]
    assert run.metrics["epoch/val_accuracy"] == pytest.approx(before.metrics["epoch/val_accuracy"], rel=1e-5)
    assert run.model is not None


@pytest.mark.parametrize("link", ["hardlink", "symlink"])
def test_stages_run_without_dvc_do_not_change_its_cache(project: Project, link: str) -> None:
    project.run("git", "checkout", "-q", "--", ".")
    project.run("dvc", "config", "--local", "cache.type", link)
    project.run("dvc", "checkout", "-q", "--force", "--relink")
    linked = project.root / "data/model/model.safetensors"
    assert linked.is_symlink() if link == "symlink" else linked.stat().st_nlink > 1
    project.set(seed="99", permute="true")
    path = project.root / "params.yaml"
    path.write_text(path.read_text().replace("tracking: true", "tracking: false"))
    for stage in ("check", "list", "download", "preprocess", "weights", "train", "evaluate"):
        project.run("python", f"stages/{stage}.py")
    for entry in (project.root / ".dvc/cache/files/md5").glob("??/*"):
        content = entry.read_bytes()
        assert hashlib.md5(content, usedforsecurity=False).hexdigest() == entry.parent.name + entry.name.removesuffix(
            ".dir"
        )
    project.run("git", "checkout", "-q", "--", ".")
    project.run("dvc", "checkout", "-q", "--force")
    assert project.stages_run(project.run("dvc", "repro")) == []


def test_queued_experiments_run_the_code_they_were_queued_with(project: Project, tmp_path: Path) -> None:
    queued = Project(tmp_path, cache=project.root / ".dvc/cache", epochs=str(EPOCHS))
    for seed in (1, 2):
        queued.run("dvc", "exp", "run", "--queue", "-n", f"q{seed}", "-S", f"seed={seed}")
    library = queued.root / "src/imageclf/training/fit.py"
    library.write_text(library.read_text() + '\nraise RuntimeError("edited after queueing")\n')
    queued.run("dvc", "queue", "start", "-j", "2")
    finish_queue(queued)
    assert {run.name: run.status for run in queued.runs()} == {"q1": "FINISHED", "q2": "FINISHED"}
    for run in queued.runs():
        assert len(run.metrics["test/accuracy"]) == 1
        assert run.model is not None
        assert run.model.is_relative_to(queued.root / "mlartifacts")
        assert (run.model / "data/model/model.safetensors").is_file()
    assert len({run.tags["model_sha256"] for run in queued.runs()}) == 2


def test_a_training_in_a_temporary_copy_starts_from_an_experiment(project: Project) -> None:
    start = ("-S", "pretrained=HEAD", "-S", "freeze_epochs=1")
    output = project.run("dvc", "exp", "run", "--temp", "-n", "tuned", *start)
    assert project.stages_run(output)[-3:] == ["weights", "train", "evaluate"]
    baseline = project.run("dvc", "get", "-q", ".", "data/model/model.safetensors", "-o", "baseline", "--rev", "HEAD")
    assert baseline == ""
    digest = hashlib.sha256((project.root / "baseline").read_bytes()).hexdigest()
    assert project.only_run("tuned").tags["pretrained_sha256"] == digest


def finish_queue(project: Project, timeout_s: float = 240) -> None:
    """Wait until no task is queued or running; fail if one failed."""
    until = time.monotonic() + timeout_s
    while True:
        status = project.run("dvc", "queue", "status")
        assert "Failed" not in status, status + project.run("dvc", "queue", "logs", "q1")
        if "Running" not in status and "Queued" not in status:
            return
        assert time.monotonic() < until, status
        time.sleep(1)
