"""Fit a net to data/processed and keep the epoch with the best validation scores: `python -m stages.train`.

torch is imported after the parameters are checked, so that a wrong parameter is reported without that delay.
"""

import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING

from imageclf import params, yaml12
from imageclf.cluster import launch
from imageclf.contracts import dataset, history, model, pretrained
from imageclf.contracts.dataset import Prepared
from imageclf.contracts.model import ModelSpec
from imageclf.contracts.pretrained import Pretrained
from imageclf.core import cores, files, memory, paths, process
from imageclf.core.errors import UserError
from imageclf.params import RuntimeParams, TrainParams
from imageclf.tracking import events
from imageclf.tracking.client import Recorder
from imageclf.training import ranks, resume, slots

if TYPE_CHECKING:
    from imageclf.tracking.progress import Progress
    from imageclf.training.fit import Epoch, Position
    from imageclf.training.loading.batches import Batches


def main() -> None:
    """Write data/model, metrics/history.csv and metrics/train.json; record the run."""
    settings = params.load()
    options, machine = settings.of(TrainParams), settings.runtime
    data = dataset.read(paths.PROCESSED, machine.shard_cache)
    learned = pretrained.read(paths.PRETRAINED)
    if machine.launcher == "ray":
        identity = training_key(options, machine.model_copy(update={"threads": 1}), data, learned)
        if launch.IDENTITY not in os.environ:
            launch.train(identity)
            return
        machine = launch.settings_of_rank(machine, identity)
    key = training_key(options, machine, data, learned)
    if ranks.rank():
        ranks.end_with_rank_0()
        train(options, machine, data, slots.shared_slot(key), Recorder(None), learned=learned)
        return
    with (
        slots.slot(key) as slot,
        events.training_run(key, resumes=slot.exists(), enabled=machine.tracking) as recorder,
    ):
        events.training_started(recorder, settings, data.manifest)
        spec = train(options, machine, data, slot, recorder, learned=learned)
        assert spec is not None
        events.training_ended(recorder, settings, data.manifest, spec)
        slot.clear()


def training_key(options: TrainParams, machine: RuntimeParams, data: Prepared, learned: Pretrained) -> str:
    """Return a digest of everything that determines the trained weights."""
    return resume.key_of(
        {
            "code": resume.code(yaml12.read(resume.CHECKOUT / paths.PIPELINE)["stages"]["train"]["deps"]),
            "params": options.model_dump(),
            "data": data.manifest.sha256,
            "pretrained": learned.sha256,
            "device": machine.device,
            "threads": cores.allowed_cores() if machine.threads == "auto" else machine.threads,
            "torch": version("torch"),
        }
    )


def train(
    options: TrainParams,
    machine: RuntimeParams,
    data: Prepared,
    slot: slots.Slot,
    recorder: Recorder,
    *,
    learned: Pretrained,
) -> ModelSpec | None:
    """Build the net, fit it, and write its best epoch; a rank other than 0 takes part, writes nothing, returns None."""
    if options.patience and "val" not in data:
        raise UserError("patience needs validation images; set val_fraction to 0.1, or leave patience empty")
    if machine.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Adam queries every GPU that torch sees, and fails if one is full
    import torch

    from imageclf.tracking.summary import as_table, describe_layers
    from imageclf.training import assemble, runtime
    from imageclf.training.loading.batches import Batches, Normalize
    from imageclf.training.scoring import BATCH_SIZE

    memory.keep_freed_memory()
    device, threads = runtime.choose_device(machine.device), runtime.set_threads(machine.threads)
    runtime.allow_tf32(device)
    torch.manual_seed(runtime.derive(options.seed, 0))
    net, spec = assemble.build(options, data, learned)
    layers = as_table(describe_layers(net, spec.image_shape))
    print(layers, flush=True)
    processes = ranks.count(machine.processes, net, device)
    if processes > 1 and machine.threads == "auto":
        threads = runtime.set_threads(max(1, threads // processes))
    settings = {"device": device, "threads": threads, "processes": processes, "torch": torch.__version__}
    events.net_built(recorder, layers, {key: str(value) for key, value in settings.items()})

    net = runtime.place(net, device)
    optimizer = assemble.build_optimizer(options, net)
    state = resume.TrainingState(
        net, optimizer, slot, save_every_s=60 * machine.checkpoint_minutes, processes=processes
    )
    normalize = Normalize(spec.normalization, data.whitening)
    with ranks.joined(processes, device) as place:
        batches = assemble.training_batches(options, data, normalize, device, place)
        if place.rank:
            assemble.follow(state, options, data, batches)
            return None
        scored = {"train": batches.resized(BATCH_SIZE)}
        if "val" in data:
            scored["val"] = Batches(
                data["val"], normalize, BATCH_SIZE, device, resident=assemble.fits(data["val"], device)
            )
        for epoch in fitted_epochs(state, options, machine, data, train=batches, val=scored.get("val")):
            history.write(paths.HISTORY, state.epochs[: epoch.number])
            events.epoch_ended(recorder, epoch)
            if machine.log_model_every and state.ends(epoch) and epoch.number % machine.log_model_every == 0:
                weights = net.state_dict()
                events.epoch_model(recorder, replace(spec, epoch=epoch.number), weights, data, machine.keep_models)
    return write(state, options, data, spec, scored)


def fitted_epochs(
    state: resume.TrainingState,
    options: TrainParams,
    machine: RuntimeParams,
    data: Prepared,
    *,
    train: "Batches",
    val: "Batches | None",
) -> Iterator["Epoch"]:
    """Yield each epoch after the state is saved; first those of an interrupted training.

    A signal stops the training at the end of a step, after the state is saved.
    """
    from imageclf.tracking.progress import Progress
    from imageclf.training import assemble

    if state.restore():
        print(f"resuming at epoch {state.position.epoch}, step {state.position.step + 1}", flush=True)
    yield from state.epochs
    if state.stalled(options.patience):
        return
    done = len(state.epochs) * len(train) + state.position.step
    with (
        Progress(options.epochs, len(train), done=done, bar=machine.progress) as progress,
        process.deferred_signals() as signals,
    ):
        on_step = partial(after_step, progress, state, signals)
        for epoch in assemble.fit_from(state, options, data, train=train, val=val, on_step=on_step):
            progress.epoch(epoch)
            state.save_epoch(epoch)
            yield epoch
            signals.stop_if_received()
            if train.ranks.any(state.stalled(options.patience)):
                assert state.best is not None
                best = state.best.number
                print(f"stopping: none of the last {options.patience} epochs was better than epoch {best} (patience)")
                return


def after_step(
    progress: "Progress", state: resume.TrainingState, signals: process.DeferredSignals, position: "Position"
) -> None:
    """Report the progress, and save the state if it is due or if a signal asks to stop."""
    progress.step(position)
    if signals.received or state.save_is_due():
        state.save_within_epoch(position)
        signals.stop_if_received()


def write(
    state: resume.TrainingState,
    options: TrainParams,
    data: Prepared,
    spec: ModelSpec,
    scored: "dict[str, Batches]",
) -> ModelSpec:
    """Score the weights of the best epoch; write them and their scores; return the written spec."""
    from imageclf.training.fit import check_finite
    from imageclf.training.losses import LOSSES
    from imageclf.training.scoring import score

    assert state.best is not None
    state.net.load_state_dict(state.best_weights)
    found = {split: score(state.net, batches, LOSSES[options.loss]) for split, batches in scored.items()}
    check_finite(found["train"].loss, "the trained net", options.lr)  # without a val split, this is the first check
    spec = model.write(paths.MODEL, replace(spec, epoch=state.best.number), state.best_weights, data.whitening)
    scores = {split: {"loss": means.loss, "accuracy": means.accuracy} for split, means in found.items()}
    files.write_json(paths.TRAIN_SCORES, {**scores, "epoch": spec.epoch})
    return spec


if __name__ == "__main__":
    process.run(main)
