"""Run a study and compare its pairs: the command `imageclf study`.

    uv run imageclf study permuted --seeds 3

A study is a section in recipes.yaml: pairs of recipes, a title and labels. The command runs its recipes and writes
metrics/<study>.md, .json and .png, which git tracks if you add them and DVC does not.
"""

import argparse
from pathlib import Path

from imageclf.core import paths
from imageclf.study import comparison, experiments, launch, publication, recipes


def main(arguments: list[str] | None = None, prog: str | None = None) -> None:
    """Run the command `imageclf study`."""
    parser = argparse.ArgumentParser(prog, description="Run a study from recipes.yaml and compare its pairs.")
    parser.add_argument("study", help="name in recipes.yaml")
    launch.add_options(parser, seeds=3)
    parser.add_argument("--out", type=Path, help="write OUT.md, OUT.json, OUT.png (default metrics/<study>)")
    given = parser.parse_args(arguments)
    studies = recipes.read_studies()
    recipes.choose([given.study], studies, "study")
    study = studies[given.study]
    names = [name for pair in study.pairs for name in pair]
    launch.run(recipes.plan(names, given.seeds, recipes.parse_changes(given.set)), given.jobs)
    groups = comparison.groups(names, experiments.show())
    compared = comparison.Comparison(
        title=study.title,
        commit=experiments.commit("HEAD"),
        groups=groups,
        pairs=comparison.pairs(groups, study.pairs),
        differences=comparison.differences(groups, recipes.read()),
        labels=study.labels,
        note=study.note,
    )
    publication.publish(compared, given.out or paths.METRICS / given.study)
