"""How a stage ends: a user's mistake gets one sentence, a signal its exit code, a bug its traceback.

DVC looks at the exit code alone, so anything but a finished stage must be non-zero.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

WATCH_S = 0.5
"""Between two looks at whether DVC still lives."""


class UserError(Exception):
    """Something that the person at the keyboard can mend; the message names it and the way out."""


def _terminate(signum: int, _frame: FrameType | None) -> NoReturn:
    signal.signal(signum, signal.SIG_IGN)  # a second one would print a traceback while Python ends
    sys.exit(128 + signum)


class Deferred:
    """A signal that waits for a good moment."""

    signum: int | None = None

    def __call__(self, signum: int, _frame: FrameType | None) -> None:
        """The handler: keeps the first signal; a second one does not wait."""
        if self.signum is not None:
            self.leave()
        self.signum = signum

    def leave(self) -> None:
        """End as the signal asks; nothing if there was none."""
        if self.signum == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signum is not None:
            _terminate(self.signum, None)


@contextmanager
def deferred() -> Iterator[Deferred]:
    """Within, the first Ctrl-C or SIGTERM only sets `signum`: save, then `leave`. At the end it leaves by itself."""
    kept = Deferred()
    before = {signum: signal.signal(signum, kept) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield kept
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    kept.leave()


def _leave_with(parent: int) -> None:
    """Once `parent` is gone, end as if by SIGTERM: the next `dvc repro` writes to the same outputs."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_S)
        print("DVC is gone: leaving", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def run(main: Callable[[], None]) -> None:
    """Run a stage's `main`; exit 1 on a `UserError` or a failing disk, 130 on Ctrl-C, 143 on SIGTERM.

    Where DVC runs it, it ends with DVC. One that ended well leaves at once: taking torch down takes a second.
    """
    signal.signal(signal.SIGTERM, _terminate)
    if "DVC_ROOT" in os.environ:
        _leave_with(os.getppid())
    try:
        main()
        sys.stdout.flush()
        sys.stderr.flush()
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        if error.errno is None:
            raise
        with suppress(OSError):
            sys.stdout.close()  # else Python tries once more at its end to write what cannot be, and exits with 120
        where = f"{error.filename}: " if error.filename else ""
        sys.exit(f"error: {where}{error.strerror}")
    os._exit(0)
