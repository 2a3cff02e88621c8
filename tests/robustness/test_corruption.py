"""Tests that damage is detected: 1,000 flipped bytes and 100 truncations, over every file that a stage reads.

Each must raise a `UserError` of one line, or be repaired to the right bytes. `pytest -n0 -rP` on this file shows how
many were detected.
"""

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import MadeArchives
from helpers import new_spec, prepare_with
from imports import ROOT
from safetensors.torch import save_file

from imageclf import models, params
from imageclf.contracts import dataset, model, pretrained
from imageclf.contracts.pretrained import Pretrained
from imageclf.contracts.raw import Images, RawData
from imageclf.core import files, paths
from imageclf.core.errors import UserError
from imageclf.download import fetch, pack
from imageclf.download.datasets import DATASETS, Archive
from imageclf.inference import checkpoint
from stages import preprocess

FLIPS, TRUNCATIONS = 1000, 100

Reader = Callable[[], object]
Subjects = list[tuple[list[Path], Reader]]
"""Pairs of files and the function that reads them."""


def archives_in(folder: Path) -> dict[str, Archive]:
    """Return the entries of a data set for the files in a folder."""
    return {path.name: Archive(files.sha256(path), path.stat().st_size) for path in sorted(folder.iterdir())}


def raw_archives(made: MadeArchives, monkeypatch: pytest.MonkeyPatch) -> Subjects:
    """Create published archives in data/raw, which preprocess reads."""
    shutil.copytree(made.folder, paths.RAW)
    monkeypatch.setitem(DATASETS, "mnist", replace(DATASETS["mnist"], files=archives_in(paths.RAW)))
    settings = params.load(ROOT / paths.PARAMS)
    chosen = settings.of(params.PreprocessParams).model_copy(update={"dataset": "mnist"})
    return [(sorted(paths.RAW.iterdir()), lambda: preprocess.read_raw(chosen, settings.runtime))]


def cached_archives(made: MadeArchives) -> Subjects:
    """Create the same archives in the cache, which download reads and repairs from the mirror."""
    source = replace(DATASETS["mnist"], files=archives_in(made.folder), addresses=(str(made.folder),))

    def read() -> None:
        fetch.fetch("mnist", source, Path("fetched"), None, progress=False)

    read()
    return [(sorted(paths.cache().iterdir()), read)]


def packed_images() -> Subjects:
    """Create packed images in data/raw."""
    from imageclf.preprocess import folder

    for number in range(8):
        image = Path("origin", "train", "ab"[number % 2], f"{number}.bmp")
        image.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(PICTURE, image)
    packed = Path("packed")
    pack.pack(Path("origin"), packed, progress=False)
    return [(sorted(packed.iterdir()), lambda: folder.read(packed, None, workers=1, progress=False))]


def prepared_data() -> Subjects:
    """Create data/processed with all files that it can have."""
    random = np.random.default_rng(0)
    pixels, labels = random.integers(256, size=(60, 2, 3, 4), dtype=np.uint8), random.integers(3, size=60)
    raw = RawData({"train": Images(labels, lambda: iter([pixels]))}, ("a", "b", "c"), image_shape=(2, 3, 4))
    changes = {"val_fraction": 0.25, "normalize": "zca", "permute_seed": 1, "one_hot": True}
    prepare_with(raw, paths.PROCESSED, **changes)

    def read() -> None:
        data = dataset.read(paths.PROCESSED)
        assert data.permutation is not None
        assert data.whitening is not None
        assert all(len(data[split]) > 0 for split in ("train", "val", "test"))

    return [(sorted(paths.PROCESSED.iterdir()), read)]


def trained_model() -> Subjects:
    """Create data/model with a whitening."""
    torch.manual_seed(0)
    spec = new_spec()
    net = models.build(spec.model, spec.image_shape, len(spec.classes), **spec.arguments)
    whitening = (np.zeros(16, np.float32), np.eye(16, dtype=np.float32))
    model.write(paths.MODEL, spec, net.state_dict(), whitening)
    return [(sorted(paths.MODEL.iterdir()), lambda: checkpoint.load(paths.MODEL))]


def learned_weights() -> Subjects:
    """Create data/pretrained in both formats."""
    found = []
    for name in ("weights.safetensors", "weights.pth"):
        folder = Path(name).with_suffix("") / name.rpartition(".")[2]
        folder.mkdir(parents=True)
        if name.endswith("pth"):
            torch.save({"a": torch.zeros(3)}, folder / name)
        else:
            save_file({"a": torch.zeros(3)}, folder / name)
        pretrained.write(folder, Pretrained(source="mine", normalization=([0.5], [0.5])), name)
        read = partial(lambda where: pretrained.read_tensors(where, pretrained.read(where)), folder)
        found.append((sorted(folder.iterdir()), read))
    return found


PICTURE = Path("picture.bmp")


@pytest.fixture
def subjects(tmp_path: Path, made_archives: MadeArchives, monkeypatch: pytest.MonkeyPatch) -> Subjects:
    """Create every file that one stage writes and another reads, with its reader."""
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("IMAGECLF_CACHE", "cache")
    monkeypatch.delenv("IMAGECLF_MIRROR", raising=False)
    Image.new("RGB", (3, 2), (9, 200, 80)).save(PICTURE)
    return [
        *raw_archives(made_archives, monkeypatch),
        *cached_archives(made_archives),
        *packed_images(),
        *prepared_data(),
        *trained_model(),
        *learned_weights(),
    ]


def outcome(path: Path, damaged: bytes, read: Reader) -> str:
    """Read a file with damaged bytes and restore it; return refused, repaired or undetected."""
    original = path.read_bytes()
    assert damaged != original
    path.write_bytes(damaged)
    try:
        read()
        return "repaired" if path.read_bytes() == original else "undetected"
    except UserError as error:
        return "refused" if path.name in str(error) and "\n" not in str(error) else f"wrong message: {error}"
    finally:
        path.write_bytes(original)


def flipped(original: bytes, random: np.random.Generator) -> bytes:
    place = random.integers(len(original))
    return original[:place] + bytes([original[place] ^ random.integers(1, 256)]) + original[place + 1 :]


def truncated(original: bytes, random: np.random.Generator) -> bytes:
    return original[: random.integers(len(original))]


def outcomes(subjects: Subjects, damage: Callable[[bytes, np.random.Generator], bytes], count: int) -> Counter[str]:
    """Count the outcomes of damage at random places, over all files in turn."""
    random = np.random.default_rng(count)
    turns = [(path, read) for paths_, read in subjects for path in paths_]
    return Counter(
        outcome(path, damage(path.read_bytes(), random), read)
        for path, read in (turns[number % len(turns)] for number in range(count))
    )


@pytest.mark.usefixtures("one_thread")
def test_every_damaged_file_is_refused_or_repaired(subjects: Subjects) -> None:
    found = outcomes(subjects, flipped, FLIPS) + outcomes(subjects, truncated, TRUNCATIONS)
    count = sum(len(paths_) for paths_, _ in subjects)
    detected = found["refused"] + found["repaired"]
    print(f"{detected:,} of {FLIPS + TRUNCATIONS:,} detected in {count} files: {dict(found)}")
    assert set(found) == {"refused", "repaired"}
    assert found.total() == FLIPS + TRUNCATIONS


def test_without_checksums_damage_is_undetected(subjects: Subjects, monkeypatch: pytest.MonkeyPatch) -> None:
    """Show that the test above can fail: an array with another last byte is still an array."""
    monkeypatch.setattr(files, "verify", lambda *_, **__: None)
    arrays = [(path, read) for paths_, read in subjects for path in paths_ if path.suffix == ".npy"]
    assert len(arrays) == 9
    for path, read in arrays:
        original = path.read_bytes()
        assert outcome(path, original[:-1] + bytes([original[-1] ^ 1]), read) == "undetected"
