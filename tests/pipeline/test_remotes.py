"""Tests of a shared cache over SSH and on S3: what one person pushes, another pulls, and nothing runs again."""

import getpass
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import s3_server
from project import Project

from benchmarks.served import free_port

pytestmark = [
    pytest.mark.pipeline,
    pytest.mark.skipif(not s3_server.INSTALLED, reason="needs `uv sync --group remotes`"),
]
SSHD = Path("/usr/sbin/sshd")


@contextmanager
def ssh(folder: Path, port: int) -> Iterator[dict[str, str]]:
    """Run an SSH server for this user; yield the settings of a DVC remote on it."""
    for name in ("host", "user"):
        if not (folder / name).exists():
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    shutil.copy(folder / "user.pub", folder / "authorized")
    options = {"HostKey": folder / "host", "AuthorizedKeysFile": folder / "authorized", "StrictModes": "no"}
    options |= {"Port": port, "ListenAddress": "127.0.0.1", "PidFile": "none", "UsePAM": "no"}
    options["Subsystem"] = "sftp internal-sftp"
    Path("/run/sshd").mkdir(exist_ok=True)
    process = subprocess.Popen(
        [str(SSHD), "-D", "-e", "-f", "/dev/null", *(f"-o{key}={value}" for key, value in options.items())],
        stderr=subprocess.DEVNULL,
    )
    try:
        (folder / "cache").mkdir(exist_ok=True)
        address = f"ssh://{getpass.getuser()}@127.0.0.1:{port}{folder / 'cache'}"
        yield {"url": address, "keyfile": str(folder / "user"), "allow_agent": "false"}
    finally:
        process.terminate()
        process.wait()


@contextmanager
def s3(folder: Path, port: int) -> Iterator[dict[str, str]]:
    """Run a server with the protocol of S3; yield the settings of a DVC remote on it."""
    with s3_server.running_on(port, folder / "s3"):
        address = f"http://127.0.0.1:{port}"
        yield {
            "url": "s3://bucket/cache",
            "endpointurl": address,
            "access_key_id": "key",
            "secret_access_key": "secret",
        }


@pytest.mark.parametrize(
    "kind", [pytest.param(ssh, marks=pytest.mark.skipif(not SSHD.exists(), reason="needs openssh-server")), s3]
)
def test_what_one_person_pushes_another_pulls_and_nothing_runs_again(
    kind: Callable[[Path, int], AbstractContextManager[dict[str, str]]],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    project = Project(tmp_path_factory.mktemp("project"), epochs="1", model="mlp", hidden="8")
    port = free_port()
    with kind(tmp_path, port) as settings:
        add_remote(project, settings)
        project.run("dvc", "repro")
        project.commit()
        project.run("dvc", "push")
    with kind(tmp_path, port):  # the server was killed and started again
        clone = project.cloned(tmp_path / "clone")
        add_remote(clone, settings)
        clone.run("dvc", "pull")
        assert (clone.root / "data/model/model.safetensors").is_file()
        assert clone.stages_run(clone.run("dvc", "repro")) == []


def add_remote(project: Project, settings: dict[str, str]) -> None:
    project.run("dvc", "remote", "add", "--local", "-d", "team", settings["url"])
    for key, value in settings.items():
        project.run("dvc", "remote", "modify", "--local", "team", key, value)
