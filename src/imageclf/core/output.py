"""The output of a stage, whose terminal may close while it runs."""

import errno
import io
import os
import stat
import sys
from contextlib import suppress
from typing import Any


def set_up() -> None:
    """Let standard output accept a class name that it cannot encode, and a terminal that closes."""
    if not isinstance(sys.stdout, io.TextIOWrapper):
        return
    if stat.S_ISCHR(os.fstat(sys.stdout.fileno()).st_mode):
        terminal = io.BufferedWriter(_Terminal(sys.stdout.fileno(), "w", closefd=False))
        sys.stdout = io.TextIOWrapper(terminal, sys.stdout.encoding, line_buffering=True)
    sys.stdout.reconfigure(errors="backslashreplace")


class _Terminal(io.FileIO):
    """Standard output on a terminal. A closed terminal is dropped, because its SIGHUP may arrive after a failed write.

    Otherwise that write would end the stage as one that failed, not as one that was killed.
    """

    def write(self, data: Any, /) -> int:
        """Write the data, or discard them if the terminal is closed."""
        try:
            return super().write(data)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            drop_terminal()
            return memoryview(data).nbytes


def drop_terminal() -> None:
    """Discard output to a terminal: writes to a closed terminal fail, and the state must still be saved."""
    null = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        with suppress(OSError):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                os.dup2(null, descriptor)
    os.close(null)


def print_error(sentence: str) -> None:
    """Print a sentence to stderr, if that is possible."""
    with suppress(OSError):  # the terminal may be closed
        print(sentence, file=sys.stderr, flush=True)
