"""Tests of the command `imageclf search`, with simulated experiments."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from imports import ROOT

from imageclf.core.errors import UserError
from imageclf.study import experiments, launch
from imageclf.study.experiments import Experiment

pytest.importorskip("optuna", reason="needs the dependency group search")
from imageclf.study import search


class Queue:
    """A simulated queue: the accuracy of an experiment is best at lr 0.01, and `fail` names those that fail."""

    def __init__(self) -> None:
        self.rounds: list[list[str]] = []
        self.found: dict[str, Experiment] = {}
        self.fail: set[str] = set()
        self.run_on: set[str] = set()
        self.stop_after = 99

    def run(self, planned: dict[str, dict[str, Any]], jobs: int) -> None:
        """Simulate `launch.run`."""
        assert len(planned) <= jobs
        if len(self.rounds) == self.stop_after:
            raise KeyboardInterrupt
        self.rounds.append(list(planned))
        for name, values in planned.items():
            accuracy = 0.9 - abs(values["lr"] - 0.01) - 0.2 * (values.get("model") == "mlp")
            metrics = {"val": {"accuracy": accuracy}, "test": {"accuracy": 0.0}}
            state = "running" if name in self.run_on else "failed" if name in self.fail else "success"
            self.found[name] = Experiment(name, "", state, values, metrics, (), None)
        if self.fail & planned.keys():
            raise UserError("some failed")


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Queue:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    shutil.copy(ROOT / "params.yaml", tmp_path)
    simulated = Queue()
    monkeypatch.setattr(launch, "run", simulated.run)
    monkeypatch.setattr(experiments, "show", lambda: simulated.found)
    monkeypatch.setattr(experiments, "commit", lambda _revision: "0123456789")
    return simulated


def test_a_search_finds_better_values_and_says_how_to_get_them(
    queue: Queue, capsys: pytest.CaptureFixture[str]
) -> None:
    search.main(["lr=0.0001..1.0", "model=mlp,cnn", "--trials", "12", "--jobs", "3"])
    assert [len(names) for names in queue.rounds] == [3, 3, 3, 3]
    best = max(queue.found.values(), key=lambda each: each.metrics["val"]["accuracy"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "validation accuracy of the best of 12 trials:"
    accuracy = f"{best.metrics['val']['accuracy']:.2%}"
    assert lines[1] == f"  {best.name}: {accuracy} with lr={best.params['lr']} model='{best.params['model']}'"
    assert lines[-1].startswith(f"`uv run dvc exp apply {best.name}` ")
    assert {each.params["model"] for each in queue.found.values()} == {"mlp", "cnn"}
    lrs = sorted(each.params["lr"] for each in queue.found.values())
    assert lrs[2] < 0.01  # on a linear scale, one in a hundred values is below it
    assert lrs[-1] > 0.1


def test_an_interrupted_search_continues_with_the_same_trials(queue: Queue) -> None:
    queue.stop_after = 1
    with pytest.raises(KeyboardInterrupt):
        search.main(["lr=0.0001..0.1", "--trials", "5", "--jobs", "2"])
    queue.stop_after = 99
    search.main(["lr=0.0001..0.1", "--trials", "5", "--jobs", "2"])
    assert queue.rounds == [["search-0", "search-1"], ["search-2", "search-3"], ["search-4"]]
    assert len({each.params["lr"] for each in queue.found.values()}) == 5
    search.main(["lr=0.0001..0.1", "--trials", "6", "--jobs", "2"])
    assert queue.rounds[3:] == [["search-5"]]


def test_a_trial_that_was_killed_while_it_got_its_values_does_not_count(
    queue: Queue, capsys: pytest.CaptureFixture[str]
) -> None:
    search.main(["lr=0.0001..0.1", "--trials", "1"])
    import optuna

    optuna.load_study(storage="sqlite:///.resume/search.db", study_name="search").ask()
    search.main(["lr=0.0001..0.1", "--trials", "3"])
    assert queue.rounds == [["search-0"], ["search-2"], ["search-3"]]
    assert capsys.readouterr().out.count("validation accuracy of the best of 3 trials:\n") == 1


def test_a_trial_that_has_not_ended_is_neither_failed_nor_scored(queue: Queue) -> None:
    queue.run_on = {"search-1"}
    queue.fail = {"search-1"}
    with pytest.raises(UserError, match=r"^some failed$"):
        search.main(["lr=0.0001..0.1", "--trials", "2", "--jobs", "2"])
    queue.run_on = queue.fail = set()
    search.main(["lr=0.0001..0.1", "--trials", "2", "--jobs", "2"])
    assert queue.rounds == [["search-0", "search-1"], ["search-0", "search-1"]]


def test_failed_trials_count_and_are_not_the_best(queue: Queue, capsys: pytest.CaptureFixture[str]) -> None:
    queue.fail = {"search-1", "search-2"}
    search.main(["lr=0.0001..0.1", "--trials", "4", "--jobs", "2"])
    assert len(queue.rounds) == 2
    assert "search-1" not in capsys.readouterr().out
    queue.fail = {"search-4", "search-5"}
    with pytest.raises(UserError, match=r"^some failed$"):
        search.main(["lr=0.0001..0.1", "--trials", "8", "--jobs", "2"])


def test_a_search_is_not_continued_with_other_ranges_or_parameters(queue: Queue, tmp_path: Path) -> None:
    search.main(["lr=0.0001..0.1", "--trials", "1"])
    with pytest.raises(UserError, match=r"^the search 'search' was begun with other values; choose another --name$"):
        search.main(["lr=0.0001..0.2", "--trials", "2"])
    text = (tmp_path / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text.replace("epochs: 20 ", "epochs: 3 "))
    with pytest.raises(UserError, match=r"with other params\.yaml; choose another --name$"):
        search.main(["lr=0.0001..0.1", "--trials", "2"])
    search.main(["lr=0.0001..0.1", "--trials", "1", "--name", "second"])
    assert queue.rounds == [["search-0"], ["second-0"]]


def test_choices_keep_their_types(queue: Queue) -> None:
    search.main(["hidden=[8],[8, 4]", "lr=0.01,0.02", "flip=true,false", "--trials", "8", "--jobs", "8"])
    params = [each.params for each in queue.found.values()]
    assert {tuple(each["hidden"]) for each in params} == {(8,), (8, 4)}
    assert {each["flip"] for each in params} == {True, False}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr=0.1", r"^lr=0\.1: name two choices or more"),
        ("lr=0.1..0.01", r"^lr=0\.1\.\.0\.01: the ends of a range should be two numbers, the smaller one first$"),
        ("lr=-1..0.01", r"^lr=-1\.\.0\.01: lr: .*greater than 0"),
        ("lr", r"^lr: name two choices or more"),
        ("learning=0.1,0.2", r"^learning=0\.1,0\.2: learning: .*"),
        ("model=mlp,resnet", r"^model=mlp,resnet: model: 'resnet' is not one of .*did you mean"),
        ("epochs=1..x", r"^epochs=1\.\.x: epochs: "),
    ],
)
def test_a_mistake_is_one_sentence_before_any_work(text: str, message: str, queue: Queue) -> None:
    with pytest.raises(UserError, match=message):
        search.main([text])
    assert queue.rounds == []


def test_without_validation_images_there_is_nothing_to_search_for(queue: Queue, tmp_path: Path) -> None:
    text = (tmp_path / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text.replace("val_fraction: 0.1", "val_fraction: 0"))
    with pytest.raises(UserError, match=r"^search needs validation images; set val_fraction"):
        search.main(["lr=0.1,0.2"])
    assert queue.rounds == []
