"""Tests of how long waiting threads spin: what Linux counts, when one more team exists, what libgomp makes of it."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from imports import ROOT

from imageclf.core import spinning

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
PROGRAM = """
import sys
import threading
import time
from imageclf.core import spinning
from imageclf.training import runtime
"""


def run(program: str) -> str:
    """Return what a program prints that has as many threads as there are cores."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("GOMP", "OMP"))}
    environment |= {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": str(CORES)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM + program], env=environment, capture_output=True, text=True, check=True
    )
    assert not done.stderr
    return done.stdout


def make_tasks(folder: Path, *schedstats: str | None) -> Path:
    """Create a folder per thread; without text, the thread has just ended, and the file cannot be read."""
    for number, text in enumerate(schedstats):
        (folder / str(number)).mkdir()
        path = folder / str(number) / "schedstat"
        path.mkdir() if text is None else path.write_text(text)
    return folder


def test_the_waiting_of_all_threads_is_added(tmp_path: Path) -> None:
    assert spinning.waited_s(make_tasks(tmp_path, "9 1000000000 3\n", None, "9 500000000 3\n")) == 1.5


@pytest.mark.parametrize("schedstats", [[], ["0 0 0\n", "0 0 0\n"]], ids=["no /proc", "no statistics"])
def test_where_the_system_does_not_count_nothing_is_watched(
    schedstats: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert spinning.waited_s(make_tasks(tmp_path, *schedstats)) is None
    monkeypatch.setattr(spinning, "waited_s", lambda: None)
    before = threading.active_count()
    spinning.adapt(lambda: None)
    spinning.adapt.cache_clear()
    assert threading.active_count() == before


def test_one_more_team_exists_while_other_programs_need_the_cores() -> None:
    teams: list[threading.Thread] = []
    created = threading.Semaphore(0)

    def compute() -> None:
        teams.append(threading.current_thread())
        created.release()

    def alive() -> list[bool]:
        return [team.is_alive() for team in teams]

    def shares() -> Iterator[float]:
        yield 0.03
        assert alive() == []
        yield 0.5
        assert created.acquire(timeout=20)
        yield 0.7
        assert alive() == [True]
        yield 0.1
        teams[0].join(timeout=20)
        assert alive() == [False]
        yield 0.0
        yield 0.3
        assert created.acquire(timeout=20)
        assert alive() == [False, True]
        yield 0.0
        teams[1].join(timeout=20)

    spinning._watch(compute, shares())
    assert alive() == [False, False]


needs_cores = pytest.mark.skipif(
    CORES < 2 or spinning.waited_s() is None, reason="one core, or a system that does not say how long a thread waited"
)


@needs_cores
def test_waiting_threads_use_less_processor_time_while_there_is_one_more_team() -> None:
    printed = run("""
def spent():
    runtime._use_all_threads()
    start = time.process_time()
    for _ in range(20):
        runtime._use_all_threads()
        time.sleep(0.02)
    return time.process_time() - start

spent()
before = spent()
end = threading.Event()
team = threading.Thread(target=spinning._hold_team, args=(runtime._use_all_threads, end))
team.start()
time.sleep(0.2)
during = spent()
end.set()
team.join()
time.sleep(0.2)
after = spent()
print(before, during, after)
""")
    before, during, after = map(float, printed.split())
    assert during < min(before, after) / 2  # measured: a tenth


@needs_cores
@pytest.mark.faults
def test_a_process_with_several_threads_notices_a_busy_one() -> None:
    printed = run(f"""
import subprocess
runtime.set_threads({CORES})
busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range({CORES})]
deadline = time.monotonic() + 60
while (teams := threading.active_count() - 2) < 1 and time.monotonic() < deadline:  # without main thread and watcher
    runtime._use_all_threads()
for process in busy:
    process.kill()
time.sleep(1)  # Python must not end while the new team computes
print(teams)
""")
    assert printed == "1\n"
