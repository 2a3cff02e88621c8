"""Tests of shards in the stages: from a directory, and from a real server of S3 that dies while a net is trained."""

import json
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import s3_server
from stage_run import run_stage, run_until, write_params
from test_ranks import environment, wait_for_state, weights

from benchmarks.served import free_port
from imageclf.contracts import dataset
from imageclf.core import paths

pytestmark = pytest.mark.faults

SMALL = """
import sys
from importlib import import_module

from imageclf.contracts import shards
from imageclf.preprocess import shards as writer

writer.BLOCK_BYTES = 1024
writer.move.__kwdefaults__["shard_bytes"] = 4096
shards.GIB = 4 * 4224
if sys.argv[1] == "train":
    import_module("imageclf.training.loading.blocks").WINDOW_BYTES = 2 * 4096
from imageclf.core import process
process.run(import_module(f"stages.{sys.argv[1]}").main)
"""
"""A stage with shards of 64 digits, of which this machine keeps four."""

LONG: dict[str, Any] = {"epochs": "30", "hidden": "[8]", "schedule": "constant"}
needs_server = pytest.mark.skipif(not s3_server.INSTALLED, reason="needs `uv sync --group remotes`")


def start(root: Path, stage: str, more: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start a stage with small shards."""
    return subprocess.Popen(
        [sys.executable, "-c", SMALL, stage],
        cwd=root,
        env={**environment(root), "IMAGECLF_CACHE": str(root / "cache"), **more},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(root: Path, stage: str, more: Mapping[str, str], code: int = 0) -> str:
    output, _ = (process := start(root, stage, more)).communicate(timeout=120)
    assert process.returncode == code, output
    return output


def new_project(root: Path, shards: str, more: Mapping[str, str] | None = None) -> Path:
    """Return a folder with the digits, whose train images are in shards."""
    root.mkdir()
    write_params(root, shards=shards, shard_cache="1", **LONG)
    run_until(root, "download")
    run(root, "preprocess", more or {})
    assert run_stage(root, "weights").code == 0
    return root


def test_all_stages_work_with_shards_in_a_directory(tmp_path: Path) -> None:
    root = new_project(tmp_path / "project", str(tmp_path / "server"))
    manifest = dataset.read(root / paths.PROCESSED).manifest
    assert manifest.shards is not None
    assert len(manifest.shards.sha256) == 21
    assert len(list((tmp_path / "server").iterdir())) == 21
    output = run(root, "train", {})
    assert f"are fetched from {tmp_path / 'server'} in shards" in output
    output = run(root, "evaluate", {})
    assert json.loads((root / paths.TEST_SCORES).read_text())["test"]["accuracy"] > 0.7
    assert (root / paths.PLOTS / "data.png").is_file()
    assert len(list((root / "cache/shards").glob("*.npy"))) <= 4


def test_a_killed_training_resumes_to_the_same_bits(tmp_path: Path) -> None:
    root = new_project(tmp_path / "project", str(tmp_path / "server"))
    run(root, "train", {})
    undisturbed = weights(root)
    shutil.rmtree(root / paths.MODEL)
    process = start(root, "train", {})
    wait_for_state(root, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert "resuming at epoch" in run(root, "train", {})
    assert weights(root) == undisturbed


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_training_that_waits_for_its_server_can_be_stopped(signum: int, code: int, tmp_path: Path) -> None:
    root = new_project(tmp_path / "project", str(tmp_path / "server"))
    (tmp_path / "server").rename(tmp_path / "away")
    process = start(root, "train", {})
    assert process.stdout is not None
    while "trying again" not in (line := process.stdout.readline()):
        assert line
    process.send_signal(signum)
    output, _ = process.communicate(timeout=30)
    assert (process.returncode, "Traceback" in output) == (code, False), output
    (tmp_path / "away").rename(tmp_path / "server")
    run(root, "train", {})


@needs_server
def test_a_server_that_is_killed_and_restarted_does_not_change_the_training(tmp_path: Path) -> None:
    port, folder = free_port(), tmp_path / "server"
    with s3_server.running_on(port, folder) as keys:
        root = new_project(tmp_path / "project", "s3://bucket/shards", keys)
        run(root, "train", keys)
        undisturbed = weights(root)
        shutil.rmtree(root / paths.MODEL)
        process = start(root, "train", keys)
        wait_for_state(root, process)
    assert process.stdout is not None
    printed: list[str] = []
    while not any("trying again for 10 minutes" in line for line in printed):
        printed.append(process.stdout.readline())
        assert printed[-1], printed
    with s3_server.running_on(port, folder):
        output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    assert weights(root) == undisturbed


@needs_server
def test_wrong_keys_are_an_error_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    write_params(tmp_path / "project", shards="s3://bucket/shards")
    run_until(tmp_path / "project", "download")
    with s3_server.running_on(free_port(), tmp_path / "server") as keys:
        output = run(tmp_path / "project", "preprocess", {**keys, "AWS_SECRET_ACCESS_KEY": "wrong"}, code=1)
    assert output.startswith("error: shards: s3://bucket/shards refuses access (")
    assert len(output.splitlines()) == 1


@needs_server
def test_a_server_that_never_answers_does_not_hang_for_ever(tmp_path: Path) -> None:
    code = """
from imageclf.core import process, remote
remote.ATTEMPT_S = 2
process.run(remote.RemoteFolder("s3://bucket/shards").check)
"""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        more = s3_server.keys(silent.getsockname()[1])
        command = [sys.executable, "-c", code]
        done = subprocess.run(
            command, env={**environment(tmp_path), **more}, capture_output=True, text=True, check=False, timeout=60
        )
    assert done.returncode == 1
    assert "error: shards: s3://bucket/shards fails (" in done.stderr
