"""Fit a net to data/processed and keep the epoch that validation likes best: `python -m stages.train`.

torch is imported after the parameters are checked: a typo is told in half a second, not in three.
"""

from dataclasses import asdict

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
    """Build, fit, score and write."""
    import torch

    from imageclf import checkpoint, files, models, reports, runtime, scoring
    from imageclf.batches import Batches
    from imageclf.fit import Epoch, fit
    from imageclf.losses import LOSSES
    from imageclf.optim import OPTIMIZERS, SCHEDULES
    from imageclf.progress import Progress

    device, threads = runtime.choose_device(machine.device), runtime.set_threads(machine.threads)
    recorder.tags({"device": str(device), "threads": str(threads), "torch": torch.__version__})
    arguments = {key: getattr(knobs, key) for key in models.knobs(knobs.model)}
    torch.manual_seed(runtime.derive(knobs.seed, 0))
    net = models.build(knobs.model, data.image_shape, len(data.classes), **arguments).to(device)
    loss = LOSSES[knobs.loss]
    train_split = data["train"]
    train_batches = Batches(train_split, data.normalization, knobs.batch_size, device)
    val_batches = Batches(data["val"], data.normalization, scoring.BATCH, device) if "val" in data else None

    history: list[Epoch] = []
    best, weights = None, {}
    with Progress(knobs.epochs, len(train_batches), bar=machine.progress) as progress:
        for epoch in fit(
            net,
            OPTIMIZERS[knobs.optimizer](net.parameters(), knobs.lr, knobs.momentum, knobs.weight_decay),
            SCHEDULES[knobs.schedule],
            loss,
            train=train_batches,
            val=val_batches,
            epochs=knobs.epochs,
            seed=knobs.seed,
            autocast=runtime.autocast(knobs.precision, device),
            on_step=progress.step,
        ):
            progress.epoch(epoch)
            history.append(epoch)
            recorder.epoch(asdict(epoch))
            if best is None or epoch.better_than(best):
                best = epoch
                weights = {name: tensor.detach().cpu().clone() for name, tensor in net.state_dict().items()}
    assert best is not None

    net.load_state_dict(weights)
    whole_train = Batches(train_split, data.normalization, scoring.BATCH, device)
    scored = {"train": scoring.score(net, whole_train, loss)}
    if val_batches is not None:
        scored["val"] = scoring.score(net, val_batches, loss)
    scores = {split: {"loss": found.loss, "accuracy": found.accuracy} for split, found in scored.items()}
    recipe = {
        "model": knobs.model,
        "arguments": arguments,
        "image_shape": data.image_shape,
        "classes": data.classes,
        "normalization": data.normalization,
        "permutation": None if data.permutation is None else data.permutation.tolist(),
        "loss": knobs.loss,
        "data_sha256": data.sha256,
        "epoch": best.number,
    }
    digest = checkpoint.save(paths.MODEL, weights, recipe)
    reports.write_history(paths.HISTORY, [asdict(epoch) for epoch in history])
    files.write_json(paths.TRAIN_SCORES, {**scores, "epoch": best.number})
    recorder.tags({"model_sha256": digest})
    recorder.scores({"best": scores}, step=best.number)
    recorder.artifacts([paths.HISTORY, paths.TRAIN_SCORES])
    recorder.model(paths.MODEL, splits.unpermute(train_split.images[:2], data.permutation).tolist(), best.number)


if __name__ == "__main__":
    errors.run(main)
