"""What permuted pixels do to a net, in one command: fully connected, convolutional and VGG, plain and permuted.

    uv run python -m imageclf.permuted --seeds 3

Every image is shuffled in the same way, so that no information is lost, only who is whose neighbour. A convolution
looks at neighbours and loses its edge; a fully connected net sees pixels in no order and does not care. Runs the
`study-*` recipes and writes metrics/permuted.md, .json and .png, which git sees and DVC does not own, as `compare`
does. The committed docs/permuted.* are this project's own results, written with `--out docs/permuted`.
"""

import argparse
from pathlib import Path

from imageclf import comparison, errors, experiments, paths, publication, recipes

NETS = ("study-mlp", "study-cnn", "study-vgg")
OUT = paths.METRICS / "permuted"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Study what permuted pixels do to three kinds of net.")
    parser.add_argument("--seeds", type=int, default=3, help="how many: seeds 0, 1, ... (default 3)")
    parser.add_argument("--jobs", type=int, default=1, help="experiments at a time (default 1)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a parameter in all")
    parser.add_argument("--out", type=Path, default=OUT, help=f"write OUT.md, OUT.json, OUT.png (default {OUT})")
    arguments = parser.parse_args()
    if arguments.seeds < 1 or arguments.jobs < 1:
        parser.error("--seeds and --jobs count from 1")
    twins = [(net, f"{net}-permuted") for net in NETS]
    names = [name for twin in twins for name in twin]
    recipes.run(names, arguments.seeds, arguments.jobs, recipes.parse_changes(arguments.set))
    groups = comparison.groups(names, experiments.show())
    pairs, commit = comparison.pairs(groups, twins), experiments.commit("HEAD")
    publication.publish(comparison.Comparison("Plain and permuted pixels", commit, groups, pairs), arguments.out)


if __name__ == "__main__":
    errors.run(main)
