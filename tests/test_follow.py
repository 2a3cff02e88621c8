"""The end of each experiment is seen and a dead worker is replaced; `test_recipes` runs the real queue."""

import itertools
from types import SimpleNamespace

import pytest

from imageclf import experiments, follow, workers
from imageclf.errors import UserError
from imageclf.experiments import Experiment


class Queue:
    """A queue that changes at each look; git reports it, DVC lists it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *states: dict[str, str]) -> None:
        self.steps = iter(states)
        self.states: dict[str, str] = {}
        self.clock, self.shows = 0.0, 0
        self.workers, self.trainings = 1, 0
        self.killed: list[str] = []
        monkeypatch.setattr(experiments, "git", self._git)
        monkeypatch.setattr(experiments, "run_dvc", self._dvc)
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
    """For queues whose workers live."""
    pytest.fail(f"revived {left}")


def test_each_experiment_is_told_once_as_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    Queue(
        monkeypatch,
        {"a": "running", "b": "queued", "other": "success"},
        {},
        {"a": "success", "b": "running"},
        {"a": "success", "b": "failed"},
    )
    assert [(each.name, each.state) for each in follow.ended(["a", "b"], never)] == [("a", "success"), ("b", "failed")]


def test_a_long_training_is_waited_for_and_hardly_disturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue(monkeypatch, *[{"a": "running"}] * 3600, {"a": "success"})
    assert [each.name for each in follow.ended(["a"], never)] == ["a"]
    assert queue.clock > 3500
    assert queue.shows <= 8


def test_what_a_dead_worker_left_is_queued_again_once_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue(monkeypatch, *[{"a": "running", "b": "queued"}] * 100)
    queue.workers, queue.trainings = 0, 1
    revived: list[tuple[float, list[str]]] = []

    def sleep(seconds: float) -> None:
        queue.clock += seconds
        queue.trainings = int(queue.clock < 50)

    def revive(left: list[str]) -> None:
        revived.append((queue.clock, left))
        queue.steps = iter([{"a": "queued", "b": "running"}, {"a": "success", "b": "success"}])
        queue.workers = 1

    monkeypatch.setattr(follow.time, "sleep", sleep)
    assert [each.name for each in follow.ended(["a", "b"], revive)] == ["a", "b"]
    ((at, left),) = revived
    assert left == queue.killed == ["a"]
    assert at == pytest.approx(50 + follow.GRACE * follow.POLL_S, abs=2)


def test_workers_that_die_again_and_again_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue(monkeypatch, {"a": "queued"})
    queue.workers = 0
    revived: list[list[str]] = []
    with pytest.raises(
        UserError, match=r"a did not end: DVC's queue worker died 6 times in a row; its output is in \.dvc"
    ):
        list(follow.ended(["a"], revived.append))
    assert revived == [[]] * follow.REVIVALS


def test_an_end_resets_the_count_of_deaths(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"e{number}" for number in range(20)]
    queue = Queue(monkeypatch)
    queue.workers = 0
    done = itertools.count(1)
    queue.states = dict.fromkeys(names, "queued")

    def revive(left: list[str]) -> None:
        """One more ends, then the worker dies again."""
        count = next(done)
        queue.steps = iter([{name: "success" if n < count else "queued" for n, name in enumerate(names)}])

    assert [each.name for each in follow.ended(names, revive)] == names


def test_an_experiment_taken_off_the_queue_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue(monkeypatch, {"b": "queued"})
    queue.workers = 0
    with pytest.raises(UserError, match="no longer in the queue: a; the same command queues them again"):
        list(follow.ended(["a", "b"], never))
