"""A lower bound on the time of an epoch: its multiply-adds, at the speed of a large matrix product.

Loading, loss, optimizer and small matrices are left out. A real epoch takes longer because of these, or because its
own matrix products are too small to run at that speed.
"""

import time
from collections.abc import Sequence

import torch

from imageclf.tracking.summary import Layer

SIDE = 2048
REPEATS = 10


def multiply_adds(layers: Sequence[Layer], images: int) -> int:
    """Return the multiply-adds of training on `images` once: forward, and the gradients of weights and inputs.

    These are three times those of the forward pass, except that the first layer needs no gradient of its inputs.
    """
    forward = [layer.multiply_adds for layer in layers if layer.multiply_adds]
    return images * (3 * sum(forward) - forward[0])


def product_rate(side: int = SIDE, repeats: int = REPEATS) -> float:
    """Return multiply-adds per second of a float32 product of two `side` x `side` matrices, the best of `repeats`."""
    first, second = torch.rand(side, side), torch.rand(side, side)
    seconds: list[float] = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        torch.mm(first, second)
        seconds.append(time.perf_counter() - start)
    return side**3 / min(seconds[1:])
