"""How time and memory of preprocess and train grow with the number of images: 10,000 to a million of 28x28.

    uv run python -m benchmarks.scale

MNIST's images, repeated and each moved by up to a pixel, in archives that the real code reads. Asked for: time grows
linearly; a million images train in less than 1.5 GiB, memory-mapped, at 70% of the speed that they have in memory.
Writes docs/scale.md, .json and .png; takes minutes and 2 GB of disk. Nothing else should run meanwhile.
"""

import argparse
import gzip
import math
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import machine, projects
from benchmarks.scale_steps import RESULT, STEPS
from imageclf import errors, files, paths
from imageclf.datasets import DATASETS
from imageclf.errors import UserError
from imageclf.raw import CHUNK, Images

OUT = Path("docs/scale")
SIZES = [10_000, 100_000, 1_000_000]
"""Images, a tenth of which is kept for validation; there are a tenth as many for testing."""
MEMORY, SPEED = 1.5 * 2**30, 0.7
"""Bytes at most, and share of the speed in memory at least, at the largest size."""
LINEAR = 1.1
"""Time grows linearly if between the two largest sizes it grows with no higher power of the images."""

Result = dict[str, Any]


def write_archives(folder: Path, source: dict[str, Images], count: int) -> None:
    """Gzipped IDX files named like MNIST's: `count` train images and a tenth as many test images."""
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
    """The images of `rows` in chunks, each shifted by -1, 0 or 1 pixels down and to the right."""
    random = np.random.default_rng(0)
    for start in range(0, len(rows), CHUNK):
        chunk = pixels[rows[start : start + CHUNK]]
        shifts = random.integers(-1, 2, size=(len(chunk), 2))
        for shift in np.unique(shifts, axis=0):
            mine = (shifts == shift).all(axis=1)
            chunk[mine] = np.roll(chunk[mine], tuple(shift), axis=(1, 2))
        yield chunk


def measure(source: dict[str, Images], sizes: list[int]) -> dict[int, dict[str, Result]]:
    """Every step at every size, in turn."""
    found: dict[int, dict[str, Result]] = {}
    for size in sizes:
        with tempfile.TemporaryDirectory(prefix="scale-") as work:
            write_archives(Path(work) / paths.RAW, source, size)
            found[size] = {}
            for step in STEPS:
                projects.run(Path(work), "-m", "benchmarks.scale_steps", step)
                result = found[size][step] = projects.take(Path(work) / RESULT)
                print(f"{size:,} images, {step}: {result['seconds']:.3g} s, {_mib(result)} MiB", flush=True)
    return found


def verdicts(found: dict[int, dict[str, Result]]) -> list[str]:
    """What was asked for, and whether it holds at the largest size."""
    *_, largest = sizes = sorted(found)
    lines: list[str] = []
    if len(sizes) > 1:
        for step in ("preprocess", "train"):
            power = growth(*((size, found[size][step]["seconds"]) for size in sizes[-2:]))
            lines.append(
                f"{step}: time grows with the power {power:.2f} of the images, asked {LINEAR}: {_yes(power <= LINEAR)}"
            )
    peak = max(found[largest][step]["peak_bytes"] for step in ("preprocess", "train", "mapped"))
    lines.append(f"memory at {largest:,}: {peak / 2**30:.2f} GiB, asked under {MEMORY / 2**30}: {_yes(peak < MEMORY)}")
    speed = speed_ratio(found[largest])
    lines.append(f"mapped against resident at {largest:,}: {speed:.0%}, asked {SPEED:.0%}: {_yes(speed >= SPEED)}")
    return lines


def growth(smaller: tuple[int, float], larger: tuple[int, float]) -> float:
    """The power p in seconds ~ images ** p through two (images, seconds)."""
    return math.log(larger[1] / smaller[1]) / math.log(larger[0] / smaller[0])


def speed_ratio(steps: dict[str, Result]) -> float:
    """Speed memory-mapped, as a share of that in memory."""
    return steps["resident"]["seconds"] / steps["mapped"]["seconds"]


def _yes(holds: bool) -> str:
    return "reached" if holds else "**not reached**"


def _mib(result: Result) -> str:
    return f"{result['peak_bytes'] / 2**20:,.0f}"


def as_markdown(content: dict[str, Any], found: dict[int, dict[str, Result]], plot: str) -> str:
    """A table, the verdicts, the picture `plot`, and what the numbers mean."""
    header = [
        "images",
        *(f"{step}, s" for step in STEPS),
        *(f"{step}, MiB" for step in STEPS),
        "mapped / resident speed",
    ]
    lines = [header, ["---:"] * len(header)]
    for size, steps in found.items():
        seconds = [f"{steps[step]['seconds']:.3g}" for step in STEPS]
        lines.append([f"{size:,}", *seconds, *(_mib(steps[step]) for step in STEPS), f"{speed_ratio(steps):.0%}"])
    parts = [
        "# Time and memory by the number of images",
        machine.sentence(content["machine"]),
        "\n".join(f"| {' | '.join(line)} |" for line in lines),
        "\n".join(f"- {line}" for line in verdicts(found)),
        f"![Time and memory by the number of images]({plot})",
        NOTE,
    ]
    return "\n\n".join(parts) + "\n"


NOTE = """\
Images of 28x28 (MNIST's, repeated, each moved by up to a pixel), a tenth kept for validation; 784-500-10, Adam, batch
100. preprocess: from archives to prepared files. train: the stage without MLflow, one epoch, scores included; images
of up to 512 MiB stay in memory, more are mapped. mapped, resident: the second of two epochs alone, the images mapped
or in memory. MiB: the most that the process ever held, libraries and the mapped file's pages included; the kernel
takes those pages back when memory is short."""


def draw(path: Path, found: dict[int, dict[str, Result]]) -> None:
    """Seconds and memory of each step over the number of images, on log scales."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    sizes = sorted(found)
    for step in STEPS:
        left.plot(sizes, [found[size][step]["seconds"] for size in sizes], "o-", label=step)
        right.plot(sizes, [found[size][step]["peak_bytes"] / 2**20 for size in sizes], "o-", label=step)
    right.axhline(MEMORY / 2**20, color="gray", linestyle="--", label="asked")
    left.set(xscale="log", yscale="log", xlabel="images", ylabel="seconds")
    right.set(xscale="log", yscale="log", xlabel="images", ylabel="peak memory, MiB")
    for axes in (left, right):
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes], minor=False)
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    with files.replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100, metadata={"Software": None})


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Time and memory of preprocess and train by the number of images.")
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, help="numbers of images, 1000 or more")
    parser.add_argument("--data", type=Path, default=projects.DATA, help=f"the archives (default {projects.DATA})")
    parser.add_argument("--out", type=Path, default=OUT, help=f"write OUT.md, .json, .png (default {OUT})")
    arguments = parser.parse_args()
    if min(arguments.sizes) < 1000:
        parser.error("--sizes: 1000 images at least")
    if not (arguments.data / "mnist").is_dir():
        raise UserError(f"{arguments.data / 'mnist'} is not here: --data names the folder of mnist/")
    source = DATASETS["mnist"].read(arguments.data / "mnist").splits
    found = measure(source, sorted(set(arguments.sizes)))
    content = {
        "machine": machine.describe(("torch", "numpy")),
        "sizes": {str(size): steps for size, steps in found.items()},
    }
    out = arguments.out
    text = as_markdown(content, found, f"{out.name}.png")
    print(text)
    files.write_text(out.with_name(f"{out.name}.md"), text)
    files.write_json(out.with_name(f"{out.name}.json"), content)
    draw(out.with_name(f"{out.name}.png"), found)


if __name__ == "__main__":
    errors.run(main)
