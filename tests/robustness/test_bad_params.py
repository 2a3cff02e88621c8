"""Tests that real stages refuse forty kinds of wrong params.yaml, in one line and quickly, before any work.

The messages are tested in test_params.py.
"""

import re
from pathlib import Path

import pytest
from conftest import names
from imports import ROOT
from stage_run import PIPELINE, run_stage

from imageclf.core import paths

pytestmark = pytest.mark.faults

COMMITTED = (ROOT / paths.PARAMS).read_text(encoding="utf-8")
LIMIT_S = 2.0
"""Maximum processor time in seconds, which does not depend on other processes."""


def put(key: str, line: str) -> bytes:
    """Return the committed file with another line for a key."""
    text, count = re.subn(rf"(?m)^( *){key}:.*$", lambda found: found[1] + line, COMMITTED)
    assert count == 1, key
    return text.encode()


BAD: list[tuple[str, bytes, str]] = [
    # typos
    ("misspelled key", put("lr", "lrr: 0.1"), "lrr: is not a parameter; did you mean 'lr'?"),
    ("other name of a key", put("lr", "learning_rate: 0.1"), "is not a parameter; did you mean 'lr'?"),
    ("dash for underscore", put("batch_size", "batch-size: 32"), "did you mean 'batch_size'?"),
    ("capitals", put("epochs", "Epochs: 20"), "did you mean 'epochs'?"),
    ("misspelled group", put("runtime", "run_time:"), "did you mean 'runtime'?"),
    ("misspelled key of the group", put("threads", "thread: 4"), "runtime.thread: is not a parameter"),
    ("key too many", put("lr", "lr: 0.1\ngpu: true"), "gpu: is not a parameter"),
    ("missing key", put("seed", ""), "seed: is missing"),
    ("misspelled choice", put("dataset", "dataset: minst"), "did you mean 'mnist'?"),
    ("choice in capitals", put("optimizer", "optimizer: ADAM"), "did you mean 'adam'?"),
    ("no such choice", put("model", "model: transformer9"), "is not one of cnn, mlp"),
    ("other name of a device", put("device", "device: gpu0"), "runtime.device: 'gpu0' is not one of auto, cuda"),
    # numbers out of range
    ("zero", put("lr", "lr: 0"), "lr: should be greater than 0"),
    ("negative", put("epochs", "epochs: -1"), "epochs: should be greater than or equal to 1"),
    ("nan", put("lr", "lr: .nan"), "lr: should be a finite number"),
    ("inf", put("weight_decay", "weight_decay: .inf"), "weight_decay: should be a finite number"),
    ("overflow", put("lr", "lr: 1e400"), "lr: should be a finite number"),
    ("underflow", put("lr", "lr: 1e-400"), "lr: should be greater than 0"),
    ("huge integer", put("epochs", f"epochs: {'9' * 40}"), "epochs: should be less than or equal to 1000000"),
    ("integer beyond Python's digits", put("seed", f"seed: {'9' * 5000}"), "is not a number"),
    ("share of one", put("dropout", "dropout: 1"), "dropout: should be less than 1"),
    ("seed beyond 32 bits", put("seed", "seed: 4294967296"), "seed: should be less than 4294967296"),
    # types
    ("number in quotes", put("lr", 'lr: "0.1"'), "remove the quotes"),
    ("comma for a point", put("lr", "lr: 0,1"), "lr: should be a valid number"),
    ("yes", put("permute", "permute: yes"), "permute: should be a valid boolean, got 'yes'"),
    ("no", put("flip", "flip: no"), "flip: should be a valid boolean, got 'no'"),
    ("float for an integer", put("epochs", "epochs: 1e3"), "epochs: should be a valid integer"),
    ("list for a scalar", put("lr", "lr: [0.1]"), "lr: should be a valid number"),
    ("scalar for a list", put("classes", "classes: cat"), "classes: should be a valid list"),
    ("nothing", put("lr", "lr:"), "lr: should be a valid number, got None"),
    ("wrong item", put("channels", "channels: [32, x]"), "channels[1]: should be a valid integer"),
    # not YAML
    ("duplicate key", put("lr", "lr: 0.1\nlr: 0.2"), "'lr' occurs twice"),
    ("tab", put("lr", "\tlr: 0.1"), r"cannot start any token"),
    ("latin-1", COMMITTED.encode() + b"# caf\xe9\n", "is not UTF-8 text"),
    ("UTF-16 with its mark", COMMITTED.encode("utf-16"), "is not UTF-8 text"),
    ("empty", b"", "has no `key: value` lines"),
    ("tag of Python", put("lr", "lr: !!python/name:os.system"), "could not determine a constructor"),
    ("lists without end", put("lr", f"lr: {'[' * 9999}"), "the lists are nested too deeply"),
    ("binary", b"\x7fELF\0\0", "unacceptable character"),
    # contradictions
    (
        "flip of permuted pixels",
        put("permute", "permute: true").replace(b"flip: false", b"flip: true"),
        "but permute is true; set flip to",
    ),
    ("class that occurs twice", put("classes", "classes: [cat, dog, cat]"), "classes: 'cat' occurs twice"),
]


def test_there_are_forty() -> None:
    assert len({name for name, *_ in BAD}) >= 40


@pytest.mark.parametrize("number", range(len(BAD)), ids=[name for name, *_ in BAD])
def test_a_stage_refuses_it_before_any_work(tmp_path: Path, number: int) -> None:
    _, content, message = BAD[number]
    (tmp_path / paths.PARAMS).write_bytes(content)
    result = run_stage(tmp_path, PIPELINE[number % len(PIPELINE)])
    assert result.code == 1
    assert message in result.output
    lines = result.output.removeprefix("error: ").splitlines()
    assert len(lines) <= 2  # a misspelled key is also missing: one line for each
    assert all(line.startswith("params.yaml") and len(line) < 300 for line in lines)
    assert names(tmp_path) == ["params.yaml"]
    assert result.seconds < LIMIT_S
