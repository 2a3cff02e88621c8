"""Tests of the record in MLflow as people see it: in its pages, after `imageclf sync`, and in a colleague's clone."""

import csv
import json
import os
import sqlite3
import subprocess
from pathlib import Path

import browser
import mlflow_server
import pytest
from browser import needs_browser
from disks import fill, mounted
from project import Project, Run, local_path

from imageclf.core import paths
from imageclf.tracking.client import INCOMPLETE

pytestmark = pytest.mark.pipeline
EPOCHS = 3
SYNC = ("imageclf", "sync")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return a project with two experiments: `known` is in MLflow; `unknown` was run without MLflow."""
    made = Project(tmp_path_factory.mktemp("project"), epochs=str(EPOCHS), model="mlp", hidden="8")
    made.run("dvc", "remote", "add", "-d", "storage", str(tmp_path_factory.mktemp("storage")))
    made.commit()
    made.run("dvc", "exp", "run", "-n", "known", "-S", "lr=0.002")
    made.run("dvc", "exp", "run", "-n", "unknown", "-S", "lr=0.01", "-S", "runtime.tracking=false")
    made.run("git", "checkout", "HEAD", "params.yaml", "dvc.lock", "metrics", "data")
    return made


def files_of(project: Project, name: str) -> dict[str, str]:
    """Return the text of the files in git of an experiment, by path."""
    (commit,) = [
        line.split()[0]
        for line in project.run("git", "for-each-ref", "--format=%(objectname) %(refname)", "refs/exps").splitlines()
        if line.endswith(f"/{name}")
    ]
    paths = ("metrics/test.json", "metrics/train.json", "metrics/history.csv")
    return {path: project.run("git", "show", f"{commit}:{path}") for path in paths}


def assert_complete(run: Run, files: dict[str, str]) -> None:
    """Assert that the run has all numbers of an experiment's files, a model, and pictures."""
    assert run.status == "FINISHED"
    for key, value in json.loads(files["metrics/test.json"])["test"].items():
        assert run.metrics[f"test/{key}"][-1] == value
    for row in ("loss", "accuracy"):
        assert run.metrics[f"selected/train/{row}"][-1] == json.loads(files["metrics/train.json"])["train"][row]
    rows = list(csv.DictReader(files["metrics/history.csv"].splitlines()))
    assert len(rows) == EPOCHS
    assert run.metrics["epoch/train_loss"] == [pytest.approx(float(row["train_loss"]), rel=1e-5) for row in rows]
    assert run.model is not None
    assert (run.model / "MLmodel").is_file()
    assert (run.artifacts / "plots" / "confusion.png").is_file()


def test_an_experiment_without_a_run_gets_one_and_a_second_sync_adds_nothing(project: Project) -> None:
    assert [run.name for run in project.runs()] == ["known"]
    assert "experiments: 1 of 2 were complete in MLflow, 1 recorded now, 0 could not" in project.run(*SYNC)
    run = project.only_run("unknown")
    assert_complete(run, files_of(project, "unknown"))
    assert run.tags["restored"] == "true"
    assert run.params["lr"] == "0.01"
    assert "dvc exp apply unknown" in run.tags["mlflow.note.content"]
    before = project.runs()
    assert "0 recorded now" in project.run(*SYNC)
    assert project.runs() == before


def test_the_models_of_the_last_epochs_are_recorded_on_request(project: Project) -> None:
    settings = ["-S", "runtime.log_model_every=1", "-S", f"runtime.keep_models={EPOCHS - 1}"]
    project.run("dvc", "exp", "run", "-n", "epochs", "-S", "lr=0.005", *settings)
    spec = json.loads((project.root / "data/model/model.json").read_text())
    project.run("git", "checkout", "HEAD", "params.yaml", "dvc.lock", "metrics", "data")
    with sqlite3.connect(project.root / "mlflow.db") as database:
        ((run,),) = database.execute("select run_uuid from runs where name = 'epochs'").fetchall()
        models = database.execute(
            "select name, model_id, artifact_location from logged_models "
            "where source_run_id = ? and lifecycle_stage = 'active' order by name",
            (run,),
        ).fetchall()
        accuracies = dict(
            database.execute(
                "select model_id, metric_value from logged_model_metrics where metric_name = 'test/accuracy'"
            )
        )
        losses = database.execute(
            "select metric_step from logged_model_metrics where metric_name = 'epoch/val_loss' and run_id = ?", (run,)
        ).fetchall()
    assert [name for name, _, _ in models] == ["mlp-digits", "mlp-epoch-2", "mlp-epoch-3"]
    _, *of_epochs = models
    assert [model in accuracies for _, model, _ in models] == [True, False, False]
    assert sorted(losses) == [(1,), (2,), (3,)]
    assert len(project.only_run("epochs").metrics["epoch/val_loss"]) == EPOCHS
    by_epoch = {}
    for name, _, location in of_epochs:
        text = (local_path(location) / "data/model/model.json").read_text()
        by_epoch[int(name.rpartition("-")[2])] = json.loads(text)["weights_sha256"]
    assert len(set(by_epoch.values())) == len(by_epoch) == EPOCHS - 1
    assert by_epoch[spec["epoch"]] == spec["weights_sha256"]


def test_a_run_that_lost_its_server_is_completed(project: Project) -> None:
    """The run is made that of a server that died after the first epoch: killed, without model and scores."""
    with sqlite3.connect(project.root / "mlflow.db") as database:
        ((key,),) = database.execute("select run_uuid from runs where name = 'known'").fetchall()
        database.execute("delete from metrics where run_uuid = ? and (step > 1 or key not like 'epoch/%')", (key,))
        database.execute("delete from latest_metrics where run_uuid = ? and key not like 'epoch/%'", (key,))
        database.execute("delete from tags where run_uuid = ? and key = 'model_sha256'", (key,))
        database.execute("delete from inputs where source_id = ?", (key,))
        database.execute("delete from logged_models where source_run_id = ?", (key,))
        database.execute("update runs set status = 'KILLED' where run_uuid = ?", (key,))
    assert "1 recorded now" in project.run(*SYNC)
    assert_complete(project.only_run("known"), files_of(project, "known"))


@pytest.mark.parametrize("left", [0, 400_000], ids=["full before the run", "full during the run"])
def test_a_full_disk_costs_only_the_record_and_sync_completes_it(tmp_path: Path, left: int) -> None:
    project = Project(tmp_path / "project", epochs=str(EPOCHS), model="mlp", hidden="8")
    with mounted(tmp_path / "disk", "16m") as disk:
        store = ("env", f"MLFLOW_TRACKING_URI=sqlite:///{disk}/mlflow.db")
        project.run(*store, "dvc", "exp", "run", "-n", "room")
        expected = (project.root / paths.MODEL_SPEC).read_text()
        ballast = fill(disk, left)
        output = project.run(*store, "dvc", "exp", "run", "-f", "-n", "no-room")
        assert "Traceback" not in output
        for stage in ("train", "evaluate"):
            _, _, printed = output.partition(f"Running stage '{stage}'")
            (sentence,) = [line for line in printed.partition("Running stage")[0].splitlines() if "tracking:" in line]
            assert sentence.endswith(INCOMPLETE)
            assert "database or disk is full" in sentence or "No space left on device" in sentence
        assert (project.root / paths.MODEL_SPEC).read_text() == expected
        ballast.unlink()
        assert "experiments: 1 of 2 were complete in MLflow, 1 recorded now, 0 could not" in project.run(*store, *SYNC)
        room, no_room = sorted(project.runs(disk), key=lambda run: run.name, reverse=True)
        assert_complete(no_room, files_of(project, "no-room"))
        assert room.status == "FINISHED"


def test_the_run_of_a_removed_experiment_is_tagged(project: Project) -> None:
    project.run("dvc", "exp", "run", "-n", "short-lived", "-S", "lr=0.003")
    project.run("git", "checkout", "HEAD", "params.yaml", "dvc.lock", "metrics", "data")
    project.run("dvc", "exp", "remove", "short-lived")
    assert "1 runs belong to experiments that no longer exist" in project.run(*SYNC)
    assert project.only_run("short-lived").tags["dvc.exp.missing"] == "true"
    assert "dvc.exp.missing" not in project.only_run("known").tags


@needs_browser
def test_the_pages_of_mlflow_show_scores_curves_models_and_pictures(project: Project, tmp_path: Path) -> None:
    """Set IMAGECLF_SCREENSHOTS to a folder to keep a picture of each page."""
    pictures = os.environ.get("IMAGECLF_SCREENSHOTS")
    with sqlite3.connect(project.root / "mlflow.db") as database:
        runs = dict(database.execute("select name, run_uuid from runs where name in ('known', 'unknown')").fetchall())
        models = database.execute("select model_id from logged_models where source_run_id = ?", (runs["unknown"],))
        ((model,),) = models.fetchall()

    def page(window: browser.Browser, name: str, address: str, *texts: str) -> str:
        window.open("about:blank")
        window.open(f"{server}/#/experiments/1/{address}")
        for text in texts:
            window.wait_for(f"document.body.innerText.includes({json.dumps(text)})")
        if pictures:
            Path(pictures, f"mlflow-{name}.png").write_bytes(window.screenshot())
        return window.run("return document.body.innerText")

    with mlflow_server.server(project.root) as server, browser.opened(tmp_path) as window:
        table = page(
            window, "table", "runs?workflowType=machine_learning&viewStateShareKey=scores", "test/accuracy", "unknown"
        )
        accuracies = [project.only_run(name).metrics["test/accuracy"][-1] for name in ("known", "unknown")]
        best_first = sorted(("known", "unknown"), key=lambda name: -accuracies[name == "unknown"])
        assert [line for line in table.splitlines() if line in best_first] == best_first
        assert str(max(accuracies))[:8] in table
        run = runs["unknown"]
        page(window, "run", f"runs/{run}", "Description", "dvc exp apply unknown", "mlp-digits")
        charts = page(window, "charts", f"runs/{run}/model-metrics", "train_loss", "selected/train")
        assert charts.index("train_loss") < charts.index("selected/train")
        window.wait_for("document.querySelectorAll('.js-plotly-plot .scatterlayer path').length > 4")
        page(window, "model", f"models/{model}", "mlp-digits", "Model card", "digits-test", "test/accuracy")
        page(window, "picture", f"runs/{run}/artifacts/plots/training.png", "training.png")
        window.wait_for("[...document.images].some(image => image.naturalWidth == 1000)")
        both = json.dumps([runs["known"], runs["unknown"]])
        window.open(f"{server}/#/compare-runs?runs={both}&experiments=[%221%22]")
        window.wait_for("document.body.innerText.includes('Comparing 2 Runs from 1 Experiment')")
        window.wait_for("document.body.innerText.includes('0.01')")


def test_a_colleague_gets_every_experiment_with_its_scores(project: Project, tmp_path: Path) -> None:
    project.run("dvc", "repro")
    project.commit()
    subprocess.run(["git", "clone", "-q", "--bare", str(project.root), str(tmp_path / "central")], check=True)
    project.run("git", "remote", "add", "origin", str(tmp_path / "central"))
    project.run("dvc", "push")
    project.run("dvc", "exp", "push", "origin", "-A")

    theirs = project.cloned(tmp_path / "clone")
    theirs.run("git", "remote", "set-url", "origin", str(tmp_path / "central"))
    theirs.run("dvc", "remote", "modify", "--local", "storage", "url", str(tmp_path / "nowhere"))
    theirs.run("dvc", "exp", "pull", "--no-cache", "origin", "known")
    assert "known: data/model is not in DVC's cache; `uv run dvc exp pull origin known`" in theirs.run(*SYNC, code=1)
    theirs.run("dvc", "remote", "modify", "--local", "--unset", "storage", "url")
    theirs.run("dvc", "pull")
    assert theirs.stages_run(theirs.run("dvc", "repro")) == []
    theirs.run("dvc", "exp", "pull", "origin", "-A")
    theirs.run(*SYNC)
    for name in ("known", "unknown"):
        assert_complete(theirs.only_run(name), files_of(project, name))
