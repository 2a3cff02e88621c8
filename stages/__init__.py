"""The stages, each run as `python -m stages.<name>` from the project's root.

DVC runs queued and `--temp` experiments in a copy of the project. The installed package is a link to the workspace,
which may have changed since, so the library of this checkout is put first on the path.

DVC runs the first `python` on PATH. If it is not the project's Python, an error says so. This file must therefore be
valid Python 3.8, and import only the standard library.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

PYTHON = (3, 11)
REMEDY = "start DVC in the project's environment: `uv run dvc ...`, or run `source .venv/bin/activate` first"

if sys.version_info < PYTHON:
    found, needed = (".".join(map(str, version[:2])) for version in (sys.version_info, PYTHON))
    sys.exit(f"error: {sys.executable} is Python {found}, and {needed} or later is needed; {REMEDY}")


def _report(kind: "type[BaseException]", error: BaseException, traceback: "TracebackType | None") -> None:
    """Print one sentence for a package that is not installed, and a traceback for any other error."""
    module = getattr(error, "name", None) or ""
    package = module.split(".")[0]
    if issubclass(kind, ModuleNotFoundError) and package not in {"", "imageclf", "stages", *sys.stdlib_module_names}:
        print(f"error: {sys.executable} has no module {module}; {REMEDY}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


sys.excepthook = _report
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
