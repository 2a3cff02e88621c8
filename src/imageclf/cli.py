"""The command `imageclf`: recipes, comparisons and studies. The pipeline itself needs only `dvc`."""

import argparse
import sys
from importlib import import_module

from imageclf.core import process

COMMANDS = {
    "recipes": ("launch", "run recipes from recipes.yaml as DVC experiments, several seeds of each"),
    "compare": ("compare", "compare recipes or experiments over their seeds: a table, a plot, a sentence per pair"),
    "study": ("study", "run the recipes of a study from recipes.yaml, and compare them in pairs"),
}
"""The module in `imageclf.study` that has the command's `main`, and a description, by command."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command that the first argument names; the default are the arguments of the process."""
    given = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(
        "imageclf", description="Run and compare recipes. The pipeline itself needs only dvc."
    )
    commands = parser.add_subparsers(title="commands", metavar="command", dest="command", required=True)
    for name, (_module, description) in COMMANDS.items():
        commands.add_parser(name, help=description, add_help=False)
    name = parser.parse_args(given[:1]).command
    import_module(f"imageclf.study.{COMMANDS[name][0]}").main(given[1:], prog=f"imageclf {name}")


def run() -> None:
    """Run `main` with the exit codes of a stage; the entry point of the installed command."""
    process.run(main)
