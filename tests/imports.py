"""Which project files a module really imports, read from its source: what `dvc.yaml` is held against."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src"


def module_file(name: str) -> Path | None:
    """The file of a module of ours; None for anybody else's."""
    stem = (SOURCE if name.partition(".")[0] == "imageclf" else ROOT) / name.replace(".", "/")
    return next((path for path in (stem.with_suffix(".py"), stem / "__init__.py") if path.is_file()), None)


def imported_names(path: Path) -> set[str]:
    """Every dotted name that a file imports, inside functions too, with the packages on the way.

    What stands under `if TYPE_CHECKING` is never run and does not count.
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
    """The project files that running `path` can import, itself and its package's `__init__` included.

    Those in `stop` are left out, with what only they import.
    """
    reached: set[Path] = set()
    waiting = [path, path.parent / "__init__.py"]
    while waiting:
        here = waiting.pop()
        if here not in reached and here not in (stop or set()):
            reached.add(here)
            waiting += [file for name in imported_names(here) if (file := module_file(name))]
    return reached
