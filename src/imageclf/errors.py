"""How a stage ends: a user's mistake gets one sentence, a signal its exit code, a bug its traceback.

DVC looks at the exit code alone, so anything but a finished stage must be non-zero.
"""

import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn


class UserError(Exception):
    """Something that the person at the keyboard can mend; the message names it and the way out."""


def _terminate(signum: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(128 + signum)


def run(main: Callable[[], None]) -> None:
    """Run a stage's `main`; exit 1 on a `UserError` or a failing disk, 130 on Ctrl-C, 143 on SIGTERM."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        if error.errno is None:
            raise
        where = f"{error.filename}: " if error.filename else ""
        sys.exit(f"error: {where}{error.strerror}")
