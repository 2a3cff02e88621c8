"""The time for which threads of a computation that wait for each other spin, before they sleep.

A thread that spins can start the next operation at once, but it keeps a core busy. If another program needs this core,
the thread that it waits for cannot run meanwhile. So threads should spin on a quiet machine, and sleep on a busy one.

libgomp, whose threads compute for torch, lets threads sleep early while a process has more of them than the machine has
cores. One more team of threads is enough for this, even if it has nothing to do.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path

TASKS = Path("/proc/self/task")
PERIOD_S = 0.25
BUSY = 0.2
"""Seconds per second for which all threads of a process together wait for a core, if other programs need the cores.

On 2 cores, two threads that compute wait for 0.07 or less when alone, and for 0.4 to 0.8 next to one busy process.
"""


@lru_cache(maxsize=1)
def adapt(compute: Callable[[], object]) -> None:
    """Let waiting threads sleep early, from now on, while other programs need the cores.

    `compute` is an operation that uses all threads. Only the time of a computation depends on how its threads wait, not
    its results. Nothing happens on a system that does not say how long a thread waited for a core.
    """
    if waited_s() is not None:
        threading.Thread(target=_watch, args=(compute, _shares()), daemon=True).start()


def waited_s(tasks: Path = TASKS) -> float | None:
    """Return the seconds for which the threads of this process waited for a core; None if the system does not say."""
    nanoseconds: list[int] = []
    for statistics in tasks.glob("*/schedstat"):
        try:
            nanoseconds.append(int(statistics.read_text().split()[1]))
        except OSError:
            continue  # this thread has ended
    return sum(nanoseconds) / 1e9 if any(nanoseconds) else None


def _shares() -> Iterator[float]:
    """Yield the seconds for which the threads waited for a core, per second, in each period."""
    then, before = time.monotonic(), waited_s() or 0.0
    while True:
        time.sleep(PERIOD_S)
        now, waited = time.monotonic(), waited_s() or 0.0
        yield (waited - before) / (now - then)
        then, before = now, waited


def _watch(compute: Callable[[], object], shares: Iterable[float]) -> None:
    end_of_team: threading.Event | None = None
    for share in shares:
        if share > BUSY and end_of_team is None:
            end_of_team = threading.Event()
            threading.Thread(target=_hold_team, args=(compute, end_of_team), daemon=True).start()
        elif share <= BUSY and end_of_team is not None:
            end_of_team.set()
            end_of_team = None


def _hold_team(compute: Callable[[], object], end: threading.Event) -> None:
    """Create one more team of threads, which belongs to the calling thread and ends with it."""
    compute()
    end.wait()
