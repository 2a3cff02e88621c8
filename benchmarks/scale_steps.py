"""What `benchmarks.scale` measures, each step in a process of its own, in the folder that holds data/.

    python -m benchmarks.scale_steps mapped

leaves `result.json`: the seconds of the step, and the memory that the process held. Linux only.
"""

import argparse
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.projects import ROOT
from imageclf import files, params, paths, recipes, resume, splits, yaml12
from imageclf.datasets import DATASETS
from imageclf.prepare import prepare
from imageclf.tracking import Recorder

RESULT = "result.json"
RECIPE, CHANGES = "fc500", {"epochs": 1, "val_fraction": 0.1, "runtime.device": "cpu"}
"""An mlp of one hidden layer of 500, batches of 100."""


def knobs() -> params.Params:
    """The parameters of every step."""
    values = recipes.read(ROOT / recipes.RECIPES)[RECIPE] | CHANGES
    return params.validate(recipes.merge(yaml12.read(ROOT / paths.PARAMS), values), RECIPE)


def preprocess() -> dict[str, Any]:
    """The raw archives to data/processed, as the stage does it but for the archives' published checksums."""
    settings = knobs()
    start = time.perf_counter()
    prepare(
        DATASETS["mnist"].read(paths.RAW),
        paths.PROCESSED,
        dataset=settings.dataset,
        classes=None,
        val_fraction=settings.val_fraction,
        split_seed=settings.split_seed,
        grayscale=settings.grayscale,
        image_size=settings.image_size,
        pad=settings.pad,
        normalize=settings.normalize,
        permute_seed=None,
        one_hot=settings.one_hot,
    )
    return {"seconds": time.perf_counter() - start}


def train() -> dict[str, Any]:
    """The train stage without MLflow: verify, one epoch, validate, score, write."""
    import torch  # noqa: F401 - its import is no part of what grows

    from stages.train import train as run_stage

    settings = knobs()
    start = time.perf_counter()
    with resume.slot("scale") as slot:
        run_stage(settings.of(params.TrainParams), settings.runtime, splits.read(paths.PROCESSED), slot, Recorder(None))
        slot.clear()
    return {"seconds": time.perf_counter() - start}


def epoch(resident_bytes: int) -> dict[str, Any]:
    """One epoch after one that warms up, the images in memory where they have up to `resident_bytes`."""
    import torch

    from imageclf import checkpoint, optim, runtime
    from imageclf.batches import Batches, Normalize
    from imageclf.fit import fit
    from imageclf.losses import LOSSES
    from stages.train import describe

    settings, data = knobs(), splits.read(paths.PROCESSED)
    runtime.set_threads(settings.runtime.threads)
    net = checkpoint.build_net(describe(settings.of(params.TrainParams), data))
    optimizer = optim.OPTIMIZERS[settings.optimizer](net, optim.OptimizerOptions(lr=settings.lr))
    normalize = Normalize(data.normalization)
    batches = Batches(data["train"], normalize, settings.batch_size, torch.device("cpu"), resident_bytes=resident_bytes)
    schedule, loss = optim.SCHEDULES[settings.schedule], LOSSES[settings.loss]
    start = time.perf_counter()
    epochs = fit(net, optimizer, schedule, loss, train=batches, val=None, epochs=2, seed=settings.seed)
    first, second = (time.perf_counter() for _ in epochs)
    return {"seconds": second - first, "first_epoch": first - start, "images": batches.num_images}


STEPS: dict[str, Callable[[], dict[str, Any]]] = {
    "preprocess": preprocess,
    "train": train,
    "mapped": partial(epoch, resident_bytes=0),
    "resident": partial(epoch, resident_bytes=2**62),
}


def memory(status: Path = Path("/proc/self/status")) -> dict[str, int]:
    """Bytes: the most that this process ever held, mapped files included, and what it holds now without those."""
    found = dict(re.findall(r"(VmHWM|RssAnon):\s+(\d+) kB", status.read_text()))
    return {"peak_bytes": 1024 * int(found["VmHWM"]), "private_bytes": 1024 * int(found["RssAnon"])}


def main() -> None:
    """Do one step and leave the result."""
    parser = argparse.ArgumentParser(description="One step of benchmarks.scale.")
    parser.add_argument("step", choices=STEPS)
    result = STEPS[parser.parse_args().step]()
    files.write_json(Path(RESULT), {**result, **memory()})


if __name__ == "__main__":
    main()
