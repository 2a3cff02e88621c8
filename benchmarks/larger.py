"""Measure the training on images that exceed the memory: images per second, and the largest amount of memory.

    uv run python -m benchmarks.larger                       # 20 million images of 28x28 pixels, 2 GiB of memory
    uv run python -m benchmarks.larger --images 3000000 --seconds 10
    uv run python -m benchmarks.larger --shards s3://bucket/larger   # also from a server; of its shards, 1 GiB is kept

Writes a file of random pixels into a temporary folder (15.7 GB by default), and trains the net of the recipe
keras512 on it in batches of 2,048, in a control group whose limit includes the kernel's cache of files. The comparison
has 600,000 images in memory, without a limit. Linux only, as root. Prints a table.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine
from benchmarks.output import markdown_table
from benchmarks.scale_steps import memory
from imageclf.contracts.shards import ShardedImages, ShardList
from imageclf.core import files, process
from imageclf.core.errors import UserError
from imageclf.core.remote import RemoteFolder
from imageclf.preprocess import npy

SHAPE, CLASSES, BATCH_SIZE, IN_MEMORY = (1, 28, 28), 10, 2048, 600_000
VARIANTS = ("memory", "blocks", "memory map", "shards")
SHARD = 2**26 // 784


def write_images(path: Path, count: int) -> None:
    """Write an array (count, 1, 28, 28) of random pixels, and remove it from the kernel's cache of files."""
    array = np.lib.format.open_memmap(path, "w+", np.uint8, (count, *SHAPE))
    random, step = np.random.default_rng(0), 200_000
    for start in range(0, count, step):
        array[start : start + step] = random.integers(256, size=(min(step, count - start), *SHAPE), dtype=np.uint8)
    del array  # the kernel keeps pages that are mapped
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def upload(path: Path, server: RemoteFolder) -> None:
    """Upload the images of a file as shards, and write their list next to it."""
    images, digests = np.load(path, mmap_mode="r", allow_pickle=False), dict[str, str]()
    for start in range(0, len(images), SHARD):
        shard = path.with_name(f"{start}.npy")
        npy.write(shard, images[start : start + SHARD], digests)
        server.put(shard, digests[shard.name])
        shard.unlink()
    found = ShardList(address=server.address, rows=SHARD, sha256=list(digests.values()))
    files.write_json(path.with_suffix(".json"), asdict(found))


def train(variant: str, path: Path, seconds: float) -> dict[str, Any]:
    """Train for some seconds after the first batch; return images per second and the memory."""
    import torch

    from imageclf import models
    from imageclf.contracts.dataset import Split
    from imageclf.training import losses, optim, runtime
    from imageclf.training.gradients import FLOAT32, GradientAccumulator
    from imageclf.training.loading import blocks
    from imageclf.training.loading.batches import Batches, Normalize

    runtime.set_threads("auto")
    images = np.load(path, mmap_mode="c", allow_pickle=False)
    if variant == "memory":
        images = np.array(images[:IN_MEMORY])
    if variant == "memory map":
        blocks.LARGE = sys.maxsize
    if variant == "shards":
        shards = ShardList(**json.loads(path.with_suffix(".json").read_text()))
        images: Any = ShardedImages(shards, len(images), SHAPE, cache_gib=1)
    split = Split(images, np.zeros(len(images), np.int64))
    resident = variant == "memory"
    batches = Batches(split, Normalize(([0.5], [0.3])), BATCH_SIZE, torch.device("cpu"), resident=resident)
    net = models.build("mlp", SHAPE, CLASSES, hidden=[512], dropout=0.0)
    optimizer = optim.OPTIMIZERS["adam"](net, optim.OptimizerOptions(lr=0.001))
    gradients = GradientAccumulator(net, batches, losses.LOSSES["cross_entropy"], 0.0, FLOAT32)
    count, start = 0, 0.0
    for number, (pixels, targets) in enumerate(batch for epoch in range(100) for batch in batches.shuffled(epoch)):
        if number == 1:
            start = time.perf_counter()
        gradients(pixels, targets, len(targets))
        optimizer.step()
        count += len(pixels) if number else 0
        if number and time.perf_counter() - start > seconds:
            break
    return {"images_per_second": count / (time.perf_counter() - start), **memory()}


def limited(limit: int) -> "ControlGroup":
    """Return a new control group with this limit of memory, in bytes."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in {"memory", ""}:
            parent = Path("/sys/fs/cgroup", controllers) / path.strip("/")
            setting = parent / ("memory.limit_in_bytes" if controllers else "memory.max")
            if setting.exists() or not controllers:
                return ControlGroup(parent / f"larger-{os.getpid()}", setting.name, limit)
    raise UserError("this system has no control groups for memory")


class ControlGroup:
    """A control group of the kernel for one process, with a limit of memory."""

    def __init__(self, folder: Path, setting: str, limit: int) -> None:
        self.folder = folder
        try:
            folder.mkdir()
            (folder / setting).write_text(str(limit))
        except OSError as error:
            raise UserError(f"the limit of memory needs root and control groups: {error}") from None

    def enter(self) -> None:
        """Move the calling process into the group."""
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    def remove(self) -> None:
        """Remove the group; its process must have ended."""
        self.folder.rmdir()


def measure(variant: str, path: Path, seconds: float, limit: int) -> dict[str, Any]:
    """Train in a new process, with the limit unless the images are in memory."""
    group = None if variant == "memory" else limited(limit)
    command = [sys.executable, "-m", "benchmarks.larger", "--child", variant, "--file", str(path)]
    try:
        done = subprocess.run(
            [*command, "--seconds", str(seconds)],
            stdout=subprocess.PIPE,
            check=True,
            preexec_fn=group.enter if group else None,
        )
    finally:
        if group:
            group.remove()
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Measure the training on images that exceed the memory.")
    parser.add_argument("--images", type=int, default=20_000_000)
    parser.add_argument("--limit", type=int, default=2 * 2**30, help="bytes of memory (default 2 GiB)")
    parser.add_argument("--seconds", type=float, default=30, help="seconds of training that are timed")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="folder on the disk to measure (default a temporary one)")
    parser.add_argument("--shards", help="address of a folder for shards; without it, they are not measured")
    parser.add_argument("--child", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(train(given.child, given.file, given.seconds)))
        return
    print(machine.sentence(machine.describe_with_commit(("torch", "numpy"))), flush=True)
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        path = Path(folder, "images.npy")
        write_images(path, given.images)
        print(f"{given.images:,} images, {path.stat().st_size / 2**30:.1f} GiB", flush=True)
        lines = [["images", "images per second", "peak memory, MiB", "without mapped files, MiB"]]
        if given.shards:
            upload(path, RemoteFolder(given.shards))
            os.environ["IMAGECLF_CACHE"] = folder
        for variant in VARIANTS[: 4 if given.shards else 3] * given.rounds:
            found = measure(variant, path, given.seconds, given.limit)
            amounts = [f"{found[key] / 2**20:,.0f}" for key in ("peak_bytes", "private_bytes")]
            lines.append([variant, f"{found['images_per_second']:,.0f}", *amounts])
    print(markdown_table(lines))


if __name__ == "__main__":
    process.run(main)
