"""Wait until experiments in DVC's queue have ended, and start the queue's workers again if they die.

`dvc exp show` uses a core that the trainings need for a second or more. So it runs only if git's references or the
files of the queue have changed.
"""

import time
from collections.abc import Callable, Collection, Iterator

from imageclf import commands
from imageclf.core import workers
from imageclf.core.errors import UserError
from imageclf.study import experiments
from imageclf.study.experiments import Experiment

POLL_S = 1.0
REFRESH_S = 600.0
"""Seconds after which `dvc exp show` runs even if nothing has changed."""
GRACE = 10
"""Polls in a row without a worker after which it counts as dead; a worker takes seconds to start."""
RESTARTS = 5
"""Starts of a worker in a row without a result after which the command gives up."""


def ended(names: Collection[str], restart: Callable[[list[str]], None]) -> Iterator[Experiment]:
    """Yield each of the named experiments when it ends, successful or failed.

    If no worker is left, `restart` is called with the names of the experiments that the last worker left unfinished; it
    must queue them again and start workers. Raises `UserError` if that does not help or if an experiment was removed.
    """
    waiting, last_state, shown_at, deaths = set(names), None, 0.0, 0
    while waiting:
        state, dead = _queue_state(), _is_no_worker_left()
        if state == last_state and not dead and time.monotonic() - shown_at < REFRESH_S:
            time.sleep(POLL_S)
            continue
        last_state, shown_at = state, time.monotonic()
        found = _show_while_running()
        new = [found[name] for name in sorted(waiting & found.keys()) if found[name].state in {"success", "failed"}]
        yield from new
        waiting -= {each.name for each in new}
        deaths = 0 if new else deaths + dead
        if dead and waiting:
            if deaths > RESTARTS:
                raise UserError(
                    f"{', '.join(sorted(waiting))} did not end: DVC's queue worker died {deaths} times in a row; its "
                    f"log is {workers.EXPERIMENTS}/celery/dvc-exp-worker-1.out; the same command tries again"
                )
            restart(_fail_unfinished(waiting))


def _queue_state() -> tuple[str, list[str]]:
    """Return a value that changes when an experiment of the queue ends or is removed."""
    return commands.git("for-each-ref", "refs/exps"), workers.results()


def _is_no_worker_left() -> bool:
    """Return True if neither a worker nor an experiment runs at `GRACE` polls in a row."""
    for _ in range(GRACE):
        if workers.alive() or workers.experiments_running():
            return False
        time.sleep(POLL_S)
    return True


def _fail_unfinished(waiting: set[str]) -> list[str]:
    """Mark as failed the experiments that the queue lists as running although no process runs; return their names.

    Raises `UserError` for names that the queue does not know.
    """
    rows = [line.split() for line in commands.run_dvc_again("queue", "status").splitlines()]
    states = {row[1]: row[-1] for row in rows if len(row) > 2}
    if removed := sorted(waiting - states.keys()):
        raise UserError(f"no longer in the queue: {', '.join(removed)}; the same command queues them again")
    left = sorted(name for name in waiting if states[name] == "Running")
    if left:
        commands.run_dvc_again("queue", "kill", *left)
    return left


def _show_while_running() -> dict[str, Experiment]:
    try:
        return experiments.show()
    except UserError:
        return {}  # `dvc exp show` fails if a worker deletes a copy that it reads; the next call sees the result
