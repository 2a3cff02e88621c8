"""Tests of the commands `dvc` and `git`: their messages, a DVC that does not answer, and second tries."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from imageclf import commands
from imageclf.core.errors import UserError


def test_a_dvc_that_does_not_answer_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`dvc exp show` never ends if a copy of a running experiment is deleted while it is read."""
    (tmp_path / "dvc.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.chdir(tmp_path)  # `python -m` looks here first
    with pytest.raises(UserError, match=r"dvc exp show did not answer in 0\.5 s"):
        commands.run_dvc("exp", "show", patience_s=0.5)


def test_a_command_that_talks_to_the_workers_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command fails if it reads a message that a worker is still writing."""
    tries: list[tuple[str, ...]] = []

    def run_dvc(*arguments: str, **_others: Any) -> str:
        tries.append(arguments)
        if len(tries) != 3:
            raise UserError("dvc queue status: ERROR: unexpected error - Expecting value: line 1 column 1 (char 0)")
        return "Worker status"

    monkeypatch.setattr(commands, "run_dvc", run_dvc)
    monkeypatch.setattr(commands, "PAUSE_S", 0)
    assert commands.run_dvc_again("queue", "status") == "Worker status"
    assert tries == [("queue", "status")] * 3
    monkeypatch.setattr(commands, "TRIES", 2)
    with pytest.raises(UserError, match="Expecting value"):
        commands.run_dvc_again("queue", "start")


@pytest.mark.parametrize("missing", ["user.name", "user.email"])
def test_a_missing_identity_is_reported_with_the_commands_that_set_it(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for variable in [key for key in os.environ if key.startswith("GIT_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "config"))
    subprocess.run(["git", "init", "-q"], check=True)
    remedy = "`git config --global user.name you` and `git config --global user.email you@example.org`"
    with pytest.raises(UserError, match=f"git has no user.name, which.*{remedy}"):
        commands.check_identity()
    for command in remedy.replace("`", "").split(" and "):
        subprocess.run(command.split(), check=True)
    commands.check_identity()
    subprocess.run(["git", "config", "--global", "--unset", missing], check=True)
    with pytest.raises(UserError, match=f"git has no {missing}"):
        commands.check_identity()
    monkeypatch.setenv(f"GIT_COMMITTER_{missing.removeprefix('user.').upper()}", "somebody")
    commands.check_identity()
