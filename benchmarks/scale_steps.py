"""Steps that `benchmarks.scale` measures, each in a new process, in the folder that holds data/.

    python -m benchmarks.scale_steps mapped

writes `result.json`: the seconds of the step, and the memory of the process. Linux only.
"""

import argparse
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from imageclf import files, params, paths, recipes, resume, splits, yaml12
from imageclf.datasets import DATASETS
from imageclf.prepare import prepare
from imageclf.tracking import Recorder

RESULT = "result.json"
RECIPE, CHANGES = "fc500", {"epochs": 1, "val_fraction": 0.1, "runtime.device": "cpu"}
"""A fully connected net with one hidden layer of 500 units, trained with batches of 100."""


def parameters() -> params.Params:
    """Return the parameters of all steps."""
    values = recipes.read(ROOT / recipes.RECIPES)[RECIPE] | CHANGES
    return params.validate(recipes.merge(yaml12.read(ROOT / paths.PARAMS), values), RECIPE)


def preprocess() -> dict[str, Any]:
    """Prepare the raw archives as the stage does, without checking the archives' published checksums."""
    settings = parameters().of(params.PreprocessParams).model_dump(exclude={"permute", "permute_seed"})
    start = time.perf_counter()
    prepare(DATASETS["mnist"].read(paths.RAW), paths.PROCESSED, permute_seed=None, **settings)
    return {"seconds": time.perf_counter() - start}


def train() -> dict[str, Any]:
    """Run the train stage without MLflow: verify, train one epoch, validate, score, write."""
    import torch  # noqa: F401 - the time of its import does not grow

    from stages.train import train as run_stage

    settings = parameters()
    start = time.perf_counter()
    with resume.slot("scale") as slot:
        run_stage(settings.of(params.TrainParams), settings.runtime, splits.read(paths.PROCESSED), slot, Recorder(None))
        slot.clear()
    return {"seconds": time.perf_counter() - start}


def epoch(resident_bytes: int) -> dict[str, Any]:
    """Time the second of two epochs; images of up to `resident_bytes` are kept in memory."""
    import torch

    from imageclf import checkpoint, optim, runtime
    from imageclf.batches import Batches, Normalize
    from imageclf.fit import fit
    from imageclf.losses import LOSSES
    from stages.train import describe

    settings, data = parameters(), splits.read(paths.PROCESSED)
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
    """Return bytes: the most this process has held, mapped files included, and those it holds now without them."""
    found = dict(re.findall(r"(VmHWM|RssAnon):\s+(\d+) kB", status.read_text()))
    return {"peak_bytes": 1024 * int(found["VmHWM"]), "private_bytes": 1024 * int(found["RssAnon"])}


def main() -> None:
    """Run one step and write its result."""
    parser = argparse.ArgumentParser(description="Run one step of benchmarks.scale.")
    parser.add_argument("step", choices=STEPS)
    result = STEPS[parser.parse_args().step]()
    files.write_json(Path(RESULT), {**result, **memory()})


if __name__ == "__main__":
    main()
