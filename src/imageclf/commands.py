"""The commands `dvc` and `git`, whose failures are errors with their own messages."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection
from pathlib import Path

from imageclf.core.errors import UserError

PAUSE_S, TRIES = 1.0, 3
"""Pause between tries of a command that talks to workers, or reads their copies.

It fails if it reads a message that is being written, or a copy that is being deleted.
"""


def run_dvc_again(*arguments: str, patience_s: float | None = None) -> str:
    """Run a command that talks to the workers or reads their copies, up to `TRIES` times; return what it printed."""
    for _ in range(TRIES - 1):
        try:
            return run_dvc(*arguments, patience_s=patience_s)
        except UserError:
            time.sleep(PAUSE_S)
    return run_dvc(*arguments, patience_s=patience_s)


def run_dvc(*arguments: str, patience_s: float | None = None, pass_fds: Collection[int] = ()) -> str:
    """Run `dvc ...`, which inherits the descriptors `pass_fds`, and return what it printed.

    Raises `UserError` with DVC's message if it fails, or if it does not end within `patience_s` seconds.
    """
    tools = str(Path(sys.executable).parent)  # workers look for `dvc` on PATH, stages for `python`
    # Files, not pipes: workers that `dvc queue start` leaves behind would hold a pipe open until they end.
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "dvc", *arguments],
            stdout=output,
            stderr=errors,
            env={**os.environ, "PATH": os.pathsep.join([tools, os.environ.get("PATH", "")])},
            start_new_session=True,
            pass_fds=pass_fds,
        )
        try:
            code = process.wait(patience_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise UserError(f"dvc {' '.join(arguments[:2])} did not answer in {patience_s:g} s; try again") from None
        except KeyboardInterrupt:
            process.wait()  # DVC changes the working tree while it queues; it must not be stopped
            raise
        for file in (output, errors):
            file.seek(0)
        printed = output.read()
        if code:
            raise UserError(f"dvc {' '.join(arguments[:2])}: {errors.read().strip() or printed.strip()}")
        return printed


def git(*arguments: str) -> str:
    """Run `git ...` and return what it printed; raise `UserError` if it fails or is not installed."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UserError(
            "git was not found; install it or add it to PATH, because DVC keeps experiments in git"
        ) from None
    if done.returncode:
        raise UserError(f"git {arguments[0]}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout


def check_identity() -> None:
    """Raise `UserError` if git has no user name or e-mail address, which the commit of an experiment needs."""
    for key in ("user.name", "user.email"):
        variable = f"GIT_COMMITTER_{key.removeprefix('user.').upper()}"
        if variable not in os.environ and not git("config", "--default", "", "--get", key).strip():
            raise UserError(
                f"git has no {key}, which each experiment needs because it is a commit; set it once: "
                "`git config --global user.name you` and `git config --global user.email you@example.org`"
            )
