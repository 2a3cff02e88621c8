"""Linear layer whose large products run with AVX-512 on AMD processors too.

torch computes float32 products on a CPU with MKL, which does not use AVX-512 on AMD. oneDNN does: one core of an AMD
EPYC computes 220 GFLOP/s in place of 105. On an Intel core both are equally fast, so MKL stays.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from imageclf.core import cores

MIN_FLOPS = 4_000_000
"""Smallest product, in floating-point operations, that oneDNN computes: below it, the calls cost more than the gain."""


class Linear(nn.Linear):
    """`torch.nn.Linear` with the same weights and initialization; results differ in the last digits on AMD only."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self._large_by_onednn = mkl_is_slow()

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - its name in torch
        """Return input (n, in_features) @ weight.T + bias."""
        if self._large_by_onednn and _is_large(input, self.out_features):
            return torch.add(_Product.apply(input, self.weight), self.bias)
        return super().forward(input)


def _is_large(values: Tensor, out_features: int) -> bool:
    return (
        values.device.type == "cpu"
        and values.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_exporting()
        and 2 * values.numel() * out_features >= MIN_FLOPS
    )


@cache
def mkl_is_slow() -> bool:
    """Return True on an AMD processor with AVX-512 if this build of torch has oneDNN."""
    amd = cores.processor_vendor() == "AuthenticAMD"
    return amd and "avx512f" in cores.processor_flags() and torch.backends.mkldnn.is_available()


_LIBRARY = torch.library.Library("imageclf", "DEF")
_LIBRARY.define("product(Tensor left, Tensor right) -> Tensor")


@torch.library.impl(_LIBRARY, "product", "CPU")
def _computed(left: Tensor, right: Tensor) -> Tensor:
    """Return left @ right.T, computed by oneDNN."""
    return torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], "")  # noqa: SLF001


@torch.library.register_fake("imageclf::product", lib=_LIBRARY)
def _shaped(left: Tensor, right: Tensor) -> Tensor:
    return left.new_empty(left.shape[0], right.shape[0])


_product = torch.ops.imageclf.product.default
"""An operator of its own, so that torch.compile does not look inside. `custom_op` would import the compiler: 0.9 s."""


class _Product(torch.autograd.Function):
    """values (n, d) @ weight (k, d).T with its gradients, each one product."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(values, weight)
        return _product(values, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor]:  # type: ignore[override]
        values, weight = ctx.saved_tensors
        for_input = _product(gradient, weight.t()) if ctx.needs_input_grad[0] else None
        return for_input, _product(gradient.t(), values.t())
