"""Compare recipes, or any experiments, over their seeds: a table, a plot, and a sentence for each pair.

    uv run python -m imageclf.compare fc500 keras512

A name stands for all experiments `<name>-s<seed>` on this commit, or for one experiment of that name. Writes
metrics/comparison.md, .json and .png, which git sees and DVC does not own: commit one worth keeping, under a name of
its own (`--out docs/vgg`). The same goes to MLflow as a run `compare: ...`.
"""

import argparse
from pathlib import Path

from imageclf import comparison, errors, experiments, paths, publication, recipes, yaml12
from imageclf.comparison import Comparison
from imageclf.errors import UserError
from imageclf.significance import Reference

OUT = paths.METRICS / "comparison"


def read_references(path: Path = recipes.RECIPES) -> dict[str, Reference]:
    """The `references` of recipes.yaml, which are in percent."""
    return {name: _reference(**values) for name, values in yaml12.read(path)["references"].items()}


def _reference(mean: float, std: float = 0.0, n: int = 1) -> Reference:
    return Reference(mean / 100, std / 100, n)


def parse_reference(text: str) -> Reference:
    """`98.01,0.08,3` or `98.01`, in percent; raises `UserError` for anything else."""
    try:
        mean, *rest = (float(part) for part in text.split(","))
        std, n = rest or (0.0, 1.0)
    except ValueError:
        raise UserError(f"--reference {text}: should be a mean, or mean,std,n, in percent") from None
    return _reference(mean, std, int(n))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Compare recipes or experiments over their seeds.")
    parser.add_argument("name", nargs="+", help="a recipe, or an experiment")
    parser.add_argument("--rev", default="HEAD", help="the commit that the experiments were started from")
    parser.add_argument("--out", type=Path, default=OUT, help=f"write OUT.md, OUT.json, OUT.png (default {OUT})")
    parser.add_argument("--reference", metavar="MEAN,STD,N", help="in percent, for all; default: recipes.yaml's")
    parser.add_argument(
        "--pair",
        nargs=2,
        action="append",
        metavar=("A", "B"),
        help="test these two; again for more (default: every two)",
    )
    parser.add_argument("--title", help="of the page (default: the names)")
    arguments = parser.parse_args()
    groups = comparison.groups(arguments.name, experiments.show(arguments.rev))
    chosen = [(first, second) for first, second in arguments.pair or ()]
    if strangers := {name for pair in chosen for name in pair} - {group.name for group in groups}:
        raise UserError(f"--pair: {', '.join(sorted(strangers))} is not among the names to compare")
    references = read_references()
    if arguments.reference:
        references = dict.fromkeys((group.name for group in groups), parse_reference(arguments.reference))
    title, commit = arguments.title or ", ".join(group.name for group in groups), experiments.commit(arguments.rev)
    publication.publish(Comparison(title, commit, groups, comparison.pairs(groups, chosen), references), arguments.out)


if __name__ == "__main__":
    errors.run(main)
