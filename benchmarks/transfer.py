"""Measure what learned weights bring to a training with 20 photographs per class; ten minutes.

    OMP_NUM_THREADS=1 uv run --group transfer python -m benchmarks.transfer --jobs 3
    uv run --group transfer python -m benchmarks.transfer --redraw   # page and figure again, from docs/transfer.json

The photographs are those of CIFAR-10. Each seed draws its own images for training; all are tested on the same ones.
Every training is one of the real stages. Writes docs/transfer.json, .md and .png.
"""

import argparse
import json
import statistics
import tarfile
import tempfile
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import ROOT, machine, output, projects
from benchmarks.output import BLACK, BLUE, GREEN, VERMILION, markdown_table
from imageclf import params, yaml12
from imageclf.core import files, paths, process
from imageclf.study import recipes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OUT = Path("docs/transfer")
TRAIN, TEST = 20, 100
"""Numbers of images per class."""
COMMON: dict[str, Any] = {
    "dataset": "folder",
    "folder": "images",
    "val_fraction": 0.0,
    "batch_size": 20,
    "optimizer": "adamw",
    "weight_decay": 0.01,
    "schedule": "cosine",
    "flip": True,
    "crop": 0.5,
    "color_jitter": 0.2,
    "runtime.device": "cpu",
    "runtime.tracking": False,
    "runtime.progress": False,
}
LITE: dict[str, Any] = {"model": "efficientnet_lite0", "image_size": 64, "epochs": 12}
LEARNED: dict[str, Any] = {**LITE, "pretrained": "imagenet"}
VARIANTS: dict[str, dict[str, Any]] = {
    "fine-tuned": LEARNED,
    "head alone": {**LEARNED, "freeze_epochs": 12},
    "from scratch": LITE,
    "cnn": {"model": "cnn", "epochs": 60},
}
"""Parameters of each row of the table, on top of `COMMON` and of params.yaml."""
NOTE = {
    "fine-tuned": "efficientnet_lite0, ImageNet weights, all layers",
    "head alone": "efficientnet_lite0, ImageNet weights, last layer alone",
    "from scratch": "efficientnet_lite0",
    "cnn": "cnn of params.yaml",
}
COLORS = dict(zip(VARIANTS, (GREEN, BLUE, VERMILION, BLACK), strict=True))

Results = dict[str, list[float]]
"""Accuracy on the test images of each seed, by variant."""


def read_images(archive: Path) -> dict[PurePosixPath, dict[str, bytes]]:
    """Return the files of the archive by folder and name, both sorted."""
    groups: dict[PurePosixPath, dict[str, bytes]] = defaultdict(dict)
    with tarfile.open(archive) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isfile() else None
            if file is not None:
                path = PurePosixPath(member.name)
                groups[path.parent][path.name] = file.read()
    return {folder: dict(sorted(groups[folder].items())) for folder in sorted(groups)}


def write_images(groups: dict[PurePosixPath, dict[str, bytes]], folder: Path, seed: int) -> None:
    """Write `TRAIN` train images of each class, drawn with this seed, and the first `TEST` test images."""
    random = np.random.default_rng(seed)
    for group, members in groups.items():
        is_train = group.parts[0] == "train"
        chosen = random.choice(list(members), TRAIN, replace=False) if is_train else list(members)[:TEST]
        (folder / group).mkdir(parents=True)
        for name in chosen:
            (folder / group / name).write_bytes(members[name])


def train(project: Path, seed: int, changes: dict[str, Any]) -> float:
    """Run the stages with these parameters; return the test accuracy."""
    content = recipes.merge(yaml12.read(ROOT / paths.PARAMS), {**COMMON, **changes, "seed": seed})
    files.write_json(project / paths.PARAMS, content)  # JSON is valid YAML
    params.load(project / paths.PARAMS)
    for stage in ("check", "list", "download", "preprocess", "weights", "train", "evaluate"):
        projects.run(project, "-m", f"stages.{stage}")
    return json.loads((project / paths.TEST_SCORES).read_text())["test"]["accuracy"]


def measure(data: Path, seeds: int, jobs: int) -> Results:
    """Run every variant with every seed, `jobs` seeds at a time."""
    groups = read_images(data / "cifar10-images.tar.xz")
    with tempfile.TemporaryDirectory(prefix="transfer-") as work, ThreadPoolExecutor(jobs) as pool:

        def of_seed(seed: int) -> dict[str, float]:
            project = Path(work) / str(seed)
            projects.copy_code(project)
            write_images(groups, project / "images", seed)
            found = {name: train(project, seed, changes) for name, changes in VARIANTS.items()}
            print(f"seed {seed}: {found}", flush=True)
            return found

        by_seed = list(pool.map(of_seed, range(seeds)))
    return {name: [found[name] for found in by_seed] for name in VARIANTS}


def mean_and_std(values: list[float]) -> tuple[float, float]:
    """Return mean and standard deviation, the latter 0 for a single value."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def as_markdown(described: dict[str, Any], found: Results, plot: str) -> str:
    """Return the page: the table, the figure `plot`, and an explanation of the numbers."""
    lines = [["", "net", "pixels", "epochs", "test accuracy, %", "n"]]
    for name, results in found.items():
        mean, std = mean_and_std([100 * result for result in results])
        side = VARIANTS[name].get("image_size", 32)
        accuracy = f"{mean:.1f} ± {std:.1f}"
        epochs = str(VARIANTS[name]["epochs"])
        lines.append([name, NOTE[name], f"{side}x{side}", epochs, accuracy, str(len(results))])
    parts = [
        "# Learned weights",
        TEXT,
        machine.sentence(described),
        markdown_table(lines),
        f"![Test accuracy of each seed]({plot})",
        LARGER,
    ]
    return "\n\n".join(parts) + "\n"


TEXT = f"""\
    uv sync --group transfer    # the weights of efficientnet_lite0, 19 MB
    uv run dvc exp run -S dataset=folder -S image_size=96 -S model=efficientnet_lite0 -S pretrained=imagenet \\
        -S freeze_epochs=20 -S crop=0.5 -S color_jitter=0.2 -S flip=true

| `pretrained` | weights | normalization |
|---|---|---|
| `imagenet` | torchvision's for googlenet and the resnets, a package's for efficientnet_lite0 | that of the weights |
| a folder like `data/model`, a DVC experiment, an MLflow address | those of the model | that of the model |
| a file, `.safetensors` or `.pth` | its dict of tensors, read without running code | `normalize` |

The stage `weights` finds them and writes data/pretrained; the mirror has published ones in its folder `imagenet`. The
SHA-256 of a published file is always checked: the first 8 digits for torchvision's, which publishes no more. A file or
a model of yours is read at each `dvc repro`, so that a change trains again. The SHA-256 is in model.json, in the name
of the saved state, and in MLflow.

A tensor is taken if its name and its shape are those of the net; train prints all others. The last layer is always new.
For gray images, the first convolution is summed over the colors, and mean and standard deviation are averaged. A resnet
or googlenet gets the stem of its weights: a 7x7 convolution and a pool for ImageNet's, which suit images from about 128
pixels; without learned weights, the stem for small images stays. In the first `freeze_epochs` epochs only the last
layer is trained, and the statistics of batch norm do not change; if that is all epochs, only the last layer ever is.

## {TRAIN} images per class

The images are CIFAR-10's, as JPEG files of 32x32 pixels, enlarged for efficientnet_lite0. Each seed draws its own
{TRAIN} train images per class; the test images are {TEST} per class, the same for all. No images are kept for
validation, so the last epoch counts. Training: AdamW, batches of {COMMON["batch_size"]}, cosine schedule, flips, crops
and colors as above."""

LARGER = """\
Larger images help the learned weights, not the training from scratch. At 96x96 pixels (`image_size` in `LITE`), with
the same images and epochs, on one core of an Intel Xeon, n=6: head alone 60.5 ± 1.6% (58.2 to 62.1), from scratch
26.7 ± 0.9% (25.6 to 28.0)."""
"""Results with another `image_size`."""


def draw(found: Results) -> "Figure":
    """Return a figure with the test accuracy of each seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 2.6), layout="constrained")
    axes = figure.subplots()
    for row, (name, results) in enumerate(found.items()):
        values = [100 * result for result in results]
        axes.plot(values, [row] * len(values), "o", color=COLORS[name], alpha=0.6)
        axes.plot([statistics.mean(values)], [row], "|", color=COLORS[name], markersize=22)
    axes.set_yticks(range(len(found)), list(found))
    axes.invert_yaxis()
    axes.set(xlim=(0, 100), xlabel="test accuracy, %")
    axes.grid(axis="x", alpha=0.3)
    figure.suptitle(f"CIFAR-10 with {TRAIN} images per class: each seed, and the mean")
    return figure


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Measure what learned weights bring to a training with few images.")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="number of seeds at a time (default: %(default)s)")
    projects.add_arguments(parser, OUT)
    arguments = parser.parse_args()
    out = arguments.out
    if not arguments.redraw:
        projects.check_data(arguments.data)
        found = measure(arguments.data, arguments.seeds, arguments.jobs)
        described = machine.describe_with_commit(("torch", "numpy", "pillow"))
        files.write_json(output.result_file(out, "json"), {"machine": described, "variants": found})
    content = output.read_numbers(out)
    page = as_markdown(content["machine"], content["variants"], f"{out.name}.png")
    output.write_page(out, page, draw(content["variants"]))
    print(page)


if __name__ == "__main__":
    process.run(main)
