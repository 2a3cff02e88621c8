"""The parts of a training, made from its parameters and its data: net, optimizer, batches and epochs."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn

from imageclf import models
from imageclf.contracts import model, pretrained
from imageclf.contracts.dataset import Prepared, Split
from imageclf.contracts.model import ModelSpec
from imageclf.contracts.pretrained import Pretrained
from imageclf.contracts.shards import ShardedImages
from imageclf.core import paths
from imageclf.params import TrainParams
from imageclf.training import optim, runtime
from imageclf.training.fit import Epoch, OnStep, fit
from imageclf.training.loading.augment import Augmentation
from imageclf.training.loading.batches import Batches, Normalize
from imageclf.training.losses import LOSSES, balanced_weights
from imageclf.training.optim import Optimizer
from imageclf.training.ranks import Ranks
from imageclf.training.resume import TrainingState
from imageclf.training.transfer import transfer


def build(options: TrainParams, data: Prepared, learned: Pretrained) -> tuple[nn.Module, ModelSpec]:
    """Return the net, with the learned weights if there are any, and its spec."""
    weights = pretrained.read_tensors(paths.PRETRAINED, learned)
    arguments = {name: getattr(options, name) for name in models.parameter_names(options.model)}
    arguments |= models.arguments_for(options.model, weights)
    spec = model.describe(
        data, model=options.model, arguments=arguments, loss=options.loss, parameters=options.model_dump()
    )
    net = models.build(spec.model, spec.image_shape, len(spec.classes), **arguments)
    if learned.file is None:
        return net, spec
    print(transfer(net, weights, spec.model).sentences())
    spec = replace(spec, normalization=learned.normalization_for(data), pretrained_sha256=learned.weights_sha256)
    mean, std = (", ".join(f"{value:.3f}" for value in values) for values in spec.normalization)
    print(f"normalization: mean {mean}, std {std}", flush=True)
    return net, spec


def build_optimizer(options: TrainParams, net: nn.Module) -> Optimizer:
    """Return the optimizer of the net's weights."""
    settings = optim.OptimizerOptions(
        lr=options.lr, momentum=options.momentum, nesterov=options.nesterov, weight_decay=options.weight_decay
    )
    return optim.OPTIMIZERS[options.optimizer](net, settings)


def training_batches(
    options: TrainParams, data: Prepared, normalize: Normalize, device: torch.device, ranks: Ranks
) -> Batches:
    """Return the augmented batches of the train split, which stays on the disk if it is large."""
    augmentation = Augmentation(
        crop=options.crop,
        color_jitter=options.color_jitter,
        shift=options.shift,
        flip=options.flip,
        cutout=options.cutout,
        fill=data.mean_level,
    )
    split = data["train"]
    resident, size = fits(split, device), f"{split.images.nbytes / 2**30:.1f} GiB"
    if isinstance(split.images, ShardedImages):
        print(f"the train images ({size}) are fetched from {split.images.shards.address} in shards", flush=True)
    elif not resident:
        print(f"the images ({size}) are read from the disk: they exceed half of the free memory of the device")
    return Batches(
        split, normalize, options.batch_size, device, augmentation=augmentation, resident=resident, ranks=ranks
    )


def fits(split: Split, device: torch.device) -> bool:
    """Return True if the images of a split are on this machine and take at most half of the device's free memory."""
    return not isinstance(split.images, ShardedImages) and split.images.nbytes <= runtime.free_memory(device) / 2


def fit_from(
    state: TrainingState,
    options: TrainParams,
    data: Prepared,
    *,
    train: Batches,
    val: Batches | None = None,
    on_step: OnStep | None = None,
) -> Iterator[Epoch]:
    """Yield the epochs of the training from the position of its state on."""
    balanced = options.class_weights == "balanced"
    return fit(
        state.net,
        state.optimizer,
        optim.with_warmup(optim.SCHEDULES[options.schedule], options.warmup),
        LOSSES[options.loss],
        train=train,
        val=val,
        epochs=options.epochs,
        seed=options.seed,
        label_smoothing=options.label_smoothing,
        freeze_epochs=options.freeze_epochs,
        class_weights=balanced_weights(data["train"].labels, len(data.manifest.classes)) if balanced else None,
        autocast=runtime.autocast(options.precision, train.device),
        compiled=options.compile,
        start=state.position,
        on_step=on_step,
    )


def follow(state: TrainingState, options: TrainParams, data: Prepared, batches: Batches) -> None:
    """Take part in the training of rank 0, which reads and writes the state."""
    state.restore()
    if not state.stalled(options.patience):
        for _ in fit_from(state, options, data, train=batches):
            if batches.ranks.any(False):
                return
