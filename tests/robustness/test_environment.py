"""Tests that a stage in another Python than the project's prints one error with the remedy."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from imports import ROOT, imported_names

import stages

INIT = ROOT / "stages" / "__init__.py"


def run_with(tmp_path: Path, sitecustomize: str, program: str) -> subprocess.CompletedProcess[str]:
    """Run a Python program in the project's root, in an interpreter that `sitecustomize` has changed."""
    (tmp_path / "sitecustomize.py").write_text(sitecustomize)
    environment = {"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


HIDE = """
import importlib.abc, sys

class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == {name!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hidden())
"""


@pytest.mark.parametrize(
    ("stage", "package"),
    [("download", "platformdirs"), ("preprocess", "numpy"), ("train", "numpy"), ("evaluate", "pydantic")],
)
def test_a_package_that_is_not_installed_is_one_error(stage: str, package: str, tmp_path: Path) -> None:
    program = f"import runpy; runpy.run_module('stages.{stage}', run_name='__main__')"
    done = run_with(tmp_path, HIDE.format(name=package), program)
    assert done.returncode == 1
    assert done.stderr == f"error: {sys.executable} has no module {package}; {stages.REMEDY}\n"
    assert "uv run dvc" in stages.REMEDY


def test_a_package_that_a_stage_imports_late_is_one_error(tmp_path: Path) -> None:
    program = "import stages; from imageclf.core import process; process.run(lambda: __import__('torch'))"
    done = run_with(tmp_path, HIDE.format(name="torch"), program)
    assert done.returncode == 1
    assert done.stderr == f"error: {sys.executable} has no module torch; {stages.REMEDY}\n"


@pytest.mark.parametrize("module", ["imageclf.no_such_module", "stages.no_such_stage", "_curses_panel.x"])
def test_a_missing_module_of_the_project_is_a_traceback(module: str, tmp_path: Path) -> None:
    done = run_with(tmp_path, "", f"import stages, {module}")
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")


def test_an_old_python_is_one_error(tmp_path: Path) -> None:
    done = run_with(tmp_path, "import sys; sys.version_info = (3, 10, 4)", "import stages.train")
    assert done.returncode == 1
    assert done.stderr == f"error: {sys.executable} is Python 3.10, and 3.11 or later is needed; {stages.REMEDY}\n"


def test_the_oldest_python_is_the_declared_one() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert declared == ">=" + ".".join(map(str, stages.PYTHON))


def test_the_package_stages_runs_in_old_python_with_the_standard_library_only() -> None:
    ast.parse(INIT.read_text(), feature_version=(3, 8))
    assert not re.search(r"^\s*(match|case) |\bexcept\*", INIT.read_text(), flags=re.MULTILINE)
    assert {name.split(".")[0] for name in imported_names(INIT)} <= {"sys", "pathlib", "types", "typing"}
