"""DVC's experiments as values: what there is on a commit, what each gave, and the queue that runs more.

Everything goes through DVC's own commands, each of which costs a second; between them git tells whether
anything has happened, as DVC keeps each experiment as a git reference.
"""

import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imageclf.cores import allowed_cores
from imageclf.errors import UserError

POLL_S = 1.0
LOOK_S = 30.0
"""Even when git shows nothing new, DVC is asked this often: a worker may have died."""
SILENT = 5
"""Looks in a row at which no worker answered: on a busy machine two were silent twice, and worked."""
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
    run_dvc("queue", "start", "--jobs", str(jobs), OMP_NUM_THREADS=str(max(1, allowed_cores() // jobs)))


def ended(names: Collection[str]) -> Iterator[Experiment]:
    """Each of the named experiments as it ends, well or not; raises `UserError` when no worker is left to end them."""
    waiting, last, looked, alone = set(names), "", 0.0, 0
    while waiting:
        news, now = _git("for-each-ref", "refs/exps"), time.monotonic()
        if news == last and now - looked < LOOK_S:
            time.sleep(POLL_S)
            continue
        alone = alone + 1 if news == last and "0 active, 0 idle" in run_dvc("queue", "status") else 0
        last, looked = news, now
        found = _show_while_running()
        over = [found[name] for name in sorted(waiting & found.keys()) if found[name].state in {"success", "failed"}]
        yield from over
        waiting -= {each.name for each in over}
        if alone == SILENT and waiting:
            running = sorted(name for name in waiting & found.keys() if found[name].state == "running")
            kill = f"`dvc queue kill {' '.join(running)}`, then " if running else ""
            raise UserError(
                f"{', '.join(sorted(waiting))} did not end, and no queue worker is left; the last one's words are in "
                f".dvc/tmp/exps/celery. To go on: {kill}the same command again"
            )


def _show_while_running() -> dict[str, Experiment]:
    try:
        return show()
    except UserError:
        return {}  # `dvc exp show` reads the copies that workers are about to delete: seen next time


def commit(revision: str) -> str:
    """The full name of a commit."""
    return _git("rev-parse", "--verify", revision).strip()


def changed_code(experiment: Experiment) -> list[str]:
    """The files of code that its stages depend on and that have changed since it was queued."""
    return _git("diff", "--name-only", experiment.revision, "--", *experiment.code).splitlines()


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


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout


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
