"""Tests with a broken MLflow: the training has the same bits, exits with 0 and prints one sentence."""

import http.server
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from disks import mounted
from project import clean_environment
from stage_run import StageResult, outputs, run_stage, run_until, write_params

from imageclf.contracts import dataset
from imageclf.core import files, paths
from imageclf.tracking.client import INCOMPLETE

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which a training without MLflow has run."""
    root = tmp_path_factory.mktemp("prepared")
    write_params(root)
    run_until(root, "train")
    return root


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a database with MLflow, which takes seconds."""
    root = tmp_path_factory.mktemp("database")
    code = "import mlflow; mlflow.MlflowClient('sqlite:///mlflow.db').search_experiments()"
    subprocess.run([sys.executable, "-c", code], cwd=root, env=clean_environment(), check=True, capture_output=True)
    return root / "mlflow.db"


@pytest.fixture
def root(prepared: Path, database: Path, tmp_path: Path) -> Path:
    """Return a copy of the folder with a database, before a training with MLflow."""
    copy = Path(shutil.copytree(prepared, tmp_path / "root"))
    for place in (paths.MODEL, paths.METRICS):
        shutil.rmtree(copy / place)
    shutil.copyfile(database, copy / "mlflow.db")
    write_params(copy, tracking=True)
    return copy


def train(root: Path, environment: dict[str, str] | None = None) -> StageResult:
    return run_stage(root, "train", environment=environment)


def test_mlflow_on_or_off_gives_the_same_files(root: Path, prepared: Path) -> None:
    result = train(root)
    assert result.code == 0
    assert "tracking: recorded as" in result.output
    assert outputs(root, "train") == outputs(prepared, "train")


# --- faults: each context manager breaks the store and yields the environment of the training ---


@contextmanager
def locked(root: Path) -> Iterator[dict[str, str]]:
    """Another process locks the database."""
    with sqlite3.connect(root / "mlflow.db") as other:
        other.execute("begin exclusive")
        yield {}


@contextmanager
def read_only(root: Path) -> Iterator[dict[str, str]]:
    """The database is on a read-only disk."""
    with mounted(root / "disk", "100%") as disk:
        shutil.move(root / "mlflow.db", disk)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        yield {"MLFLOW_TRACKING_URI": f"sqlite:///{disk / 'mlflow.db'}"}


@contextmanager
def damaged(root: Path) -> Iterator[dict[str, str]]:
    """A page in the middle of the database is zeros."""
    with (root / "mlflow.db").open("r+b") as file:
        file.seek(4096)
        file.write(bytes(64 * 4096))
    yield {}


@contextmanager
def impossible_folder(root: Path) -> Iterator[dict[str, str]]:
    """The database would be in a folder that cannot be created."""
    yield {"MLFLOW_TRACKING_URI": "sqlite:////dev/null/mlflow.db"}


@contextmanager
def no_artifacts(root: Path) -> Iterator[dict[str, str]]:
    """A file has the name of the folder of artifacts."""
    (root / "mlartifacts").write_text("a file")
    yield {}


@contextmanager
def dead_server(root: Path) -> Iterator[dict[str, str]]:
    """The port of the server is closed."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    yield {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"}


@contextmanager
def forbidding_server(root: Path) -> Iterator[dict[str, str]]:
    """The server answers each request with an HTML page and status 403."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(403)

        do_POST = do_GET  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server, ExitStack() as stack:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        stack.callback(server.shutdown)
        yield {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{server.server_port}"}


FAULTS: list[Callable] = [locked, read_only, damaged, impossible_folder, no_artifacts, dead_server, forbidding_server]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_is_one_sentence_and_changes_no_output(root: Path, prepared: Path, fault: Callable) -> None:
    with fault(root) as environment:
        ended = train(root, environment)
    assert ended.code == 0
    assert ended.output.count("tracking:") == 1
    assert INCOMPLETE in ended.output
    assert "Traceback" not in ended.output
    assert outputs(root, "train") == outputs(prepared, "train")


# --- independence of the training ---


def test_labels_of_the_test_split_change_nothing_in_a_training(prepared: Path, tmp_path: Path) -> None:
    """Train with other test labels: the weights, the history and the scores stay the same."""
    root = Path(shutil.copytree(prepared, tmp_path / "root"))
    forge_test_labels(root / paths.PROCESSED)
    result = train(root)
    assert result.code == 0
    before, after = outputs(prepared, "train"), outputs(root, "train")
    spec = str(paths.MODEL_SPEC)  # it holds the digest of the data
    assert before.pop(spec) != after.pop(spec)
    assert after == before


def forge_test_labels(folder: Path) -> None:
    """Shift each label of the test split by one class, and update the manifest."""
    import numpy as np

    manifest = files.read_manifest(folder / dataset.MANIFEST, made_by="preprocess", parse=dict)
    del manifest["sha256"]
    targets = folder / dataset.split_files("test")[1]
    np.save(targets, np.roll(np.load(targets, allow_pickle=False), 1, axis=1))
    manifest["files"][targets.name] = files.sha256(targets)
    files.write_manifest(folder / dataset.MANIFEST, manifest)


def test_a_diverging_training_keeps_the_earlier_model_and_its_run_has_failed(root: Path, prepared: Path) -> None:
    assert train(root).code == 0
    before = outputs(root, "train")
    write_params(root, tracking=True, optimizer="sgd", lr="1e30")
    result = train(root)
    assert result.code == 1
    assert result.error.startswith("the loss of epoch 1, step 2 is nan: try a smaller lr than 1e+30")
    assert outputs(root, "train") == before
    with sqlite3.connect(root / "mlflow.db") as opened:
        found = opened.execute("select status from runs order by start_time").fetchall()
    assert found == [("FINISHED",), ("FAILED",)]
