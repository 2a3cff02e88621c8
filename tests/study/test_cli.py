"""Tests of the command `imageclf`, and of the commands `python -m imageclf.recipes` and `imageclf.compare`."""

import subprocess
import sys
from pathlib import Path

import pytest
from imports import ROOT

from imageclf import cli

IMAGECLF = str(Path(sys.executable).parent / "imageclf")
RECIPES = [[IMAGECLF, "recipes"], [sys.executable, "-m", "imageclf.recipes"]]
COMPARE = [[IMAGECLF, "compare"], [sys.executable, "-m", "imageclf.compare"]]


def run(*command: str, code: int = 0, folder: Path = ROOT) -> str:
    """Run a command and return what it printed."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def test_the_help_lists_every_command_on_a_line_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    lines = [line.split(maxsplit=1) for line in run(IMAGECLF, "--help").splitlines()]
    listed = {line[0]: line[1] for line in lines if len(line) == 2 and line[0] in cli.COMMANDS}
    assert listed == {name: description for name, (_module, description) in cli.COMMANDS.items()}


@pytest.mark.parametrize("arguments", [[], ["recipe"], ["permuted"]])
def test_an_unknown_or_missing_command_is_refused(arguments: list[str]) -> None:
    printed = run(IMAGECLF, *arguments, code=2)
    assert printed.startswith("usage: imageclf ")
    assert "Traceback" not in printed
    assert "recipes" in printed or not arguments


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_each_command_has_its_own_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main([command, "--help"])
    assert capsys.readouterr().out.startswith(f"usage: imageclf {command} ")


@pytest.mark.parametrize("command", RECIPES)
def test_recipes_in_both_forms(command: list[str]) -> None:
    assert "\nkeras512 dataset=mnist normalize=unit" in run(*command, "--list")
    assert run(*command, "fc50", code=1) == "error: 'fc50' is not a recipe in recipes.yaml; did you mean 'fc500'?\n"


@pytest.mark.parametrize("command", COMPARE)
def test_compare_in_both_forms(command: list[str], tmp_path: Path) -> None:
    missing = tmp_path / "none"
    assert run(*command, "--redraw", str(missing), code=1).startswith(f"error: {missing}.json does not exist; ")
    assert "name a recipe or an experiment, or use --redraw OUT" in run(*command, code=2)


def test_study_is_a_command() -> None:
    assert run(IMAGECLF, "study", "permutd", code=1) == (
        "error: 'permutd' is not a study in recipes.yaml; did you mean 'permuted'?\n"
    )
