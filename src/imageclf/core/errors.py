"""The error for a problem that the user can fix."""

import textwrap


class UserError(Exception):
    """An error that the user can fix. The message names the problem and the remedy; it is shown without a traceback."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, up to 200 characters and no period; its type if it has none."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return textwrap.shorten(line, 200, placeholder=" ...").rstrip(".")
