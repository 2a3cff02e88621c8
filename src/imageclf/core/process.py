"""Run a stage to its end: one sentence for a user's mistake, an exit code for a signal, a traceback for a bug.

DVC reads only the exit code, so it must be non-zero for every stage that did not finish.
"""

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

from imageclf.core import output
from imageclf.core.detached import reattach
from imageclf.core.errors import UserError, first_line

PARENT = "IMAGECLF_PARENT"
"""Variable with the id of the process that has started this one, and with which it ends."""
PR_SET_PDEATHSIG = 1
"""The number of this option in <sys/prctl.h>."""
WATCH_S = 0.5
"""Seconds between two checks that DVC is still running."""
GRACE_S = 5.0
"""Seconds that a stage stopped by SIGTERM or SIGHUP waits for DVC to end too: signals to a group arrive one by one."""


class _Terminated(SystemExit):
    """Exit after SIGTERM or SIGHUP."""


def _device_failure(error: BaseException) -> str | None:
    """Return the message for a device that is out of memory, or whose libraries fail; None for any other error.

    The message decides, because torch may not be imported, and only some of these errors have their own type.
    """
    if isinstance(error, MemoryError) or re.search("out of memory|can't allocate memory|ALLOC_FAILED", str(error)):
        remedy = "use a smaller batch_size or model"
        if "can't allocate memory" not in str(error) and not isinstance(error, MemoryError):
            remedy += ", or set runtime.device to cpu in params.yaml"
        return f"out of memory ({first_line(error)}); {remedy}"
    if re.search("CUDNN_STATUS|CUBLAS_STATUS|no kernel image", str(error)):
        return f"the GPU failed ({first_line(error)}); set runtime.device to cpu in params.yaml"
    return None


def _terminate(signum: int, _frame: FrameType | None) -> NoReturn:
    signal.signal(signum, signal.SIG_IGN)  # another signal while Python exits would print a traceback
    if signum == signal.SIGHUP:
        output.drop_terminal()
    raise _Terminated(128 + signum)


def _set_handler(signum: signal.Signals, handler: Callable[[int, FrameType | None], object]) -> Any:
    """Set the handler of a signal, except of a SIGHUP that `nohup` ignores; return the previous handler."""
    before = signal.getsignal(signum)
    if signum != signal.SIGHUP or before != signal.SIG_IGN:
        signal.signal(signum, handler)
    return before


stopping = threading.Event()
"""Set by the first deferred signal. A thread that waits for a server gives up then, with a `UserError`."""


class DeferredSignals:
    """The first signal that arrived while signals are deferred."""

    received: int | None = None

    def __call__(self, signum: int, _frame: FrameType | None) -> None:
        """Keep the first signal. A later Ctrl-C stops at once; a later SIGTERM does not: it may come from the watch."""
        if signum == signal.SIGHUP:
            output.drop_terminal()
        if self.received is None:
            self.received = signum
            stopping.set()
        elif signum == signal.SIGINT:
            self.stop_if_received()

    def stop_if_received(self) -> None:
        """Stop if a signal arrived."""
        if self.received == signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is not None:
            _terminate(self.received, None)


@contextmanager
def deferred_signals() -> Iterator[DeferredSignals]:
    """Defer Ctrl-C, SIGTERM and SIGHUP until the code inside calls `stop_if_received`, or ends."""
    signals = DeferredSignals()
    before = {signum: _set_handler(signum, signals) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield signals
    except UserError:
        signals.stop_if_received()  # a thread gave up because of the signal
        raise
    finally:
        for signum, handler in before.items():
            # A closed terminal sends SIGHUP twice: the second one must not interrupt the end of the stage.
            stops = signals.received is not None and signum != signal.SIGINT
            signal.signal(signum, signal.SIG_IGN if stops else handler)
    signals.stop_if_received()


def end_with_parent(signum: int = signal.SIGKILL) -> bool:
    """Let Linux send this process a signal when the one that `PARENT` names ends; return False if it names none."""
    parent = os.environ.pop(PARENT, None)
    if parent is not None and sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signum)
        if os.getppid() != int(parent):  # it has ended before this call
            os.kill(os.getpid(), signum)
    return parent is not None


def _stop_when_parent_ends(parent: int) -> None:
    """Stop as if by SIGTERM when `parent` has ended: the next `dvc repro` writes to the same outputs."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_S)
        output.print_error("DVC has ended; stopping")
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _exit_after(error: OSError) -> NoReturn:
    """Exit 1 with the message of an error; exit 141 without one if the reader of the output, such as `head`, ended."""
    with suppress(OSError):
        sys.stdout.close()  # otherwise Python flushes it again on exit, fails, and exits with 120
    if isinstance(error, BrokenPipeError):
        sys.exit(128 + signal.SIGPIPE)
    where = f"{error.filename}: " if error.filename else ""
    sys.exit(f"error: {where}{error.strerror}")


def run(main: Callable[[], None]) -> None:
    """Run a stage's `main`; exit 1 on a `UserError` or a failing disk, 130, 143 or 129 on Ctrl-C, SIGTERM or SIGHUP.

    A stage that DVC runs stops when DVC ends, and one with the variable `PARENT` is killed when that process ends.
    After success, the process exits at once: unloading torch takes a second.
    """
    output.set_up()
    dvc = None if end_with_parent() or "DVC_ROOT" not in os.environ else os.getppid()
    _set_handler(signal.SIGTERM, _terminate)
    _set_handler(signal.SIGHUP, _terminate)
    if dvc is not None:
        _stop_when_parent_ends(dvc)
    try:
        main()
        sys.stdout.flush()
        sys.stderr.flush()
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        output.print_error("interrupted")
        sys.exit(130)
    except (RuntimeError, MemoryError) as error:
        if (sentence := _device_failure(error)) is None:
            raise
        sys.exit(f"error: {sentence}")
    except OSError as error:
        if error.errno is None:
            raise
        _exit_after(error)
    finally:
        if dvc is not None:
            _reattach(dvc, terminated=isinstance(sys.exception(), _Terminated))
    os._exit(0)


def _reattach(dvc: int, *, terminated: bool) -> None:
    """Put git back on its branch if DVC has ended; if this stage was terminated, wait for it for `GRACE_S` seconds."""
    deadline = time.monotonic() + GRACE_S * terminated
    while os.getppid() == dvc:
        if time.monotonic() >= deadline:
            return
        time.sleep(0.05)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the parent watch may still send one
    if branch := reattach():
        output.print_error(f"DVC was killed and had left git on a detached HEAD; git is on branch {branch} again")
