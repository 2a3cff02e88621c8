"""The command `imageclf`: use a trained model, and compare recipes. The pipeline itself needs only `dvc`."""

import argparse
import sys
from importlib import import_module

from imageclf.core import process

COMMANDS = {
    "predict": ("usage.predict", "classify image files, and the images in folders"),
    "export": ("usage.export", "write a trained model as an ONNX or PyTorch program, and check its answers"),
    "demo": ("usage.demo", "open a page on which models classify what you draw, or a picture"),
    "sync": ("usage.sync", "complete the record in MLflow from DVC's files: one run per experiment"),
    "recipes": ("study.launch", "run recipes from recipes.yaml as DVC experiments, several seeds of each"),
    "compare": (
        "study.compare",
        "compare recipes or experiments over their seeds: table, plot, a sentence per pair",
    ),
    "study": ("study.study", "run the recipes of a study from recipes.yaml, and compare them in pairs"),
    "search": ("study.search", "search for the parameters with the best validation accuracy, with Optuna"),
}
"""The module in `imageclf` that has the command's `main`, and a description, by command."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command that the first argument names; the default are the arguments of the process."""
    given = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(
        "imageclf", description="Use a trained model, and compare recipes. The pipeline itself needs only dvc."
    )
    commands = parser.add_subparsers(title="commands", metavar="command", dest="command", required=True)
    for name, (_module, description) in COMMANDS.items():
        commands.add_parser(name, help=description, add_help=False)
    name = parser.parse_args(given[:1]).command
    import_module(f"imageclf.{COMMANDS[name][0]}").main(given[1:], prog=f"imageclf {name}")


def run() -> None:
    """Run `main` with the exit codes of a stage; the entry point of the installed command."""
    process.run(main)
