"""Find the project files that a module imports, from its source. The tests compare them with `dvc.yaml`."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src"


def module_file(name: str) -> Path | None:
    """Return the file of a module of this project; None for other modules."""
    stem = (SOURCE if name.partition(".")[0] == "imageclf" else ROOT) / name.replace(".", "/")
    return next((path for path in (stem.with_suffix(".py"), stem / "__init__.py") if path.is_file()), None)


def imported_names(path: Path) -> set[str]:
    """Return the dotted names that a file imports, also inside functions, and the names of their packages.

    Imports under `if TYPE_CHECKING` are never run, and are ignored.
    """
    names: set[str] = set()
    nodes: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{path}: relative import"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        nodes.extend(ast.iter_child_nodes(node))
    return {name.rsplit(".", cut)[0] for name in names for cut in range(name.count(".") + 1)}


def imported_files(path: Path, stop: set[Path] | None = None) -> set[Path]:
    """Return the project files that running `path` can import, with itself and the `__init__` of its package.

    Files in `stop` are left out, with the files that only they import.
    """
    reached: set[Path] = set()
    waiting = [path, path.parent / "__init__.py"]
    while waiting:
        here = waiting.pop()
        if here not in reached and here not in (stop or set()):
            reached.add(here)
            waiting += [file for name in imported_names(here) if (file := module_file(name))]
    return reached
