"""Tests that no file can run code: every file that the project opens is replaced by malicious content.

The content would create a marker file. See test_sources.py for the calls that the sources must not contain.
"""

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import pickle  # noqa: TID251 - to create what must not run
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import encode, new_manifest, new_spec, tar_bytes, zip_bytes
from imports import ROOT
from PIL import Image

from imageclf import models, params, yaml12
from imageclf.contracts import dataset, model, pretrained
from imageclf.contracts.pretrained import Pretrained
from imageclf.core import errors, files, paths
from imageclf.download import pack
from imageclf.download.datasets import DATASETS, Archive
from imageclf.inference import checkpoint
from imageclf.preprocess import folder
from imageclf.study import recipes
from stages import preprocess

MARKER = Path("marker")


class Command:
    """An object that runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {MARKER}",)


PICKLE = pickle.dumps(Command())


@pytest.fixture(autouse=True)
def _no_marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Work in an empty folder; at the end the marker must not exist, and plain pickle must create it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    yield
    assert list(tmp_path.rglob(MARKER.name)) == []
    pickle.loads(PICKLE)
    assert MARKER.exists()


def array_of_objects() -> bytes:
    """Return an .npy file that contains the pickle."""
    stream = io.BytesIO()
    np.save(stream, np.array([Command()], dtype=object), allow_pickle=True)
    return stream.getvalue()


def tensors(header: bytes) -> bytes:
    """Return a safetensors file with this header."""
    return struct.pack("<Q", len(header)) + header + PICKLE


PAYLOADS = {
    "pickle": PICKLE,
    "pickle by protocol 0": pickle.dumps(Command(), 0),
    "array of objects": array_of_objects(),
    "npz of a pickle": zip_bytes({"data.npy": array_of_objects()}),
    "torch's archive": zip_bytes({"archive/data.pkl": PICKLE}),
    "safetensors of a pickle": tensors(PICKLE),
    "safetensors that name one": tensors(json.dumps({"__metadata__": {"x": PICKLE.hex()}}).encode()),
    "gzip": gzip.compress(PICKLE),
    "bzip2": bz2.compress(PICKLE),
    "xz": lzma.compress(PICKLE),
    "tar": tar_bytes({"train/a/0.png": PICKLE}),
    "CIFAR's archive": gzip.compress(tar_bytes({"cifar-10-batches-py/test_batch": PICKLE})),
    "YAML": b"!!python/object/apply:os.system ['touch marker']",
    "expression": b"__import__('os').system('touch marker')",
}

# --- files that stages read, each with a forged manifest that has the right checksum ---

ARGUMENTS = {"hidden": [8], "dropout": 0.0}


def read_raw(name: str, payload: bytes) -> None:
    """Read the archives of a data set whose expected checksums are those of the payload."""
    paths.RAW.mkdir(parents=True)
    source = DATASETS[name]
    for file in source.files:
        (paths.RAW / file).write_bytes(payload)
    archive = Archive(hashlib.sha256(payload).hexdigest(), len(payload))
    forged = replace(source, files=dict.fromkeys(source.files, archive))
    settings = params.load(ROOT / paths.PARAMS)
    chosen = settings.of(params.PreprocessParams).model_copy(update={"dataset": name})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DATASETS, name, forged)
        raw = preprocess.read_raw(chosen, settings.runtime)
        for images in raw.splits.values():
            list(images.chunks())


def read_packed(payload: bytes) -> None:
    """Read the tar of packed images."""
    paths.RAW.mkdir(parents=True)
    (paths.RAW / "images.tar").write_bytes(payload)
    digest = files.sha256(paths.RAW / "images.tar")
    members = [["train/a/0.png", 0, len(payload)], ["train/b/0.png", 0, len(payload)]]
    manifest = {"classes": ["a", "b"], "members": members, "skipped": [], "files": {"images.tar": digest}}
    files.write_manifest(paths.RAW / "manifest.json", manifest)
    folder.read(paths.RAW, 8, workers=1, progress=False)


def read_arrays(payload: bytes) -> None:
    """Read the prepared arrays."""
    paths.PROCESSED.mkdir(parents=True)
    names = [*dataset.split_files("train"), dataset.PERMUTATION, dataset.WHITENING, dataset.WHITENING_MEAN]
    for name in names:
        (paths.PROCESSED / name).write_bytes(payload)
    digest = files.sha256(paths.PROCESSED / names[0])
    dataset.write_manifest(paths.PROCESSED, new_manifest(files=dict.fromkeys(names, digest)))
    data = dataset.read(paths.PROCESSED)
    found = []
    for read in (lambda: data["train"].labels, lambda: data.permutation, lambda: (data.whitening or [None])[0]):
        with suppress(ValueError, AttributeError):  # numpy opens a zip lazily; that object has no labels
            found.append(read())
    assert not any(isinstance(array, np.ndarray) for array in found)
    raise ValueError("no reader returned an array")


def read_model(payload: bytes) -> None:
    """Read the weights and the whitening."""
    spec = new_spec()
    net = models.build(spec.model, spec.image_shape, len(spec.classes), **spec.arguments)
    model.write(paths.MODEL, spec, net.state_dict(), None)
    signed = files.read_manifest(paths.MODEL_SPEC, made_by="train", parse=dict)
    whitening = paths.MODEL / model.WHITENING
    whitening.write_bytes(payload)
    forged = {**signed, "whitening_sha256": files.sha256(whitening)}
    del forged["sha256"]
    files.write_manifest(paths.MODEL_SPEC, forged)
    with pytest.raises(Exception, match=r"."):
        checkpoint.load(paths.MODEL)
    paths.WEIGHTS.write_bytes(payload)
    files.write_manifest(paths.MODEL_SPEC, {**forged, "weights_sha256": files.sha256(paths.WEIGHTS)})
    checkpoint.load(paths.MODEL)


def read_pretrained(payload: bytes) -> None:
    """Read a file of learned weights, by both of its names."""
    for name in ("weights.pth", "weights.safetensors"):
        (paths.PRETRAINED / name).parent.mkdir(parents=True, exist_ok=True)
        (paths.PRETRAINED / name).write_bytes(payload)
        written = pretrained.write(paths.PRETRAINED, Pretrained(source="mine"), name)
        with pytest.raises(errors.UserError, match="pretrained: mine is not "):
            pretrained.read_tensors(paths.PRETRAINED, written)
    raise errors.UserError("refused by both readers")


def read_manifests(payload: bytes) -> None:
    """Read a JSON manifest."""
    path = Path("manifest.json")
    path.write_bytes(payload)
    files.read_manifest(path, made_by="train", parse=dict)


def read_yaml(payload: bytes) -> None:
    """Read params.yaml and recipes.yaml."""
    for path, read in ((paths.PARAMS, params.load), (recipes.RECIPES, recipes.read)):
        path.write_bytes(payload)
        with pytest.raises(errors.UserError):
            read(path)
    raise errors.UserError("refused by both readers")


def read_origin(payload: bytes) -> None:
    """Pack a tar or zip of your own images."""
    Path("origin").write_bytes(payload)
    pack.pack(Path("origin"), paths.RAW, progress=False)


READERS: dict[str, Callable[[bytes], None]] = {
    **{name: lambda payload, name=name: read_raw(name, payload) for name in DATASETS},
    "images.tar": read_packed,
    "arrays": read_arrays,
    "model": read_model,
    "learned weights": read_pretrained,
    "JSON": read_manifests,
    "YAML": read_yaml,
    "archive of your own images": read_origin,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.filterwarnings("ignore")
def test_a_payload_is_refused_and_never_runs(reader: str, payload: str) -> None:
    with pytest.raises(Exception, match=r"."):
        READERS[reader](PAYLOADS[payload])


# --- YAML's tags ---


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.system [touch marker]",
        "!!python/object/apply:subprocess.call [[touch, marker]]",
        "!!python/object/apply:builtins.eval [\"open('marker', 'w')\"]",
        "!!python/object/new:os.system [touch marker]",
        "!!python/object:imageclf.params.Params {}",
        "!!python/name:os.system",
        "!!python/module:os",
        "!!python/tuple [1, 2]",
        "!<tag:yaml.org,2002:python/object/apply:os.system> [touch marker]",
    ],
)
def test_a_tag_of_python_is_refused(tag: str) -> None:
    committed = (ROOT / paths.PARAMS).read_text()
    paths.PARAMS.write_text(committed.replace("lr: 0.001", f"lr: {tag}"))
    with pytest.raises(errors.UserError, match=r"could not determine a constructor for the tag .* \(line \d+\)"):
        params.load()
    recipes.RECIPES.write_text((ROOT / recipes.RECIPES).read_text() + f"  more:\n    lr: {tag}\n")
    with pytest.raises(errors.UserError, match="could not determine a constructor"):
        recipes.read()
    with pytest.raises(errors.UserError, match="could not determine a constructor"):
        recipes.parse_changes([f"lr={tag}"])


# --- names ---

NAMES = [
    "; touch marker",
    "$(touch marker)",
    "`touch marker`",
    "| touch marker",
    "a\nb",
    "-rf",
    "--help",
    "%s{}",
    "${lr}",
]


@pytest.mark.parametrize("form", ["directory", "tar", "zip"])
def test_names_stay_text_from_the_archive_to_the_plots(form: str) -> None:
    content = encode(Image.new("RGB", (8, 8), (9, 99, 199)))
    for name in NAMES:
        for number in range(6):
            image = Path("origin", "train", name, f"{number}{name}.png")
            image.parent.mkdir(parents=True, exist_ok=True)
            image.write_bytes(content)
    origin = Path("origin")
    if form != "directory":
        origin = Path(shutil.make_archive("packed", form, "origin"))
    pack.pack(origin, paths.RAW, progress=False)
    data = folder.read(paths.RAW, None, workers=1, progress=False)
    assert data.classes == tuple(sorted(NAMES))
    write_reports(list(data.classes))
    lines = paths.PREDICTIONS.read_text()
    assert all(name in lines for name in NAMES)


def write_reports(classes: list[str]) -> None:
    """Write all tables and plots that contain class names."""
    from imageclf.evaluation import plots, quality, tables

    labels = np.arange(len(classes))
    probabilities = np.full((len(classes), len(classes)), 1 / len(classes), np.float32)
    tables.write_predictions(paths.PREDICTIONS, classes, labels, probabilities)
    tables.write_per_class(paths.PER_CLASS, classes, quality.per_class(np.eye(len(classes), dtype=np.int64)))
    plots.plot_confusion(paths.PLOTS / "confusion.png", classes, np.eye(len(classes), dtype=np.int64))
    images = np.zeros((8, 3, 8, 8), np.uint8)
    plots.plot_predictions(paths.PLOTS / "samples.png", images, labels[:8], probabilities[:8], classes)


def test_no_parameter_reaches_a_command_line() -> None:
    """DVC inserts `${...}` into a command without quoting."""
    stages = yaml12.read(ROOT / "dvc.yaml")["stages"]
    assert {name: stage["cmd"] for name, stage in stages.items()} == {
        name: f"exec python -m stages.{name}" for name in stages
    }
