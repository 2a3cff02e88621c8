"""Tests of the exit code and the output of stages that fail, in real processes."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import pytest
from conftest import names
from imports import SOURCE

HEAD = f"""
import errno, os, sys, time
sys.path.insert(0, {str(SOURCE)!r})
from imageclf.core import errors, files, process

def main():
"""


def start(
    body: str, *, setup: str = "", stdout: int | IO[str] = subprocess.PIPE, **environment: str
) -> subprocess.Popen[str]:
    """Start a process that runs a stage whose `main` is `body`."""
    return subprocess.Popen(
        [sys.executable, "-c", f"{setup}{HEAD}    {body}\n\nprocess.run(main)\n"],
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


def start_and_wait(body: str) -> subprocess.Popen[str]:
    """Start a process that prints one line before `body`, and wait for this line."""
    process = start(f"print('ready', flush=True); {body}")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def run(body: str) -> tuple[int, str]:
    """Return the exit code and the stderr of such a process."""
    process = start(body)
    _, errors = process.communicate()
    return process.returncode, errors


def test_a_successful_stage_exits_with_0_and_prints_nothing() -> None:
    assert run("pass") == (0, "")


def test_the_output_of_a_successful_stage_is_not_lost() -> None:
    process = start("sys.stdout.write('output'); sys.stderr.write('errors')")
    assert process.communicate() == ("output", "errors")
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("encoding", "output"), [("latin-1", r"\u732b \udcfc"), ("ascii", r"\u732b \udcfc"), ("utf-8", r"猫 \udcfc")]
)
def test_a_character_that_stdout_cannot_encode_is_printed_as_an_escape(encoding: str, output: str) -> None:
    process = start(r"print('\u732b \udcfc')", PYTHONIOENCODING=encoding)
    assert process.communicate() == (f"{output}\n", "")
    assert process.returncode == 0


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_cannot_be_written_is_an_error(unbuffered: str) -> None:
    with Path("/dev/full").open("w") as full:
        process = start("print('output')", stdout=full, PYTHONUNBUFFERED=unbuffered)
    assert process.communicate()[1] == "error: No space left on device\n"
    assert process.returncode == 1


def test_a_mistake_of_the_user_is_one_line_and_exit_code_1() -> None:
    assert run("raise errors.UserError('lr: is missing')") == (1, "error: lr: is missing\n")


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), 'data/x')", "data/x: No space left on device"),
        ("raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))", "No space left on device"),
        ("open('/nowhere/x')", "/nowhere/x: No such file or directory"),
    ],
)
def test_a_failing_disk_is_one_line_and_exit_code_1(body: str, sentence: str) -> None:
    assert run(body) == (1, f"error: {sentence}\n")


SMALLER = "use a smaller batch_size or model"
CPU = "set runtime.device to cpu in params.yaml"


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ("CUDA out of memory. Tried to allocate 2 GiB.", f"out of memory ({{}}); {SMALLER}, or {CPU}"),
        ("MPS backend out of memory (MPS allocated: 1 GB)", f"out of memory ({{}}); {SMALLER}, or {CPU}"),
        ("DefaultCPUAllocator: can't allocate memory: 9 bytes", f"out of memory ({{}}); {SMALLER}"),
        ("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED", f"the GPU failed ({{}}); {CPU}"),
    ],
)
def test_a_failing_device_is_one_line_and_exit_code_1(message: str, sentence: str) -> None:
    assert run(f"raise RuntimeError({message!r})") == (1, f"error: {sentence.format(message.rstrip('.'))}\n")


def test_a_failed_allocation_by_numpy_or_torch_is_one_line() -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))"
    for library, call in (("numpy", "numpy.ones(1 << 40)"), ("torch", "torch.ones(1 << 40)")):
        code, errors = run(f"import {library}; {limit}; {call}")
        assert code == 1
        assert re.fullmatch(r"error: out of memory \(.+\); use a smaller batch_size or model\n", errors)


@pytest.mark.parametrize(
    "body", ["1 / 0", "raise RuntimeError('CUDA error: device-side assert')", "raise OSError('a bug without an errno')"]
)
def test_a_bug_is_a_traceback_and_exit_code_1(body: str) -> None:
    code, errors = run(body)
    assert code == 1
    assert errors.startswith("Traceback")
    assert not errors.splitlines()[-1].startswith("error:")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_ends_a_stage_with_its_exit_code_and_without_a_traceback(number: signal.Signals, code: int) -> None:
    process = start_and_wait("time.sleep(60)")
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == code
    assert "Traceback" not in errors


@pytest.mark.parametrize(("second", "code", "saved"), [("SIGTERM", 143, "saved"), ("SIGINT", 143, "")])
def test_only_a_second_ctrl_c_stops_at_once(second: str, code: int, saved: str) -> None:
    kill = "os.kill(os.getpid(), process.signal.{})"
    body = f"with process.deferred_signals():\n        {kill.format('SIGTERM')}; {kill.format(second)}; print('saved')"
    process = start(body)
    output, _ = process.communicate()
    assert (process.returncode, output.strip()) == (code, saved)


def test_a_stage_under_nohup_ignores_a_closed_terminal() -> None:
    body = "os.kill(os.getpid(), 1)\n    with process.deferred_signals():\n        os.kill(os.getpid(), 1)"
    ignore = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    process = start(f"{body}\n    print('finished')", setup=ignore)
    assert process.communicate() == ("finished\n", "")
    assert process.returncode == 0


@pytest.mark.parametrize("arrives", [True, False])
def test_a_write_to_a_closed_terminal_does_not_fail_but_its_signal_ends_the_stage(arrives: bool) -> None:
    """The signal arrives after the write, or never, if the stage is not in the terminal's session."""
    other_end, terminal = os.openpty()
    write = "print('\u00e9' * 100_000, flush=True)\n    "
    process = start(f"sys.stdin.read()\n    {write * 2}{'os.kill(os.getpid(), 1)' if arrives else ''}", stdout=terminal)
    os.close(terminal)
    os.close(other_end)
    _, errors = process.communicate()
    assert (process.returncode, errors) == (129 if arrives else 0, "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_leaves_no_temporary_file(number: signal.Signals, tmp_path: Path) -> None:
    process = start(
        f"with files.replacing(files.Path({str(tmp_path)!r}, 'x')) as path:"
        " path.write_text('half'); print('ready', flush=True); time.sleep(60)"
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    process.communicate()
    assert names(tmp_path) == []


def test_a_full_disk_leaves_the_old_file_and_no_temporary_file(tmp_path: Path) -> None:
    """A limit on the size of files makes a write fail in the middle, like a full disk."""
    (tmp_path / "x").write_text("old")
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))"
    code, errors = run(f"{limit}; files.write_text(files.Path({str(tmp_path)!r}, 'x'), 'new' * 1000)")
    assert (code, errors) == (1, f"error: {tmp_path / 'x'}: File too large\n")
    assert names(tmp_path) == ["x"]
    assert (tmp_path / "x").read_text() == "old"


def test_signals_while_python_exits_print_nothing() -> None:
    """`uv run` forwards a SIGTERM to a process that has already received it."""
    for pause_s in (0.0, 0.0001, 0.0003, 0.001):
        process = start_and_wait("time.sleep(60)")
        while process.poll() is None:
            process.send_signal(signal.SIGTERM)
            time.sleep(pause_s)
        assert (process.returncode, process.communicate()) == (143, ("", ""))
