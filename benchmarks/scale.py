"""Measure time and memory of preprocess and train for 10,000 to 1,000,000 images of 28x28 pixels.

    uv run python -m benchmarks.scale
    uv run python -m benchmarks.scale --redraw   # page and figure again, from docs/scale.json

The images are MNIST's, repeated and each moved by up to a pixel, in archives that the real code reads. Targets: time
grows linearly; a million memory-mapped images train with less than 1.5 GiB, and at 70% or more of the speed that
images in memory have. Writes docs/scale.json, .md and .png; takes minutes and 2 GB of disk. Run nothing else at the
same time.
"""

import argparse
import gzip
import math
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import machine, output, projects
from benchmarks.output import BLACK, BLUE, ORANGE, VERMILION, markdown_table
from benchmarks.scale_steps import RESULT, STEPS
from imageclf.contracts.raw import CHUNK, Images
from imageclf.core import files, paths, process
from imageclf.download.datasets import DATASETS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OUT = Path("docs/scale")
SIZES = [10_000, 100_000, 1_000_000]
"""Numbers of train images, one tenth of which is used for validation; one tenth as many are added for testing."""
MEMORY, SPEED = 1.5 * 2**30, 0.7
"""Targets at the largest size: most bytes, and least share of the speed with images in memory."""
LINEAR = 1.1
"""Largest power of the number of images that counts as linear growth of time, between the two largest sizes."""

Result = dict[str, Any]
STYLES = {
    "preprocess": ("preprocess", BLACK, "s"),
    "train": ("train", VERMILION, "D"),
    "mapped": ("one epoch, images memory-mapped", BLUE, "o"),
    "resident": ("one epoch, images in memory", ORANGE, "^"),
}
"""Label, color and marker of each step in the figure."""


def write_archives(folder: Path, source: dict[str, Images], count: int) -> None:
    """Write gzipped IDX files named like MNIST's: `count` train images and a tenth as many test images."""
    folder.mkdir(parents=True)
    for split, stem, number in (("train", "train", count), ("test", "t10k", count // 10)):
        images = source[split]
        pixels = np.concatenate(list(images.chunks()))[:, 0]
        rows = np.arange(number) % len(pixels)
        with gzip.open(folder / f"{stem}-labels-idx1-ubyte.gz", "wb", compresslevel=1) as stream:
            stream.write(struct.pack(">II", 0x801, number) + images.labels[rows].astype(np.uint8).tobytes())
        with gzip.open(folder / f"{stem}-images-idx3-ubyte.gz", "wb", compresslevel=1) as stream:
            stream.write(struct.pack(">IIII", 0x803, number, *pixels.shape[1:]))
            for chunk in moved(pixels, rows):
                stream.write(chunk.tobytes())


def moved(pixels: NDArray[np.uint8], rows: NDArray[np.intp]) -> Iterator[NDArray[np.uint8]]:
    """Yield the images of `rows` in chunks, each shifted by -1, 0 or 1 pixels down and to the right."""
    random = np.random.default_rng(0)
    for start in range(0, len(rows), CHUNK):
        chunk = pixels[rows[start : start + CHUNK]]
        shifts = random.integers(-1, 2, size=(len(chunk), 2))
        for shift in np.unique(shifts, axis=0):
            selected = (shifts == shift).all(axis=1)
            chunk[selected] = np.roll(chunk[selected], tuple(shift), axis=(1, 2))
        yield chunk


def measure(source: dict[str, Images], sizes: list[int]) -> dict[int, dict[str, Result]]:
    """Run every step at every size, one after the other."""
    found: dict[int, dict[str, Result]] = {}
    for size in sizes:
        with tempfile.TemporaryDirectory(prefix="scale-") as work:
            write_archives(Path(work) / paths.RAW, source, size)
            found[size] = {}
            for step in STEPS:
                projects.run(Path(work), "-m", "benchmarks.scale_steps", step)
                result = found[size][step] = projects.take_result(Path(work) / RESULT)
                print(f"{size:,} images, {step}: {result['seconds']:.3g} s, {_mib(result)} MiB", flush=True)
    return found


def verdicts(found: dict[int, dict[str, Result]]) -> list[str]:
    """Return a sentence for each target: the measured number, and if it reaches the target at the largest size."""
    *_, largest = sizes = sorted(found)
    lines: list[str] = []
    if len(sizes) > 1:
        for step in ("preprocess", "train"):
            power = growth(*((size, found[size][step]["seconds"]) for size in sizes[-2:]))
            text = f"{step}: time grows with the power {power:.2f} of the number of images (target: at most {LINEAR})"
            lines.append(_verdict(text, reached=power <= LINEAR))
    peak = max(found[largest][step]["peak_bytes"] for step in ("preprocess", "train", "mapped"))
    text = f"memory with {largest:,} images: {peak / 2**30:.2f} GiB (target: less than {MEMORY / 2**30} GiB)"
    lines.append(_verdict(text, reached=peak < MEMORY))
    speed = speed_ratio(found[largest])
    text = f"speed mapped / resident with {largest:,} images: {speed:.0%} (target: at least {SPEED:.0%})"
    lines.append(_verdict(text, reached=speed >= SPEED))
    return lines


def growth(smaller: tuple[int, float], larger: tuple[int, float]) -> float:
    """Return the power p of seconds ~ images ** p, from two pairs (images, seconds)."""
    return math.log(larger[1] / smaller[1]) / math.log(larger[0] / smaller[0])


def speed_ratio(steps: dict[str, Result]) -> float:
    """Return the speed with mapped images divided by the speed with images in memory."""
    return steps["resident"]["seconds"] / steps["mapped"]["seconds"]


def _verdict(text: str, *, reached: bool) -> str:
    return f"{text}: {'reached' if reached else '**not reached**'}"


def _mib(result: Result) -> str:
    return f"{result['peak_bytes'] / 2**20:,.0f}"


def as_markdown(described: dict[str, Any], found: dict[int, dict[str, Result]], plot: str) -> str:
    """Return a page: a table, the verdicts, the figure `plot`, and an explanation of the numbers."""
    units = [f"{step}, {unit}" for unit in ("s", "MiB") for step in STEPS]
    lines = [["images", *units, "speed mapped / resident"]]
    for size, steps in found.items():
        seconds = [f"{steps[step]['seconds']:.3g}" for step in STEPS]
        lines.append([f"{size:,}", *seconds, *(_mib(steps[step]) for step in STEPS), f"{speed_ratio(steps):.0%}"])
    parts = [
        "# Time and memory by the number of images",
        machine.sentence(described),
        markdown_table(lines),
        "\n".join(f"- {line}" for line in verdicts(found)),
        f"![Time and memory by the number of images]({plot})",
        NOTE,
    ]
    return "\n\n".join(parts) + "\n"


NOTE = """\
Images of 28x28 pixels: MNIST's, repeated, each moved by up to a pixel, a tenth of them for validation. The net is
784-500-10, trained by Adam with batches of 100. preprocess: from archives to prepared files. train: the stage without
MLflow, one epoch, scores included; images that take at most half of the free memory are kept there, and others are
memory-mapped. mapped, resident: only the second of two epochs, with images memory-mapped or in memory. MiB: the most
memory that the process held, including libraries and the pages of mapped files, which the kernel takes back if memory
is short."""


def draw(found: dict[int, dict[str, Result]]) -> "Figure":
    """Return a figure with seconds and memory of each step over the number of images, on log scales."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    figure = Figure(figsize=(8, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    sizes = sorted(found)
    for step, (label, color, marker) in STYLES.items():
        results = [found[size][step] for size in sizes]
        style = {"color": color, "marker": marker, "markersize": 6}
        left.plot(sizes, [result["seconds"] for result in results], **style, label=label)
        right.plot(sizes, [result["peak_bytes"] / 2**20 for result in results], **style)
    least = found[sizes[0]]["preprocess"]["seconds"] / 2
    left.plot(sizes, [least * size / sizes[0] for size in sizes], ":", color="gray", label="linear growth")
    left.plot([], [], "--", color="gray", label="target for all except images in memory")
    right.axhline(MEMORY / 2**20, linestyle="--", color="gray")
    left.set_title("Time, seconds")
    right.set_title("Peak memory, MiB")
    for axes in (left, right):
        axes.set(xscale="log", yscale="log", xlabel="number of images")
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes], minor=False)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize=9)
    figure.suptitle("Time and memory by the number of images: lower is better")
    return figure


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Measure time and memory of preprocess and train by number of images.")
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, help="numbers of images, 1000 or more")
    projects.add_arguments(parser, OUT)
    arguments = parser.parse_args()
    out = arguments.out
    if min(arguments.sizes) < 1000:
        parser.error("--sizes must be 1000 or more")
    if not arguments.redraw:
        projects.check_data(arguments.data)
        source = DATASETS["mnist"].read(arguments.data / "mnist").splits
        found = measure(source, sorted(set(arguments.sizes)))
        described = machine.describe_with_commit(("torch", "numpy"))
        files.write_json(output.result_file(out, "json"), {"machine": described, "sizes": found})
    content = output.read_numbers(out)
    found = {int(size): steps for size, steps in content["sizes"].items()}
    page = as_markdown(content["machine"], found, f"{out.name}.png")
    output.write_page(out, page, draw(found))
    print(page)


if __name__ == "__main__":
    process.run(main)
