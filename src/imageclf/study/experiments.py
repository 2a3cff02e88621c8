"""DVC's experiments on a commit, their results, and the queue that runs more.

Everything goes through DVC's own commands, each of which takes a second or more.
"""

import fcntl
import functools
import json
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imageclf import commands
from imageclf.core import paths

SHOW_S = 120.0
"""Time limit of `dvc exp show`, which takes seconds, but never ends if a copy that it reads is deleted meanwhile."""


@dataclass(frozen=True)
class Experiment:
    """One experiment, as `dvc exp show` lists it."""

    name: str
    revision: str
    state: str
    """queued, running, success or failed."""
    params: dict[str, Any]
    metrics: dict[str, Any]
    """`{"train": {..}, "val": {..}, "test": {..}, "epoch": 3}`; keys of stages that have not ended are missing."""
    code: tuple[str, ...]
    """The files and folders of code that its stages depend on."""
    log: Path | None
    """File with its output; None if no queue worker ran it on this machine."""

    @property
    def complete(self) -> bool:
        """True if it ended with scores of the test split."""
        return self.state == "success" and "test" in self.metrics


def show(baseline: str = "HEAD") -> dict[str, Experiment]:
    """Return the experiments on a commit, by name; a finished one replaces a failed one of the same name.

    Raises `UserError` if DVC does not answer.
    """
    states = json.loads(commands.run_dvc_again("exp", "show", "--json", "--rev", baseline, patience_s=SHOW_S))
    found: dict[str, Experiment] = {}
    for entry in states[-1]["experiments"] or []:
        experiment = _read(entry)
        if experiment.name not in found or experiment.complete:
            found[experiment.name] = experiment
    return found


def queue(name: str, values: dict[str, Any]) -> None:
    """Queue an experiment of the working tree as it is now, with these values of parameters."""
    changes = [part for key, value in values.items() for part in ("--set-param", override(key, value))]
    with tree_at_rest() as lock:
        commands.run_dvc("exp", "run", "--queue", "--name", name, *changes, pass_fds=(lock,))


@contextmanager
def tree_at_rest() -> Iterator[int]:
    """Wait until no `queue` runs, whose DVC changes params.yaml for seconds, and let none begin inside the context.

    DVC gets the yielded descriptor of a lock file, so that it keeps the lock if the process that started it is killed.
    """
    place = paths.repository() / ".dvc/tmp/queueing.lock"
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def override(key: str, value: object) -> str:
    """Return `key=value` for `dvc exp run --set-param`, in Hydra's grammar."""
    return f"{key}={_render(value)}"


def _render(value: object) -> str:
    match value:
        case None | bool():
            return {None: "null", True: "true", False: "false"}[value]
        case str():
            # In quotes, a quote is escaped, and so are backslashes before it or at the end, and OmegaConf's `${`.
            text = re.sub(r"(\\*)(\$\{|')", r"\1\1\\\2", value)
            return "'" + re.sub(r"(\\+)\Z", r"\1\1", text) + "'"
        case list():
            return f"[{','.join(map(_render, value))}]"
        case _:
            return repr(value)


def start(jobs: int) -> None:
    """Start `jobs` workers in the background for everything in the queue; they share the cores."""
    commands.run_dvc_again("queue", "start", "--jobs", str(jobs))


def commit(revision: str) -> str:
    """Return the full hash of a commit."""
    return commands.git("rev-parse", "--verify", revision).strip()


def changed_code(experiment: Experiment) -> list[str]:
    """Return the code files that the stages of an experiment depend on and that have changed since it was queued."""
    return commands.git("diff", "--name-only", experiment.revision, "--", *experiment.code).splitlines()


@functools.cache
def read(revision: str, path: Path) -> str | None:
    """Return the text of an output of an experiment; None if it is not in DVC's cache."""
    import dvc.api
    from dvc.exceptions import DvcException
    from dvc_data.index import DataIndexError

    try:
        return dvc.api.read(str(path), rev=revision)
    except (DvcException, DataIndexError):
        return None


def forget_failed(names: Collection[str]) -> None:
    """Remove failed experiments from the queue's list, which would otherwise show them next to the second try."""
    if names:
        commands.run_dvc("queue", "remove", *names)


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
