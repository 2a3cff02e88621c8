"""Steps that `benchmarks.scale` measures, each in a new process, in the folder that holds data/.

    python -m benchmarks.scale_steps mapped

writes `result.json`: the seconds of the step, and the memory of the process. Linux only.
"""

import argparse
import re
import time
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from imageclf import params, yaml12
from imageclf.contracts import dataset
from imageclf.contracts.preparation import Preparation
from imageclf.contracts.pretrained import Pretrained
from imageclf.core import files, paths
from imageclf.download.datasets import DATASETS
from imageclf.preprocess.prepare import prepare
from imageclf.study import recipes
from imageclf.tracking.client import Recorder
from imageclf.training import slots

RESULT = "result.json"
RECIPE, CHANGES = "fc500", {"epochs": 1, "val_fraction": 0.1, "runtime.device": "cpu"}
"""A fully connected net with one hidden layer of 500 units, trained with batches of 100."""


def parameters() -> params.Params:
    """Return the parameters of all steps."""
    values = recipes.read(ROOT / recipes.RECIPES)[RECIPE] | CHANGES
    return params.validate(recipes.merge(yaml12.read(ROOT / paths.PARAMS), values), RECIPE)


def preprocess() -> dict[str, Any]:
    """Prepare the raw archives as the stage does, without checking the archives' published checksums."""
    options = parameters().of(params.PreprocessParams)
    others = options.model_dump(exclude={"permute", "shards", *(field.name for field in fields(Preparation))})
    start = time.perf_counter()
    prepare(DATASETS["mnist"].read(paths.RAW), paths.PROCESSED, preparation=options.preparation(), **others)
    return {"seconds": time.perf_counter() - start}


def train() -> dict[str, Any]:
    """Run the train stage without MLflow: verify, train one epoch, validate, score, write."""
    import torch  # noqa: F401 - the time of its import does not grow

    from stages.train import train as run_stage

    settings = parameters()
    start = time.perf_counter()
    with slots.slot("scale") as slot:
        run_stage(
            settings.of(params.TrainParams),
            settings.runtime,
            dataset.read(paths.PROCESSED),
            slot,
            Recorder(None),
            learned=Pretrained(),
        )
        slot.clear()
    return {"seconds": time.perf_counter() - start}


def epoch(resident: bool) -> dict[str, Any]:
    """Time the second of two epochs; with `resident`, the images are kept in memory."""
    import torch

    from imageclf import models
    from imageclf.training import optim, runtime
    from imageclf.training.fit import fit
    from imageclf.training.loading.batches import Batches, Normalize
    from imageclf.training.losses import LOSSES

    settings, data = parameters(), dataset.read(paths.PROCESSED)
    runtime.set_threads(settings.runtime.threads)
    arguments = {name: getattr(settings, name) for name in models.parameter_names(settings.model)}
    net = models.build(settings.model, data.manifest.image_shape, len(data.manifest.classes), **arguments)
    optimizer = optim.OPTIMIZERS[settings.optimizer](net, optim.OptimizerOptions(lr=settings.lr))
    normalize = Normalize(data.normalization)
    batches = Batches(data["train"], normalize, settings.batch_size, torch.device("cpu"), resident=resident)
    schedule, loss = optim.SCHEDULES[settings.schedule], LOSSES[settings.loss]
    start = time.perf_counter()
    epochs = fit(net, optimizer, schedule, loss, train=batches, val=None, epochs=2, seed=settings.seed)
    first, second = (time.perf_counter() for _ in epochs)
    return {"seconds": second - first, "first_epoch": first - start, "images": batches.num_images}


STEPS: dict[str, Callable[[], dict[str, Any]]] = {
    "preprocess": preprocess,
    "train": train,
    "mapped": partial(epoch, resident=False),
    "resident": partial(epoch, resident=True),
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
