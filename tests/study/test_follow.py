"""Tests that the end of each experiment is seen and that a dead worker is replaced, with a simulated queue."""

import itertools
from types import SimpleNamespace

import pytest

from imageclf import commands
from imageclf.core import workers
from imageclf.core.errors import UserError
from imageclf.study import experiments, follow
from imageclf.study.experiments import Experiment


class Queue:
    """A simulated queue that changes each time git reads its state."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *states: dict[str, str]) -> None:
        self.steps = iter(states)
        self.states: dict[str, str] = {}
        self.clock, self.shows = 0.0, 0
        self.workers, self.trainings = 1, 0
        self.killed: list[str] = []
        monkeypatch.setattr(commands, "git", self._git)
        monkeypatch.setattr(commands, "run_dvc", self._dvc)
        monkeypatch.setattr(experiments, "show", self._show)
        monkeypatch.setattr(workers, "alive", lambda: self.workers)
        monkeypatch.setattr(workers, "experiments_running", lambda: self.trainings)
        monkeypatch.setattr(follow, "time", SimpleNamespace(sleep=self._sleep, monotonic=lambda: self.clock))

    def _git(self, *_arguments: str) -> str:
        self.states = next(self.steps, self.states)
        return str(self.states)

    def _dvc(self, *arguments: str, **_others: object) -> str:
        assert arguments[0] == "queue"
        if arguments[1] == "kill":
            self.killed += arguments[2:]
            return ""
        rows = [f"abcdef0  {name}  01:09 AM  {state.capitalize()}" for name, state in self.states.items()]
        return "\n".join(["Task  Name  Created  Status", *rows, "", "Worker status: 0 active, 0 idle"])

    def _sleep(self, seconds: float) -> None:
        self.clock += seconds

    def _show(self) -> dict[str, Experiment]:
        self.shows += 1
        if not self.states:
            raise UserError("a copy that is about to be deleted")
        return {name: Experiment(name, "", state, {}, {}, (), None) for name, state in self.states.items()}


def never(left: list[str]) -> None:
    """Fail; for queues whose workers are alive."""
    pytest.fail(f"restarted for {left}")


def test_each_experiment_is_yielded_once_when_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    Queue(
        monkeypatch,
        {"a": "running", "b": "queued", "other": "success"},
        {},
        {"a": "success", "b": "running"},
        {"a": "success", "b": "failed"},
    )
    assert [(each.name, each.state) for each in follow.ended(["a", "b"], never)] == [("a", "success"), ("b", "failed")]


def test_a_long_training_is_rarely_disturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue(monkeypatch, *[{"a": "running"}] * 3600, {"a": "success"})
    assert [each.name for each in follow.ended(["a"], never)] == ["a"]
    assert queue.clock > 3500
    assert queue.shows <= 8


def test_the_experiments_of_a_dead_worker_are_queued_again_when_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue(monkeypatch, *[{"a": "running", "b": "queued"}] * 100)
    queue.workers, queue.trainings = 0, 1
    restarts: list[tuple[float, list[str]]] = []

    def sleep(seconds: float) -> None:
        queue.clock += seconds
        queue.trainings = int(queue.clock < 50)

    def restart(left: list[str]) -> None:
        restarts.append((queue.clock, left))
        queue.steps = iter([{"a": "queued", "b": "running"}, {"a": "success", "b": "success"}])
        queue.workers = 1

    monkeypatch.setattr(follow.time, "sleep", sleep)
    assert [each.name for each in follow.ended(["a", "b"], restart)] == ["a", "b"]
    ((at, left),) = restarts
    assert left == queue.killed == ["a"]
    assert at == pytest.approx(50 + follow.GRACE * follow.POLL_S, abs=2)


def test_workers_that_die_repeatedly_end_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue(monkeypatch, {"a": "queued"})
    queue.workers = 0
    restarts: list[list[str]] = []
    with pytest.raises(UserError, match=r"a did not end: DVC's queue worker died 6 times in a row; its log is \.dvc"):
        list(follow.ended(["a"], restarts.append))
    assert restarts == [[]] * follow.RESTARTS


def test_a_result_resets_the_count_of_deaths(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"e{number}" for number in range(20)]
    queue = Queue(monkeypatch)
    queue.workers = 0
    done = itertools.count(1)
    queue.states = dict.fromkeys(names, "queued")

    def restart(left: list[str]) -> None:
        """Let one more experiment end, then the worker dies again."""
        count = next(done)
        queue.steps = iter([{name: "success" if n < count else "queued" for n, name in enumerate(names)}])

    assert [each.name for each in follow.ended(names, restart)] == names


def test_a_removed_experiment_ends_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue(monkeypatch, {"b": "queued"})
    queue.workers = 0
    with pytest.raises(UserError, match="no longer in the queue: a; the same command queues them again"):
        list(follow.ended(["a", "b"], never))
