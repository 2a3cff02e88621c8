"""A net as a table: output shape, parameters, cost and receptive field of each layer."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

WINDOWS = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)


@dataclass(frozen=True)
class Layer:
    """A layer with parameters, or a pool. `output` is its output shape for one image, without the batch axis.

    `multiply_adds` counts convolutions and dense layers for one image; normalizations, pools and biases count zero,
    as in the papers. `receptive_field` is the side, in input pixels, of the square that one output value depends on.
    If it is larger than the image, it includes padding.
    """

    name: str
    kind: str
    output: tuple[int, ...]
    parameters: int
    multiply_adds: int
    receptive_field: int


def describe_layers(net: nn.Module, image_shape: tuple[int, int, int]) -> list[Layer]:
    """Return the layers of `net` in the order in which they run on images of `image_shape` (channels, height, width).

    A copy of the net runs once, on the CPU and in eval mode; the net and torch's random generator do not change. The
    receptive field is 1 + the sum of (window - 1) * (product of the strides before) over the layers that are modules.
    If branches join, the largest counts. The receptive field of a dense layer is the whole image.
    """
    net = copy.deepcopy(net).cpu().eval()
    layers: list[Layer] = []

    def record(name: str, module: nn.Module, inputs: tuple["_TrackedTensor", ...], output: "_TrackedTensor") -> None:
        output.receptive_field = _receptive_field(module, inputs[0], output, image_side=max(image_shape[1:]))
        shape, parameters = tuple(output.shape[1:]), sum(own.numel() for own in module.parameters(recurse=False))
        layers.append(
            Layer(name, _kind(module), shape, parameters, _multiply_adds(module, shape), output.receptive_field.size)
        )

    for name, module in net.named_modules():
        if isinstance(module, POOLS) or any(True for _ in module.parameters(recurse=False)):
            module.register_forward_hook(partial(record, name))
    images = torch.zeros(2, *image_shape).as_subclass(_TrackedTensor)
    images.receptive_field = _ReceptiveField(1, 1)
    with torch.no_grad():
        net(images)
    return layers


def as_table(layers: list[Layer]) -> str:
    """Return the layers as lines of aligned columns, with headings and totals."""
    rows = [("layer", "kind", "output", "parameters", "multiply-adds", "receptive field")]
    for layer in layers:
        shape = "x".join(map(str, layer.output))
        numbers = f"{layer.parameters:,}", f"{layer.multiply_adds:,}", str(layer.receptive_field)
        rows.append((layer.name, layer.kind, shape, *numbers))
    parameters, multiply_adds = sum(layer.parameters for layer in layers), sum(layer.multiply_adds for layer in layers)
    rows.append(("total", "", "", f"{parameters:,}", f"{multiply_adds:,}", ""))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(_line(row, widths) for row in rows)


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    """Return one line of the table: names aligned left, numbers aligned right."""
    texts, numbers = zip(row[:2], widths[:2], strict=True), zip(row[2:], widths[2:], strict=True)
    cells = [text.ljust(width) for text, width in texts] + [number.rjust(width) for number, width in numbers]
    return "  ".join(cells).rstrip()


class _ReceptiveField(NamedTuple):
    """Side of a receptive field, and `jump`, the distance between the centers of neighboring ones, in input pixels."""

    size: int
    jump: int


class _TrackedTensor(Tensor):
    """A tensor with the receptive field of its values.

    A result of several such tensors, e.g. a residual sum or a concatenation, gets the largest receptive field.
    """

    receptive_field: _ReceptiveField

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = super().__torch_function__(func, types, args, kwargs)
        for tensor in _tracked(result):
            tensor.receptive_field = max(
                source.receptive_field for source in _tracked((args, *(kwargs or {}).values()))
            )
        return result


def _tracked(value: object) -> Iterator[_TrackedTensor]:
    """Yield the tracked tensors in an argument or a result, which may be a nested list or tuple."""
    if isinstance(value, _TrackedTensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tracked(part)


def _receptive_field(
    module: nn.Module, source: _TrackedTensor, output: _TrackedTensor, image_side: int
) -> _ReceptiveField:
    """Return the receptive field of a module's output; if a window is not square, its longer side counts."""
    size, jump = source.receptive_field
    if isinstance(module, nn.Linear):
        return _ReceptiveField(max(size, image_side), jump)
    if isinstance(module, WINDOWS):
        dilation = 1 if isinstance(module, nn.AvgPool2d) else max(_pair(module.dilation))
        window, stride = dilation * (max(_pair(module.kernel_size)) - 1) + 1, max(_pair(module.stride))
    elif isinstance(module, nn.AdaptiveAvgPool2d):
        window = stride = max(before // after for before, after in zip(source.shape[2:], output.shape[2:], strict=True))
    else:
        return output.receptive_field
    return _ReceptiveField(size + (window - 1) * jump, jump * stride)


def _multiply_adds(module: nn.Module, output: tuple[int, ...]) -> int:
    """Return the number for one image: a convolution uses each weight once per output position, a dense layer once."""
    if isinstance(module, nn.Conv2d):
        return module.weight.numel() * math.prod(output[1:])
    return module.weight.numel() if isinstance(module, nn.Linear) else 0


def _kind(module: nn.Module) -> str:
    """Return the class name, for a window with its size and stride: `Conv2d 3x3`, `MaxPool2d 2x2/2`."""
    kind = type(module).__name__
    if not isinstance(module, WINDOWS):
        return kind
    stride = max(_pair(module.stride))
    return f"{kind} {'x'.join(map(str, _pair(module.kernel_size)))}" + (f"/{stride}" if stride > 1 else "")


def _pair(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value, value)
