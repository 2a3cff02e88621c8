"""Fit a net to data/processed and keep the epoch that validation likes best: `python -m stages.train`.

torch is imported after the parameters are checked: a typo is told in half a second, not in three.
"""

import os
from dataclasses import asdict
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from imageclf import cores, errors, params, paths, resume, splits, tracking, yaml12
from imageclf.tracking import Recorder

if TYPE_CHECKING:
    import torch

    from imageclf.batches import Batches, Normalize


def main() -> None:
    """Write data/model, metrics/history.csv and metrics/train.json; record the run."""
    settings = params.load()
    data = splits.read(paths.PROCESSED)
    knobs, machine = settings.of(params.TrainParams), settings.runtime
    key = resume.key_of(identify(knobs, machine, data))
    with (
        resume.slot(key) as slot,
        tracking.recording("train", enabled=machine.tracking, training=key, resumes=slot.exists()) as recorder,
    ):
        recorder.params(settings.model_dump(exclude={"runtime"}))
        recorder.dataset(settings.dataset, data.sha256)
        recorder.tags({"data_sha256": data.sha256})
        train(knobs, machine, data, slot, recorder)
        slot.clear()


def identify(knobs: params.TrainParams, machine: params.RuntimeParams, data: splits.Prepared) -> dict[str, Any]:
    """All that the trained net's bits depend on."""
    code = resume.code(yaml12.read(resume.CHECKOUT / paths.PIPELINE)["stages"]["train"]["deps"])
    threads = cores.allowed_cores() if machine.threads == "auto" else machine.threads
    return {
        "code": code,
        "params": knobs.model_dump(),
        "data": data.sha256,
        "device": machine.device,
        "threads": threads,
        "torch": version("torch"),
    }


def train(
    knobs: params.TrainParams,
    machine: params.RuntimeParams,
    data: splits.Prepared,
    slot: resume.Slot,
    recorder: Recorder,
) -> None:
    """Build the net, fit it, write its best epoch."""
    if machine.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Adam asks every GPU that torch sees, and fails if one is full
    import torch

    from imageclf import checkpoint, optim, runtime
    from imageclf.batches import Batches, Normalize
    from imageclf.scoring import BATCH_SIZE
    from imageclf.summary import as_table, describe_layers

    device, threads = runtime.choose_device(machine.device), runtime.set_threads(machine.threads)
    runtime.allow_tf32(device)
    recorder.tags({"device": str(device), "threads": str(threads), "torch": torch.__version__})
    torch.manual_seed(runtime.derive(knobs.seed, 0))
    net = checkpoint.build_net(describe(knobs, data))
    table = as_table(describe_layers(net, data.image_shape))
    print(table, flush=True)
    recorder.text("net.txt", table)

    net = runtime.place(net, device)
    if knobs.compile:
        runtime.compile_net(net)
    settings = optim.OptimizerOptions(
        lr=knobs.lr, momentum=knobs.momentum, nesterov=knobs.nesterov, weight_decay=knobs.weight_decay
    )
    optimizer = optim.OPTIMIZERS[knobs.optimizer](net, settings)
    training = resume.Training(net, optimizer, slot, every_s=60 * machine.checkpoint_minutes)
    normalize = Normalize(data.normalization, data.whitening)
    scored = {split: Batches(data[split], normalize, BATCH_SIZE, device) for split in ("train", "val") if split in data}
    learn(training, knobs, machine, augmented(knobs, data, normalize, device), recorder, val=scored.get("val"))
    write(training, knobs, data, scored, recorder)


def augmented(
    knobs: params.TrainParams, data: splits.Prepared, normalize: "Normalize", device: "torch.device"
) -> "Batches":
    """The batches to learn from."""
    from imageclf.augment import Augmentation
    from imageclf.batches import Batches

    augmentation = Augmentation(shift=knobs.shift, flip=knobs.flip, cutout=knobs.cutout, fill=data.mean_level)
    return Batches(data["train"], normalize, knobs.batch_size, device, augmentation=augmentation)


def learn(
    training: resume.Training,
    knobs: params.TrainParams,
    machine: params.RuntimeParams,
    batches: "Batches",
    recorder: Recorder,
    *,
    val: "Batches | None",
) -> None:
    """Run the epochs that are left, each kept as it ends; a signal waits for the end of a step."""
    from imageclf import optim, runtime
    from imageclf.fit import Position, fit
    from imageclf.losses import LOSSES
    from imageclf.progress import Progress

    if training.go_on():
        print(f"going on at epoch {training.position.epoch}, step {training.position.step + 1}", flush=True)
    for epoch in training.epochs:
        recorder.epoch(asdict(epoch))
    done = len(training.epochs) * len(batches) + training.position.step
    with (
        Progress(knobs.epochs, len(batches), done=done, bar=machine.progress) as progress,
        errors.deferred() as asked,
    ):

        def on_step(at: Position) -> None:
            progress.step(at)
            if asked.signum is not None or training.due():
                training.pause(at)
                asked.leave()

        for epoch in fit(
            training.net,
            training.optimizer,
            optim.with_warmup(optim.SCHEDULES[knobs.schedule], knobs.warmup),
            LOSSES[knobs.loss],
            train=batches,
            val=val,
            epochs=knobs.epochs,
            seed=knobs.seed,
            label_smoothing=knobs.label_smoothing,
            autocast=runtime.autocast(knobs.precision, batches.device),
            start=training.position,
            on_step=on_step,
        ):
            progress.epoch(epoch)
            recorder.epoch(asdict(epoch))
            training.end_epoch(epoch)
            asked.leave()


def write(
    training: resume.Training,
    knobs: params.TrainParams,
    data: splits.Prepared,
    scored: "dict[str, Batches]",
    recorder: Recorder,
) -> None:
    """Score the best epoch's weights and write them, the scores and the history."""
    from imageclf import checkpoint, files, reports
    from imageclf.fit import check_finite
    from imageclf.losses import LOSSES
    from imageclf.scoring import score

    best = training.best
    assert best is not None
    training.net.load_state_dict(training.weights)
    found = {split: score(training.net, batches, LOSSES[knobs.loss]) for split, batches in scored.items()}
    check_finite(found["train"].loss, "the trained net", knobs.lr)  # without validation nothing has looked at it yet
    scores = {split: {"loss": means.loss, "accuracy": means.accuracy} for split, means in found.items()}
    digest = checkpoint.save(
        paths.MODEL, training.weights, data.whitening, {**describe(knobs, data), "epoch": best.number}
    )
    reports.write_history(paths.HISTORY, [asdict(epoch) for epoch in training.epochs])
    files.write_json(paths.TRAIN_SCORES, {**scores, "epoch": best.number})
    recorder.tags({"model_sha256": digest})
    recorder.scores({"best": scores}, step=best.number)
    recorder.artifacts([paths.HISTORY, paths.TRAIN_SCORES])
    recorder.model(paths.MODEL, best.number)


def describe(knobs: params.TrainParams, data: splits.Prepared) -> dict[str, Any]:
    """The recipe that rebuilds the net and what is done to its input, without this data and these parameters."""
    from imageclf import models

    return {
        "model": knobs.model,
        "arguments": {key: getattr(knobs, key) for key in models.parameter_names(knobs.model)},
        "raw_shape": data.manifest["raw_shape"],
        "image_shape": data.image_shape,
        "classes": data.classes,
        "preparation": data.preparation,
        "permutation": None if data.permutation is None else data.permutation.tolist(),
        "normalization": data.normalization,
        "loss": knobs.loss,
        "data_sha256": data.sha256,
    }


if __name__ == "__main__":
    errors.run(main)
