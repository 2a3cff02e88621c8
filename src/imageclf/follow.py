"""Follow DVC's queue until the experiments that somebody waits for have ended, and start its workers again if they die.

Between two looks git and the files of the queue tell whether anything has happened, as DVC itself takes a second or
more of the cores that the trainings need.
"""

import time
from collections.abc import Callable, Collection, Iterator

from imageclf import experiments, workers
from imageclf.errors import UserError
from imageclf.experiments import Experiment

POLL_S = 1.0
LOOK_S = 600.0
"""Seconds after which DVC is asked although nothing has changed."""
GRACE = 10
"""Polls in a row at which no worker is there, until it counts as dead: it takes seconds to start."""
REVIVALS = 5
"""Starts of a worker in a row that give no result, until the command gives up."""


def ended(names: Collection[str], revive: Callable[[list[str]], None]) -> Iterator[Experiment]:
    """Each of the named experiments as it ends, well or not.

    When no worker is left, `revive` gets the names of the experiments that the last one left unfinished: it has to
    queue them again and to start workers. Raises `UserError` if that does not help, or if an experiment was removed.
    """
    waiting, last, looked, deaths = set(names), None, 0.0, 0
    while waiting:
        news, gone = _news(), _no_worker_is_left()
        if news == last and not gone and time.monotonic() - looked < LOOK_S:
            time.sleep(POLL_S)
            continue
        last, looked = news, time.monotonic()
        found = _show_while_running()
        over = [found[name] for name in sorted(waiting & found.keys()) if found[name].state in {"success", "failed"}]
        yield from over
        waiting -= {each.name for each in over}
        deaths = 0 if over else deaths + gone
        if gone and waiting:
            if deaths > REVIVALS:
                raise UserError(
                    f"{', '.join(sorted(waiting))} did not end: DVC's queue worker died {deaths} times in a row; its "
                    f"output is in {workers.EXPERIMENTS}/celery/dvc-exp-worker-1.out. The same command tries again"
                )
            revive(_left_behind(waiting))


def _news() -> tuple[str, list[str]]:
    """What differs once an experiment of the queue has ended or was removed."""
    return experiments.git("for-each-ref", "refs/exps"), workers.results()


def _no_worker_is_left() -> bool:
    """Whether no worker runs, and no experiment that one has left behind, for a few seconds: one may be starting."""
    for _ in range(GRACE):
        if workers.alive() or workers.experiments_running():
            return False
        time.sleep(POLL_S)
    return True


def _left_behind(waiting: set[str]) -> list[str]:
    """Mark as failed what the queue takes for running although no process runs; returns the names.

    Raises `UserError` for names that the queue does not know.
    """
    rows = [line.split() for line in experiments.insist("queue", "status").splitlines()]
    states = {row[1]: row[-1] for row in rows if len(row) > 2}
    if removed := sorted(waiting - states.keys()):
        raise UserError(f"no longer in the queue: {', '.join(removed)}; the same command queues them again")
    left = sorted(name for name in waiting if states[name] == "Running")
    if left:
        experiments.insist("queue", "kill", *left)
    return left


def _show_while_running() -> dict[str, Experiment]:
    try:
        return experiments.show()
    except UserError:
        return {}  # `dvc exp show` reads the copies that workers are about to delete: seen next time
