"""DVC's experiments as values: what there is on a commit, what each gave, and the queue that runs more.

Everything goes through DVC's own commands, each of which costs a second or more.
"""

import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imageclf.cores import allowed_cores
from imageclf.errors import UserError

PAUSE_S, TRIES = 1.0, 3
"""A command may read a message that a worker is still writing, and fails then: kombu's `Expecting value`."""
SHOW_S = 120.0
"""`dvc exp show` takes seconds, or for ever: a copy that it reads may be deleted under it (a thread of pygit2 dies)."""


@dataclass(frozen=True)
class Experiment:
    """One experiment, as `dvc exp show` has it."""

    name: str
    revision: str
    state: str
    """queued, running, success or failed."""
    params: dict[str, Any]
    metrics: dict[str, Any]
    """`{"train": {..}, "val": {..}, "test": {..}, "epoch": 3}`, as far as the stages have got."""
    code: tuple[str, ...]
    """The files and folders of code that its stages depend on."""
    log: Path | None
    """What it printed, where a queue worker ran it on this machine."""

    @property
    def complete(self) -> bool:
        """Whether it ended, with scores of the test split."""
        return self.state == "success" and "test" in self.metrics


def show(baseline: str = "HEAD") -> dict[str, Experiment]:
    """The experiments on a commit, by name; of a failed one and a finished one of the same name, the finished.

    Raises `UserError` if DVC does not answer.
    """
    states = json.loads(run_dvc("exp", "show", "--json", "--rev", baseline, patience_s=SHOW_S))
    found: dict[str, Experiment] = {}
    for entry in states[-1]["experiments"] or []:
        experiment = _read(entry)
        if experiment.name not in found or experiment.complete:
            found[experiment.name] = experiment
    return found


def queue(name: str, overrides: list[str]) -> None:
    """Queue an experiment of the working tree as it is now, changed by `key=value` in Hydra's grammar."""
    run_dvc("exp", "run", "--queue", "--name", name, *(part for each in overrides for part in ("--set-param", each)))


def start(jobs: int) -> None:
    """Start workers in the background, `jobs` in all, for everything that is queued; they share the cores."""
    insist("queue", "start", "--jobs", str(jobs), OMP_NUM_THREADS=str(max(1, allowed_cores() // jobs)))


def commit(revision: str) -> str:
    """The full name of a commit."""
    return git("rev-parse", "--verify", revision).strip()


def changed_code(experiment: Experiment) -> list[str]:
    """The files of code that its stages depend on and that have changed since it was queued."""
    return git("diff", "--name-only", experiment.revision, "--", *experiment.code).splitlines()


@functools.cache
def read(revision: str, path: Path) -> str | None:
    """The text of an output as an experiment left it; None where DVC's cache does not hold it."""
    import dvc.api
    from dvc.exceptions import DvcException

    try:
        return dvc.api.read(str(path), rev=revision)
    except DvcException:
        return None


def forget_failed(names: Collection[str]) -> None:
    """Take failed experiments off the queue's list, where they would stand beside a second try."""
    if names:
        run_dvc("queue", "remove", *names)


def insist(*arguments: str, **environment: str) -> str:
    """`run_dvc` of a command that talks to the workers, again if it fails."""
    for _ in range(TRIES - 1):
        try:
            return run_dvc(*arguments, patience_s=None, **environment)
        except UserError:
            time.sleep(PAUSE_S)
    return run_dvc(*arguments, patience_s=None, **environment)


def run_dvc(*arguments: str, patience_s: float | None = None, **environment: str) -> str:
    """What `dvc ...` printed; raises `UserError` with its own words where it fails, or does not end in `patience_s`."""
    tools = str(Path(sys.executable).parent)  # workers look for `dvc` on PATH, and stages for `python`
    # Files, not pipes: workers that `dvc queue start` leaves behind would hold a pipe open until they end.
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as trouble:
        process = subprocess.Popen(
            [sys.executable, "-m", "dvc", *arguments],
            stdout=output,
            stderr=trouble,
            env={**os.environ, "PATH": os.pathsep.join([tools, os.environ.get("PATH", "")]), **environment},
            start_new_session=True,
        )
        try:
            code = process.wait(patience_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise UserError(f"dvc {' '.join(arguments[:2])} did not answer in {patience_s:g} s; try again") from None
        except KeyboardInterrupt:
            process.wait()  # DVC puts the working tree aside while it queues: never stop it half-way
            raise
        for file in (output, trouble):
            file.seek(0)
        said = output.read()
        if code:
            raise UserError(f"dvc {' '.join(arguments[:2])}: {trouble.read().strip() or said.strip()}")
        return said


def git(*arguments: str) -> str:
    """What `git ...` printed; raises `UserError` if it fails or is not installed."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UserError("git was not found; install it or add it to PATH, as experiments are kept in git") from None
    if done.returncode:
        raise UserError(f"git {arguments[0]}: {done.stderr.strip() or f'ended with {done.returncode}'}")
    return done.stdout


def check_identity() -> None:
    """Raise `UserError` if git has no name and e-mail address to put on an experiment."""
    for key in ("user.name", "user.email"):
        variable = f"GIT_COMMITTER_{key.removeprefix('user.').upper()}"
        if variable not in os.environ and not git("config", "--default", "", "--get", key).strip():
            raise UserError(
                f"git has no {key}, and experiments are commits; tell git once who you are: "
                "`git config --global user.name you` and `git config --global user.email you@example.org`"
            )


def _read(entry: dict[str, Any]) -> Experiment:
    revision, executor = entry["revs"][0], entry["executor"] or {}
    data = revision["data"] or {"params": {}, "metrics": {}, "deps": {}}
    metrics: dict[str, Any] = {}
    for file in data["metrics"].values():
        metrics |= file.get("data") or {}
    log = (executor.get("local") or {}).get("log")
    return Experiment(
        name=entry["name"] or revision["rev"],
        revision=revision["rev"],
        state=executor.get("state", "success"),
        params=data["params"].get("params.yaml", {}).get("data") or {},
        metrics=metrics,
        code=tuple(dep for dep in data["deps"] if dep.startswith(("src/", "stages/"))),
        log=Path(log) if log else None,
    )
