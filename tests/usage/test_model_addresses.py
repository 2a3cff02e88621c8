"""Tests of the addresses of models: folders, MLflow's addresses, and what is none of them.

DVC experiments are in pipeline/test_pipeline.py.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import new_spec, noise_png, save_model
from imports import SOURCE
from project import clean_environment

from imageclf.core.errors import UserError
from imageclf.usage import models

REGISTER = """
import sys
from pathlib import Path
from mlflow import MlflowClient
from imageclf.tracking.recorder.registry import register
from imageclf.tracking.recorder.served_model import log_served_model
client = MlflowClient("sqlite:///mlflow.db")
run = client.create_run("0")
model = log_served_model(client, run.info.run_id, Path(sys.argv[1]), name="cnn-pets", epoch=3)
register(client, "pets", model, accuracy=0.9, test_sha256="a")
print(run.info.run_id)
"""


def run(*command: str, cwd: Path, code: int = 0) -> str:
    """Run a command of Python; return the output that is asserted to end with this exit code."""
    environment = {**clean_environment(), "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    return done.stdout or done.stderr


def test_a_model_in_mlflow_is_found_by_run_by_alias_and_as_a_folder(tmp_path: Path) -> None:
    saved = save_model(tmp_path / "model", new_spec())
    run_id = run("-c", REGISTER, str(tmp_path / "model"), cwd=tmp_path).splitlines()[-1]
    (tmp_path / "a.png").write_bytes(noise_png(0))
    (folder,) = tmp_path.glob("mlruns/*/models/*/artifacts")
    predict = ["-c", "from imageclf import cli; cli.run()", "predict", "a.png", "--json"]
    addresses = [
        "model",
        str(folder),
        f"runs:/{run_id}",
        f"runs:/{run_id}/model",
        f"runs:/{run_id}/cnn-pets",
        "models:/pets@champion",
        "models:/pets/1",
    ]
    answers = {run(*predict, "--model", address, cwd=tmp_path) for address in addresses}
    assert len(answers) == 1
    assert models.load(str(folder)).spec == saved
    assert run(*predict, "--model", "models:/pets@loser", cwd=tmp_path, code=1).startswith(
        "error: models:/pets@loser: "
    )
    assert not list(tmp_path.glob("imageclf-*"))


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("empty", "empty has no model.json"),
        ("models:/pets@champion", "there is no MLflow database .*mlflow.db; set MLFLOW_TRACKING_URI"),
        (None, "data/model/model.json is missing: run `uv run dvc repro train`"),
        ("nosuch", "nosuch is not a folder, a DVC experiment or a Git revision"),
    ],
)
def test_other_addresses_are_refused_by_name(
    address: str | None, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for command in (["git"], [sys.executable, "-m", "dvc"]):
        subprocess.run([*command, "init", "-q"], cwd=tmp_path, check=True)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match=sentence):
        models.load(address)
