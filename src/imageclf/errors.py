"""How a stage ends: a user's mistake gets one sentence, a signal its exit code, a bug its traceback.

DVC looks at the exit code alone, so anything but a finished stage must be non-zero.
"""

import os
import re
import signal
import stat
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

from imageclf.detached import reattach

WATCH_S = 0.5
"""Seconds between two checks that DVC is still running."""


class UserError(Exception):
    """Something that the person at the keyboard can mend; the message names it and the way out."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, up to 200 characters and no period; its type if it has none."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return textwrap.shorten(line, 200, placeholder=" ...").rstrip(".")


def _device_failure(error: BaseException) -> str | None:
    """Return the sentence for a device that is out of memory, or whose libraries fail; None for any other error.

    By the message: torch is not imported for this, and only some of these errors have a type of their own.
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
    signal.signal(signum, signal.SIG_IGN)  # a second one would print a traceback while Python ends
    if signum == signal.SIGHUP:
        _drop_terminal()
    sys.exit(128 + signum)


def _drop_terminal() -> None:
    """Discard output that goes to a terminal: every write to a closed one fails, and there is a state to save."""
    null = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        with suppress(OSError):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                os.dup2(null, descriptor)
    os.close(null)


def _end_on(signum: signal.Signals, handler: Callable[[int, FrameType | None], object]) -> Any:
    """Let `handler` handle a signal, unless it is a SIGHUP that `nohup` told us to ignore; returns the one before."""
    before = signal.getsignal(signum)
    if signum != signal.SIGHUP or before != signal.SIG_IGN:
        signal.signal(signum, handler)
    return before


class Deferred:
    """A signal that waits for a good moment."""

    signum: int | None = None

    def __call__(self, signum: int, _frame: FrameType | None) -> None:
        """Keep the first signal. Only a second Ctrl-C ends at once: a second SIGTERM may come from `_stop_with`."""
        if signum == signal.SIGHUP:
            _drop_terminal()
        if self.signum is None:
            self.signum = signum
        elif signum == signal.SIGINT:
            self.leave()

    def leave(self) -> None:
        """End as the signal asks; nothing if there was none."""
        if self.signum == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signum is not None:
            _terminate(self.signum, None)


@contextmanager
def deferred() -> Iterator[Deferred]:
    """Within, the first Ctrl-C, SIGTERM or SIGHUP only sets `signum`: save, then `leave`. At the end it leaves."""
    kept = Deferred()
    before = {signum: _end_on(signum, kept) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield kept
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    kept.leave()


def _stop_with(parent: int) -> None:
    """Stop as if by SIGTERM when `parent` has ended: the next `dvc repro` writes to the same outputs."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_S)
        _say("DVC has ended; stopping")
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _say(sentence: str) -> None:
    with suppress(OSError):  # the terminal may be closed
        print(sentence, file=sys.stderr, flush=True)


def run(main: Callable[[], None]) -> None:
    """Run a stage's `main`; exit 1 on a `UserError` or a failing disk, 130, 143 or 129 on Ctrl-C, SIGTERM or SIGHUP.

    A stage that DVC runs stops when DVC ends. One that succeeded exits at once: taking torch down takes a second.
    """
    dvc = os.getppid() if "DVC_ROOT" in os.environ else None
    _end_on(signal.SIGTERM, _terminate)
    _end_on(signal.SIGHUP, _terminate)
    if dvc is not None:
        _stop_with(dvc)
    try:
        main()
        sys.stdout.flush()
        sys.stderr.flush()
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _say("interrupted")
        sys.exit(130)
    except (RuntimeError, MemoryError) as error:
        if (sentence := _device_failure(error)) is None:
            raise
        sys.exit(f"error: {sentence}")
    except OSError as error:
        if error.errno is None:
            raise
        with suppress(OSError):
            sys.stdout.close()  # else Python tries once more at its end to write what cannot be, and exits with 120
        where = f"{error.filename}: " if error.filename else ""
        sys.exit(f"error: {where}{error.strerror}")
    finally:
        if dvc is not None and os.getppid() != dvc:
            _tidy_git()
    os._exit(0)


def _tidy_git() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # `_stop_with` may still send one
    if branch := reattach():
        _say(f"DVC was killed and had left git on a detached HEAD; git is on branch {branch} again")
