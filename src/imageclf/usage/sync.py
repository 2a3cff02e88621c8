"""Complete the record in MLflow from DVC's files: one run per DVC experiment.

    uv run imageclf sync

DVC's files are the truth. An experiment has no run, or an incomplete one, if DVC restored it from its cache, if a
colleague ran it and `dvc exp pull` brought it here, or if the MLflow server did not answer. The command may be
repeated: what is complete stays as it is.
"""

import argparse
import contextlib
import json
import math
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from imageclf import commands, params, yaml12
from imageclf.contracts import dataset, history, model
from imageclf.core import paths
from imageclf.core.errors import UserError
from imageclf.study import experiments
from imageclf.tracking import events, places
from imageclf.tracking.client import recording
from imageclf.tracking.opening import Opening

if TYPE_CHECKING:
    from imageclf.tracking.recorder.store import Run, Store

MISSING = "dvc.exp.missing"
"""Tag of a run whose DVC experiment no longer exists in this repository."""
ROUNDED = 1e-5
"""Relative difference of a number in MLflow and in history.csv, which has six digits."""
IN_CACHE = [paths.MODEL, paths.PROCESSED / dataset.MANIFEST, paths.PREDICTIONS, paths.PER_CLASS, paths.MODEL_CARD]
IN_CACHE += [paths.DATA_REPORT, paths.PLOTS]
"""Outputs in DVC's cache that a run holds. Those in git are `IN_GIT`."""
IN_GIT = [paths.PARAMS, paths.HISTORY, paths.TRAIN_SCORES, paths.TEST_SCORES]


@dataclass(frozen=True)
class Finished:
    """A DVC experiment, or a commit with the outputs of `dvc repro`, which has no `name`."""

    name: str | None
    baseline: str
    commit: str

    def __str__(self) -> str:
        return self.name or self.baseline[:7]


def finished() -> list[Finished]:
    """Return all experiments that git has here, and the last commit if DVC has its model; those that have scores."""
    head = experiments.commit("HEAD")
    found = [Finished(None, head, head)] if experiments.read(head, paths.MODEL_SPEC) else []
    for line in commands.git("for-each-ref", "--format=%(objectname) %(refname)", "refs/exps").splitlines():
        if match := re.fullmatch(r"(\w+) refs/exps/([0-9a-f]{2})/([0-9a-f]{38})/(.+)", line):
            commit, *baseline, name = match.groups()
            found.append(Finished(name, "".join(baseline), commit))
    return [each for each in found if _in_git(each.commit, paths.TEST_SCORES)]


def _in_git(commit: str, path: Path) -> str | None:
    """Return the text of a file in a commit; None if the commit has no such file."""
    try:
        return commands.git("show", f"{commit}:{path}")
    except UserError:
        return None


def run_of(each: Finished, store: "Store", runs: "dict[tuple[str, str], Run]") -> "Run | None":
    """Return the run of an experiment, from the runs by name and baseline; that of a commit has the same model."""
    if each.name is not None:
        return runs.get((each.name, each.baseline))
    text = experiments.read(each.commit, paths.MODEL_SPEC)
    return store.find_run(Opening("sync", json.loads(text)["weights_sha256"], experiment=None)) if text else None


def is_complete(run: "Run | None", each: Finished) -> bool:
    """Return True if the run has a model, the last epoch and the scores of the test split of an experiment."""
    if run is None or run.info.status != "FINISHED" or not (run.outputs and run.outputs.model_outputs):
        return False
    test = json.loads(_in_git(each.commit, paths.TEST_SCORES) or "{}")["test"]
    last = history.parse(_in_git(each.commit, paths.HISTORY) or "")[-1]
    expected = {"test/accuracy": test["accuracy"], "epoch/train_loss": last["train_loss"]}
    found = run.data.metrics
    return all(math.isclose(found.get(key, math.nan), value, rel_tol=ROUNDED) for key, value in expected.items())


@contextmanager
def restored(each: Finished) -> Iterator[None]:
    """Put the outputs of an experiment into a temporary folder, and make it the working directory.

    An experiment of an older version has fewer outputs. Raises `UserError` if some are not in DVC's cache.
    """
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException
    from dvc_data.index import DataIndexError

    files = DVCFileSystem(rev=each.commit)
    with tempfile.TemporaryDirectory(prefix="imageclf-") as work:
        for path in [*IN_GIT, *IN_CACHE]:
            target = Path(work, path)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                if files.exists(str(path)):
                    files.get(str(path), str(target), recursive=True)
            except (DvcException, DataIndexError, OSError):
                raise UserError(
                    f"{each}: {path} is not in DVC's cache; `uv run dvc exp pull origin {each}`, or run it again"
                ) from None
        with contextlib.chdir(work):
            yield


def record(each: Finished, repository: Path) -> None:
    """Complete the run of an experiment, or create it."""
    newest = yaml12.read(paths.PARAMS)
    with restored(each):  # the experiment may be older than some parameters
        values = {**newest, **yaml12.read(paths.PARAMS), "runtime": newest["runtime"]}
        settings = params.validate(values, f"params.yaml of {each}")
        data, spec = dataset.read_manifest(paths.PROCESSED), model.read_spec(paths.MODEL)
        scores = json.loads(paths.TEST_SCORES.read_text(encoding="utf-8"))["test"]
        opening = Opening(
            "sync",
            spec.weights_sha256,
            repository=str(repository),
            folder=str(repository),
            experiment=each.name,
            baseline=each.baseline,
        )
        with recording(opening) as recorder:
            events.training_restored(recorder, settings, data, spec)
            events.evaluated(recorder, settings, data, scores, spec.epoch)


def tag_missing(store: "Store", existing: list[Finished]) -> int:
    """Tag the runs whose DVC experiment no longer exists, and return their number; untag those that exist again.

    Nothing is tagged in a store outside this repository, in which colleagues may record their experiments.
    """
    if places.database(store.uri) != Path("mlflow.db").absolute():
        return 0
    known, count = {(each.name, each.baseline) for each in existing}, 0
    for key, run in store.runs_of_experiments().items():
        missing, tagged = key not in known, MISSING in run.data.tags
        if missing and run.info.status != "RUNNING":
            count += 1
            if not tagged:
                store.client.set_tag(run.info.run_id, MISSING, "true")
        elif tagged:
            store.client.delete_tag(run.info.run_id, MISSING)
    return count


def main(arguments: list[str] | None = None, prog: str | None = None) -> None:
    """Run the command `imageclf sync`."""
    argparse.ArgumentParser(prog, description="Complete the record in MLflow: one run per DVC experiment.").parse_args(
        arguments
    )
    from imageclf.tracking.recorder.store import Store

    repository, existing = Path.cwd(), finished()
    try:
        store = Store()
        runs = store.runs_of_experiments()
        incomplete = [each for each in existing if not is_complete(run_of(each, store, runs), each)]
    except Exception as error:  # noqa: BLE001 - MLflow raises errors of many libraries
        raise UserError(f"MLflow failed ({places.explain(error, places.tracking_uri())})") from None
    failed = 0
    for each in incomplete:
        try:
            record(each, repository)
        except UserError as error:
            failed += 1
            print(f"error: {error}")
    gone = tag_missing(store, existing)
    print(
        f"experiments: {len(existing) - len(incomplete)} of {len(existing)} were complete in MLflow, "
        f"{len(incomplete) - failed} recorded now, {failed} could not be recorded"
    )
    if gone:
        print(f"{gone} runs belong to experiments that no longer exist; they have the tag {MISSING}")
    if failed:
        raise SystemExit(1)
