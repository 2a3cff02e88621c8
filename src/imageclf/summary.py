"""A net as a table: what each layer puts out, holds, costs and sees."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

WINDOWS = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)


@dataclass(frozen=True)
class Layer:
    """One layer that holds parameters or pools. `output` is its shape for one image, without the batch.

    `multiply_adds` are those of convolutions and dense layers for one image; norms, pools and biases count nothing,
    as in the papers. `field` is the side, in input pixels, of the square that one output value depends on; where it
    is larger than the image, it reaches into the padding.
    """

    name: str
    kind: str
    output: tuple[int, ...]
    parameters: int
    multiply_adds: int
    field: int


def summarize(net: nn.Module, image_shape: tuple[int, int, int]) -> list[Layer]:
    """The layers of `net` in the order in which they run on `image_shape` (channels, height, width).

    A copy runs once, on the CPU and in eval mode: the net, its mode and torch's generator stay as they are. The field
    is arithmetic, 1 + the sum of (window - 1) * (product of the strides before), over the layers that are modules;
    where branches meet, the widest counts, and a dense layer sees the whole image.
    """
    twin = copy.deepcopy(net).cpu().eval()
    layers: list[Layer] = []

    def note(name: str, module: nn.Module, inputs: tuple["_Seeing", ...], output: "_Seeing") -> None:
        output.sight = _sight(module, inputs[0], output, image_side=max(image_shape[1:]))
        shape, parameters = tuple(output.shape[1:]), sum(own.numel() for own in module.parameters(recurse=False))
        layers.append(Layer(name, _kind(module), shape, parameters, _multiply_adds(module, shape), output.sight[0]))

    for name, module in twin.named_modules():
        if isinstance(module, POOLS) or any(True for _ in module.parameters(recurse=False)):
            module.register_forward_hook(partial(note, name))
    images = torch.zeros(2, *image_shape).as_subclass(_Seeing)
    images.sight = (1, 1)
    with torch.no_grad():
        twin(images)
    return layers


def as_table(layers: list[Layer]) -> str:
    """Lines of aligned columns, headings first and totals last."""
    rows = [("layer", "kind", "output", "parameters", "multiply-adds", "field")]
    for layer in layers:
        shape = "x".join(map(str, layer.output))
        rows.append(
            (layer.name, layer.kind, shape, f"{layer.parameters:,}", f"{layer.multiply_adds:,}", str(layer.field))
        )
    parameters, multiply_adds = sum(row.parameters for row in layers), sum(row.multiply_adds for row in layers)
    rows.append(("total", "", "", f"{parameters:,}", f"{multiply_adds:,}", ""))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(_line(row, widths) for row in rows)


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    """Names to the left, numbers to the right."""
    texts, numbers = zip(row[:2], widths[:2], strict=True), zip(row[2:], widths[2:], strict=True)
    cells = [text.ljust(width) for text, width in texts] + [number.rjust(width) for number, width in numbers]
    return "  ".join(cells).rstrip()


class _Seeing(Tensor):
    """A tensor that knows how far it sees: (receptive field, distance between two neighbours' fields), in pixels.

    Whatever is computed from several of them, a residual sum or a concatenation, sees as far as the widest.
    """

    sight: tuple[int, int]

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = super().__torch_function__(func, types, args, kwargs)
        for tensor in _seeing(result):
            tensor.sight = max(each.sight for each in _seeing((args, *(kwargs or {}).values())))
        return result


def _seeing(value: object) -> Iterator[_Seeing]:
    """The tensors in an argument or a result: itself, or what its lists and tuples hold."""
    if isinstance(value, _Seeing):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _seeing(part)


def _sight(module: nn.Module, seen: _Seeing, output: _Seeing, image_side: int) -> tuple[int, int]:
    """How far the module's output sees; of a window that is not square, its longer side counts."""
    field, step = seen.sight
    if isinstance(module, nn.Linear):
        return max(field, image_side), step
    if isinstance(module, WINDOWS):
        dilation = 1 if isinstance(module, nn.AvgPool2d) else max(_pair(module.dilation))
        window, stride = dilation * (max(_pair(module.kernel_size)) - 1) + 1, max(_pair(module.stride))
    elif isinstance(module, nn.AdaptiveAvgPool2d):
        window = stride = max(before // after for before, after in zip(seen.shape[2:], output.shape[2:], strict=True))
    else:
        return output.sight
    return field + (window - 1) * step, step * stride


def _multiply_adds(module: nn.Module, output: tuple[int, ...]) -> int:
    """Of one image: each weight of a convolution is used once a position, each of a dense layer once."""
    if isinstance(module, nn.Conv2d):
        return module.weight.numel() * math.prod(output[1:])
    return module.weight.numel() if isinstance(module, nn.Linear) else 0


def _kind(module: nn.Module) -> str:
    """The class, and of a window its size and stride: `Conv2d 3x3`, `MaxPool2d 2x2/2`."""
    kind = type(module).__name__
    if not isinstance(module, WINDOWS):
        return kind
    stride = max(_pair(module.stride))
    return f"{kind} {'x'.join(map(str, _pair(module.kernel_size)))}" + (f"/{stride}" if stride > 1 else "")


def _pair(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value, value)
