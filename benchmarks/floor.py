"""The least that an epoch can take: its multiply-adds, at the rate of a large matrix product.

No loader, no loss, no optimizer, no small matrices: what is between this and a real epoch is overhead, or a product
too small to run at that rate.
"""

import time
from collections.abc import Sequence

import torch

from imageclf.summary import Layer

SIDE = 2048
REPEATS = 10


def multiply_adds(layers: Sequence[Layer], images: int) -> int:
    """Those of training on `images` once: forward, gradient of the weights, gradient of the inputs.

    Three times the forward pass, but that nobody asks for the gradient of the images themselves.
    """
    forward = [layer.multiply_adds for layer in layers if layer.multiply_adds]
    return images * (3 * sum(forward) - forward[0])


def product_rate(side: int = SIDE, repeats: int = REPEATS) -> float:
    """Multiply-adds a second of a float32 product of two `side` x `side` matrices, the best of `repeats`."""
    first, second = torch.rand(side, side), torch.rand(side, side)
    seconds: list[float] = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        torch.mm(first, second)
        seconds.append(time.perf_counter() - start)
    return side**3 / min(seconds[1:])
