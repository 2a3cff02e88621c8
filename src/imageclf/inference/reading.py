"""Decode an image file to the raw pixels that a model takes: numpy and Pillow only, for processes without torch."""

from imageclf.contracts.preparation import Shape
from imageclf.contracts.raw import Pixels
from imageclf.core.errors import UserError
from imageclf.preprocess import images, transform


class InputError(UserError):
    """An input that gives no prediction; the message is one sentence."""


def read(data: bytes, raw_shape: Shape, gray16_bits: int) -> Pixels:
    """Decode an image file as preprocess does, to pixels of `raw_shape`: channels, height, width.

    Raises `InputError`.
    """
    channels, height, width = raw_shape
    try:
        pixels = images.decode_to_size(data, height, width, gray16_bits)
    except images.UnreadableError as error:
        raise InputError(str(error)) from None
    return transform.to_gray(pixels[None])[0] if channels == 1 else pixels
