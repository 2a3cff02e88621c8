"""How a stage ends is all that DVC and the person see of a failure: exit code and last words of real processes."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import names
from imports import SOURCE

HEAD = f"""
import errno, os, sys, time
sys.path.insert(0, {str(SOURCE)!r})
from imageclf import errors, files

def main():
"""


def start(body: str) -> subprocess.Popen[str]:
    """A process that runs a stage whose `main` is `body`."""
    program = f"{HEAD}    {body}\n\nerrors.run(main)\n"
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def end(body: str) -> tuple[int, str]:
    """The exit code of such a process, and what it said on stderr."""
    process = start(body)
    _, said = process.communicate()
    return process.returncode, said


def test_a_finished_stage_exits_0_and_says_nothing() -> None:
    assert end("pass") == (0, "")


def test_what_a_finished_stage_said_is_not_lost() -> None:
    process = start("sys.stdout.write('said'); sys.stderr.write('told')")
    assert process.communicate() == ("said", "told")
    assert process.returncode == 0


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_cannot_be_written_is_no_success(unbuffered: str) -> None:
    with Path("/dev/full").open("w") as full:
        program = f"{HEAD}    print('said')\n\nerrors.run(main)\n"
        process = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (process.returncode, process.stderr) == (1, "error: No space left on device\n")


def test_a_users_mistake_is_one_line_and_1() -> None:
    assert end("raise errors.UserError('lr: is missing')") == (1, "error: lr: is missing\n")


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), 'data/x')", "data/x: No space left on device"),
        ("raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))", "No space left on device"),
        ("open('/nowhere/x')", "/nowhere/x: No such file or directory"),
    ],
)
def test_a_failing_disk_is_one_line_and_1(body: str, sentence: str) -> None:
    assert end(body) == (1, f"error: {sentence}\n")


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
def test_a_device_that_fails_is_one_line_and_1(message: str, sentence: str) -> None:
    assert end(f"raise RuntimeError({message!r})") == (1, f"error: {sentence.format(message.rstrip('.'))}\n")


def test_the_memory_that_torch_and_numpy_are_refused_is_one_line() -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))"
    for library, call in (("numpy", "numpy.ones(1 << 40)"), ("torch", "torch.ones(1 << 40)")):
        code, said = end(f"import {library}; {limit}; {call}")
        assert code == 1
        assert re.fullmatch(r"error: out of memory \(.+\); use a smaller batch_size or model\n", said)


@pytest.mark.parametrize(
    "body", ["1 / 0", "raise RuntimeError('CUDA error: device-side assert')", "raise OSError('a bug without an errno')"]
)
def test_a_bug_is_a_traceback_and_1(body: str) -> None:
    code, said = end(body)
    assert code == 1
    assert said.startswith("Traceback")
    assert not said.splitlines()[-1].startswith("error:")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_ends_it_with_the_signals_code_and_without_a_traceback(number: signal.Signals, code: int) -> None:
    process = start("print('ready', flush=True); time.sleep(60)")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, said = process.communicate()
    assert process.returncode == code
    assert "Traceback" not in said


@pytest.mark.parametrize(("second", "code", "saved"), [("SIGTERM", 143, "saved"), ("SIGINT", 143, "")])
def test_only_a_second_ctrl_c_does_not_wait(second: str, code: int, saved: str) -> None:
    kill = "os.kill(os.getpid(), errors.signal.{})"
    body = f"with errors.deferred():\n        {kill.format('SIGTERM')}; {kill.format(second)}; print('saved')"
    process = start(body)
    said, _ = process.communicate()
    assert (process.returncode, said.strip()) == (code, saved)


def test_nohup_lets_a_stage_outlive_its_terminal() -> None:
    body = "os.kill(os.getpid(), 1)\n    with errors.deferred():\n        os.kill(os.getpid(), 1)"
    ignore = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    program = f"{ignore}{HEAD}    {body}\n    print('lived')\n\nerrors.run(main)\n"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "lived\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_leaves_no_half_written_file(number: signal.Signals, tmp_path: Path) -> None:
    process = start(
        f"with files.replacing(files.Path({str(tmp_path)!r}, 'x')) as path:"
        " path.write_text('half'); print('ready', flush=True); time.sleep(60)"
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    process.communicate()
    assert names(tmp_path) == []


def test_a_full_disk_leaves_the_old_file_and_no_half_of_the_new(tmp_path: Path) -> None:
    """A limit on the size of files, which the kernel answers like a full disk: in the middle of a write."""
    (tmp_path / "x").write_text("old")
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))"
    code, said = end(f"{limit}; files.write_text(files.Path({str(tmp_path)!r}, 'x'), 'new' * 1000)")
    assert (code, said) == (1, f"error: {tmp_path / 'x'}: File too large\n")
    assert names(tmp_path) == ["x"]
    assert (tmp_path / "x").read_text() == "old"


def test_signals_while_python_ends_print_nothing() -> None:
    """`uv run` passes a SIGTERM on to a process that has had it already."""
    code = "from imageclf import errors; errors.run(lambda: (print('up', flush=True), __import__('time').sleep(60)))"
    for pause_s in (0.0, 0.0001, 0.0003, 0.001):
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=SOURCE
        )
        assert process.stdout is not None
        process.stdout.readline()
        while process.poll() is None:
            process.send_signal(signal.SIGTERM)
            time.sleep(pause_s)
        assert (process.returncode, process.communicate()) == (143, (b"", b""))
