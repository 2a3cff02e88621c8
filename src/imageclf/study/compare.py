"""Compare recipes, or any experiments, over their seeds: the command `imageclf compare`.

    uv run imageclf compare fc500 keras512

A name stands for all experiments `<name>-s<seed>` on this commit, or for the experiment of that name. The command
writes a table, a plot and a sentence for each pair to metrics/comparison.md, .json and .png, which git tracks if you
add them and DVC does not. To keep a comparison, give it another name, for example with `--out docs/vgg`. MLflow gets
the same files in a run `compare: ...`. `--redraw docs/vgg` writes docs/vgg.md and .png again from docs/vgg.json.
"""

import argparse
from pathlib import Path

from imageclf.core import paths
from imageclf.core.errors import UserError
from imageclf.study import comparison, experiments, publication, recipes
from imageclf.study.significance import Reference

OUT = paths.METRICS / "comparison"


def parse_reference(text: str) -> Reference:
    """Parse `98.01,0.08,3` or `98.01`, in percent; raise `UserError` for anything else."""
    try:
        mean, *rest = (float(part) for part in text.split(","))
        std, n = rest or (0.0, 1.0)
    except ValueError:
        raise UserError(f"--reference {text}: should be a mean, or mean,std,n, in percent") from None
    return recipes.reference(mean, std, int(n))


def _parser(prog: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog, description="Compare recipes or experiments over their seeds.")
    add = parser.add_argument
    add("name", nargs="*", help="a recipe or an experiment")
    add("--rev", default="HEAD", help="the commit that the experiments were started from (default HEAD)")
    add("--out", type=Path, default=OUT, help=f"write OUT.md, OUT.json, OUT.png (default {OUT})")
    add("--reference", metavar="MEAN,STD,N", help="reference of all names, in percent (default: those in recipes.yaml)")
    add("--pair", nargs=2, action="append", default=[], metavar=("A", "B"), help="a pair to test (default: all pairs)")
    add("--title", help="title of the page (default: the names)")
    add("--not-measured", action="append", default=[], metavar="RECIPE", help="a recipe to list as not yet measured")
    add("--redraw", type=Path, metavar="OUT", help="only write OUT.md and OUT.png again, from OUT.json")
    return parser


def main(arguments: list[str] | None = None, prog: str | None = None) -> None:
    """Run the command `imageclf compare`."""
    parser = _parser(prog)
    given = parser.parse_args(arguments)
    if bool(given.name) == bool(given.redraw):
        parser.error("name a recipe or an experiment, or use --redraw OUT")
    if given.redraw:
        publication.redraw(given.redraw)
        return
    book = recipes.read()
    groups = comparison.groups(given.name, experiments.show(given.rev))
    names = [group.name for group in groups]
    if unknown := {name for pair in given.pair for name in pair} - set(names):
        raise UserError(f"--pair: {', '.join(sorted(unknown))} is not among the names to compare")
    if measured := set(recipes.choose(given.not_measured, book)) & set(names):
        raise UserError(f"--not-measured: {', '.join(sorted(measured))} is among the names to compare")
    references = recipes.read_references()
    if given.reference:
        references |= dict.fromkeys(names, parse_reference(given.reference))
    compared = comparison.Comparison(
        title=given.title or ", ".join(names),
        commit=experiments.commit(given.rev),
        groups=groups,
        pairs=comparison.pairs(groups, given.pair),
        references=references,
        differences=comparison.differences(groups, book),
        not_measured=given.not_measured,
    )
    publication.publish(compared, given.out)
