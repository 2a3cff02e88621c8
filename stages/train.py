"""Fit a net to data/processed and keep the epoch that validation likes best: `python -m stages.train`.

torch is imported after the parameters are checked: a typo is told in half a second, not in three.
"""

from dataclasses import asdict
from typing import Any

from imageclf import errors, params, paths, splits, tracking
from imageclf.tracking import Recorder


def main() -> None:
    """Write data/model, metrics/history.csv and metrics/train.json; record the run."""
    settings = params.load()
    data = splits.read(paths.PROCESSED)
    with tracking.recording("train", enabled=settings.runtime.tracking) as recorder:
        recorder.params(settings.model_dump(exclude={"runtime"}))
        recorder.dataset(settings.dataset, data.sha256)
        recorder.tags({"data_sha256": data.sha256})
        train(settings.of(params.TrainParams), settings.runtime, data, recorder)


def train(knobs: params.TrainParams, machine: params.RuntimeParams, data: splits.Prepared, recorder: Recorder) -> None:
    """Build the net, fit it, keep its best epoch, score that and write."""
    import torch

    from imageclf import checkpoint, files, optim, reports, runtime
    from imageclf.augment import Augmentation
    from imageclf.batches import Batches, Normalize
    from imageclf.fit import Epoch, check_finite, fit
    from imageclf.losses import LOSSES
    from imageclf.progress import Progress
    from imageclf.scoring import BATCH, score
    from imageclf.summary import as_table, summarize

    device, threads = runtime.choose_device(machine.device), runtime.set_threads(machine.threads)
    recorder.tags({"device": str(device), "threads": str(threads), "torch": torch.__version__})
    torch.manual_seed(runtime.derive(knobs.seed, 0))
    recipe = describe(knobs, data)
    net = checkpoint.build_net(recipe)
    table = as_table(summarize(net, data.image_shape))
    print(table, flush=True)
    recorder.text("net.txt", table)

    net, loss, normalize = net.to(device), LOSSES[knobs.loss], Normalize(data.normalization, data.whitening)
    augmentation = Augmentation(shift=knobs.shift, flip=knobs.flip, cutout=knobs.cutout, fill=data.mean_level)
    batches = Batches(data["train"], normalize, knobs.batch_size, device, augmentation=augmentation)
    scored = {split: Batches(data[split], normalize, BATCH, device) for split in ("train", "val") if split in data}
    settings = optim.Settings(
        lr=knobs.lr, momentum=knobs.momentum, nesterov=knobs.nesterov, weight_decay=knobs.weight_decay
    )
    epochs: list[Epoch] = []
    best, weights = None, {}
    with Progress(knobs.epochs, len(batches), bar=machine.progress) as progress:
        for epoch in fit(
            net,
            optim.OPTIMIZERS[knobs.optimizer](net, settings),
            optim.with_warmup(optim.SCHEDULES[knobs.schedule], knobs.warmup),
            loss,
            train=batches,
            val=scored.get("val"),
            epochs=knobs.epochs,
            seed=knobs.seed,
            label_smoothing=knobs.label_smoothing,
            autocast=runtime.autocast(knobs.precision, device),
            on_step=progress.step,
        ):
            progress.epoch(epoch)
            recorder.epoch(asdict(epoch))
            epochs.append(epoch)
            if best is None or epoch.better_than(best):
                best, weights = epoch, {name: tensor.cpu().clone() for name, tensor in net.state_dict().items()}
    assert best is not None

    net.load_state_dict(weights)
    found = {split: score(net, split_batches, loss) for split, split_batches in scored.items()}
    check_finite(found["train"].loss, "the trained net", knobs.lr)  # without validation nothing has looked at it yet
    scores = {split: {"loss": means.loss, "accuracy": means.accuracy} for split, means in found.items()}
    digest = checkpoint.save(paths.MODEL, weights, data.whitening, {**recipe, "epoch": best.number})
    reports.write_history(paths.HISTORY, [asdict(epoch) for epoch in epochs])
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
        "arguments": {key: getattr(knobs, key) for key in models.knobs(knobs.model)},
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
