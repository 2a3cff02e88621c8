"""Tests of the path from an image to a prediction: it does what preprocess and evaluate do."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from test_checkpoint import CLASSES, MEANS, STDS, made_whitening, new_net, save

from imageclf.contracts.preparation import Preparation, Shape
from imageclf.inference.predictor import Predictor
from imageclf.inference.reading import InputError
from imageclf.preprocess import transform

CPU = torch.device("cpu")
PREPARATIONS = {
    "unchanged": Preparation(),
    "gray": Preparation(grayscale=True),
    "resized and padded": Preparation(image_size=6, pad=1),
    "permuted": Preparation(permute_seed=1),
    "everything": Preparation(grayscale=True, image_size=6, pad=1, permute_seed=1),
}

pytestmark = pytest.mark.usefixtures("one_thread")


def raw_images(count: int, shape: Shape) -> NDArray[np.uint8]:
    return np.random.default_rng(2).integers(256, size=(count, *shape), dtype=np.uint8)


def predictor(folder: Path, raw_shape: Shape, preparation: Preparation, *, whitened: bool = False) -> Predictor:
    """Return a predictor whose net was built for the prepared images."""
    image_shape = preparation.output_shape(raw_shape)
    order = transform.draw_permutation(preparation, image_shape)
    changes: dict[str, Any] = {
        "raw_shape": raw_shape,
        "image_shape": image_shape,
        "preparation": preparation,
        "permutation": None if order is None else order.tolist(),
        "normalization": ((MEANS * 2)[: image_shape[0]], (STDS * 2)[: image_shape[0]]),
    }
    save(folder, whitening=made_whitening() if whitened else None, **changes)
    return Predictor.load(folder, CPU)


@pytest.mark.parametrize("whitened", [False, True], ids=["plain", "whitened"])
@pytest.mark.parametrize("permuted", [False, True], ids=["in place", "permuted"])
def test_probabilities_are_those_of_the_net_on_prepared_and_normalized_pixels(
    permuted: bool, whitened: bool, tmp_path: Path
) -> None:
    preparation = PREPARATIONS["permuted" if permuted else "unchanged"]
    raw = raw_images(5, (2, 8, 8))
    order = np.random.default_rng(1).permutation(64) if permuted else np.arange(64)
    values = raw.reshape(5, 2, 64)[:, :, order].reshape(5, 128) / 255
    if whitened:
        mean, matrix = made_whitening()
        values = (values - mean) @ matrix
    normalized = (values.reshape(5, 2, 8, 8) - np.reshape(MEANS, (2, 1, 1))) / np.reshape(STDS, (2, 1, 1))
    expected = new_net().eval()(torch.from_numpy(normalized).float()).softmax(dim=1).detach().numpy()
    found = predictor(tmp_path, (2, 8, 8), preparation, whitened=whitened).probabilities(raw)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("preparation", PREPARATIONS.values(), ids=PREPARATIONS)
def test_raw_pixels_are_prepared_as_preprocess_stores_them(preparation: Preparation, tmp_path: Path) -> None:
    raw = raw_images(5, (3, 9, 14))
    found = predictor(tmp_path, (3, 9, 14), preparation)
    order = transform.draw_permutation(preparation, found.spec.image_shape)
    stored = transform.apply(preparation, order, raw)
    assert stored.shape[1:] == found.spec.image_shape
    assert np.array_equal(found.probabilities(raw), found.probabilities_of_prepared(torch.from_numpy(stored)))


@pytest.mark.parametrize("size", [1, 2, 3, 64])
def test_a_prediction_does_not_depend_on_the_batch(size: int, tmp_path: Path) -> None:
    images = raw_images(64, (2, 8, 8))
    found = predictor(tmp_path, (2, 8, 8), PREPARATIONS["permuted"])
    np.testing.assert_allclose(
        found.probabilities(images[:size]), found.probabilities(images)[:size], rtol=0, atol=1e-6
    )


def test_a_prediction_names_its_class_and_all_probabilities(tmp_path: Path) -> None:
    found = predictor(tmp_path, (2, 8, 8), PREPARATIONS["unchanged"])
    images = raw_images(3, (2, 8, 8))
    for prediction, row in zip(found.predict(images), found.probabilities(images), strict=True):
        assert prediction.probabilities == dict(zip(CLASSES, map(float, row), strict=True))
        assert (prediction.name, prediction.probability) == max(
            prediction.probabilities.items(), key=lambda item: item[1]
        )


def file_of(image: NDArray[np.uint8], kind: str = "PNG") -> bytes:
    """Return an image file of pixels (channels, height, width)."""
    file = io.BytesIO()
    pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 14)], ids=str)
def test_a_file_of_the_right_size_gives_its_own_pixels(shape: Shape, tmp_path: Path) -> None:
    found = predictor_for(tmp_path, shape)
    image = raw_images(1, shape)[0]
    assert np.array_equal(found.read(file_of(image)), image)
    text = base64.b64encode(file_of(image)).decode()
    assert np.array_equal(found.read_base64(text), image)
    assert np.array_equal(found.read_base64(f"data:image/png;base64,{text}"), image)


def predictor_for(folder: Path, shape: Shape) -> Predictor:
    """Return a predictor for raw images of a shape; its net is never used."""
    save(folder, raw_shape=shape)
    return Predictor.load(folder, CPU)


def test_a_photo_of_another_size_is_resized_as_preprocess_does(tmp_path: Path) -> None:
    photo = raw_images(1, (3, 40, 30))[0]
    expected = Image.fromarray(photo.transpose(1, 2, 0)).resize((14, 9), Image.Resampling.BILINEAR)
    found = predictor_for(tmp_path / "color", (3, 9, 14)).read(file_of(photo))
    assert np.array_equal(found, np.asarray(expected).transpose(2, 0, 1))
    gray = predictor_for(tmp_path / "gray", (1, 9, 14)).read(file_of(photo))
    assert np.array_equal(gray, transform.to_gray(found[None])[0])


@pytest.mark.parametrize(
    ("text", "reason"),
    [("%%%", "not base64"), ("", "not a PNG"), (base64.b64encode(b"no image").decode(), "not a PNG")],
)
def test_what_is_not_an_image_gets_one_sentence(text: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        predictor_for(tmp_path, (3, 9, 14)).read_base64(text)
    assert "\n" not in str(caught.value)
