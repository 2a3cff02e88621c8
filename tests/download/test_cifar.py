"""Tests of the CIFAR reader: it decodes the archives, and a pickle that names anything else runs nothing."""

import gzip
import io
import os
import pickle  # noqa: TID251 - to create what must be refused
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import decoded, tar_bytes
from numpy.typing import NDArray

from imageclf.download import cifar
from imageclf.download.datasets import DATASETS

RANDOM = np.random.default_rng(0)
BATCHES = [f"data_batch_{number}" for number in range(1, 6)]


# --- pickles like those of Python 2, which wrote the official archives ---


def python2_text(value: bytes) -> bytes:
    if len(value) < 256:
        return b"U" + bytes([len(value)]) + value
    return b"T" + struct.pack("<i", len(value)) + value


def python2_int(value: int) -> bytes:
    return b"K" + bytes([value]) if value < 256 else b"J" + struct.pack("<i", value)


def python2_array(pixels: NDArray[np.uint8], fortran: bool = False) -> bytes:
    """Pickle an array as numpy 1.x under Python 2 did with protocol 2."""
    rows, columns = pixels.shape
    kind = b"cnumpy\ndtype\n" + python2_text(b"u1") + b"K\x00K\x01\x87R"
    kind += b"(K\x03" + python2_text(b"|") + b"NNN" + 2 * (b"J" + struct.pack("<i", -1)) + b"K\x00tb"
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + python2_text(b"b") + b"\x87R"
    flag = b"\x88" if fortran else b"\x89"
    data = python2_text(pixels.tobytes("F" if fortran else "C"))
    return empty + b"(K\x01" + python2_int(rows) + python2_int(columns) + b"\x86" + kind + flag + data + b"tb"


def python2_batch(key: bytes, labels: list[int], pixels: NDArray[np.uint8], fortran: bool = False) -> bytes:
    """Pickle a batch as in the archives: a dict with a label and file names, and the labels and pixels."""
    names = b"](" + b"".join(python2_text(b"%d.png" % number) for number in range(len(labels))) + b"e"
    items = python2_text(b"batch_label") + python2_text(b"made") + python2_text(b"filenames") + names
    items += python2_text(key) + b"](" + b"".join(map(python2_int, labels)) + b"e"
    items += python2_text(b"data") + python2_array(pixels, fortran)
    return b"\x80\x02}(" + items + b"u."


def python3_batch(key: bytes, labels: list[int], pixels: NDArray[np.uint8]) -> bytes:
    """Pickle the same with today's versions; this pickle names numpy._core and _codecs."""
    return pickle.dumps({b"batch_label": b"made", key: labels, b"data": pixels}, protocol=2)


def archive(path: Path, members: dict[str, bytes]) -> None:
    """Write a gzipped tar."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress(tar_bytes(members), 1))


def random_batch(count: int, num_classes: int) -> tuple[list[int], NDArray[np.uint8]]:
    """Return random labels and rows of pixels."""
    return RANDOM.integers(num_classes, size=count).tolist(), RANDOM.integers(256, size=(count, 3072), dtype=np.uint8)


def cifar10(folder: Path, batch: Callable[..., bytes] = python2_batch, **replaced: bytes) -> dict[str, tuple]:
    """Write an archive like CIFAR-10's, with its batches out of order; return their contents."""
    contents = {name: random_batch(7 + number, 10) for number, name in enumerate([*BATCHES, "test_batch"])}
    members = {name: batch(b"labels", *content) for name, content in contents.items()} | replaced
    order = ["data_batch_4", "test_batch", "data_batch_3", "data_batch_2", "data_batch_5", "data_batch_1"]
    extras = {"cifar-10-batches-py/readme.html": b"<html>", "cifar-10-batches-py/batches.meta": b"not a pickle"}
    archive(
        folder / "cifar-10-python.tar.gz", extras | {f"cifar-10-batches-py/{name}": members[name] for name in order}
    )
    return contents


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return tmp_path / "data" / "raw"


@pytest.fixture(autouse=True)
def data(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()


# --- what is read ---


@pytest.mark.parametrize("batch", [python2_batch, python3_batch])
def test_cifar10_has_its_batches_in_the_order_of_their_numbers(raw: Path, batch: Callable[..., bytes]) -> None:
    contents = cifar10(raw, batch)
    splits = cifar.read_cifar10(raw)
    assert list(splits) == ["train", "test"]
    for split, names in (("train", BATCHES), ("test", ["test_batch"])):
        assert splits[split].labels.tolist() == [label for name in names for label in contents[name][0]]
        pixels = np.concatenate([contents[name][1] for name in names])
        for _ in range(2):  # chunks start over
            assert np.array_equal(decoded(splits[split]), pixels.reshape(-1, 3, 32, 32))


def test_rows_are_red_then_green_then_blue_planes(raw: Path) -> None:
    cifar10(raw)
    row = np.repeat(np.array([10, 20, 30], np.uint8), 1024)[None]
    row[0, 1] = 99  # second pixel of the first row
    cifar10(raw, test_batch=python2_batch(b"labels", [3], row))
    image = decoded(cifar.read_cifar10(raw)["test"])[0]
    assert image[:, 5, 5].tolist() == [10, 20, 30]
    assert image[0, 0, 1] == 99


def test_an_array_in_fortran_order_gives_the_same_images(raw: Path) -> None:
    labels, pixels = random_batch(5, 10)
    cifar10(raw, test_batch=python2_batch(b"labels", labels, pixels, fortran=True))
    assert np.array_equal(decoded(cifar.read_cifar10(raw)["test"]), pixels.reshape(-1, 3, 32, 32))


def test_cifar100_has_the_fine_labels(raw: Path) -> None:
    contents = {name: random_batch(9, 100) for name in ("train", "test")}
    archive(
        raw / "cifar-100-python.tar.gz",
        {f"cifar-100-python/{name}": python2_batch(b"fine_labels", *content) for name, content in contents.items()},
    )
    splits = DATASETS["cifar100"].read(raw).splits
    for name, (labels, pixels) in contents.items():
        assert splits[name].labels.tolist() == labels
        assert np.array_equal(decoded(splits[name]), pixels.reshape(-1, 3, 32, 32))


def test_chunks_are_bounded(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cifar10(raw)
    monkeypatch.setattr("imageclf.contracts.raw.CHUNK", 4)
    assert {len(chunk) for chunk in cifar.read_cifar10(raw)["train"].chunks()} <= {1, 2, 3, 4}


def test_reading_leaves_no_file(raw: Path) -> None:
    cifar10(raw)
    splits = cifar.read_cifar10(raw)
    assert sorted(path.name for path in raw.parent.rglob("*")) == ["cifar-10-python.tar.gz", "raw"]
    assert len(decoded(splits["test"])) == 12


def test_there_are_as_many_class_names_as_labels() -> None:
    assert len(cifar.CIFAR10) == 10
    assert len(set(cifar.CIFAR100)) == 100
    assert list(cifar.CIFAR100) == sorted(cifar.CIFAR100)


# --- what is refused ---


class Command:
    """An object that runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.marker}'",)


class Evaluated(Command):
    """An object that evaluates an expression when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (f"open({str(self.marker)!r}, 'w')",)


def by_opcode(marker: Path) -> list[bytes]:
    """Return handwritten pickles, one for each way in which a pickle can call something."""
    text = f"S'touch \\'{marker}\\''\n".encode().replace(b"\\'", b"")
    return [
        b"cposix\nsystem\n(" + text + b"tR.",  # REDUCE of a GLOBAL
        b"(" + text + b"iposix\nsystem\n.",  # INST
        b"(cposix\nsystem\n" + text + b"o.",  # OBJ
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93(" + text + b"tR.",  # STACK_GLOBAL
        b"\x80\x02cposix\nsystem\n(" + text + b"t\x81.",  # NEWOBJ
        b"cbuiltins\ngetattr\n(cnumpy\nndarray\nS'__class__'\ntR.",
        b"cnumpy.core.multiarray\n_reconstruct.__globals__\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x15ndarray.__init_subclass__\x93.",
        b"\x80\x02cnumpy\nload\n.",
        b"\x80\x02cnumpy.core.multiarray\nscalar\n.",
        b"P1\n.",  # PERSID
        b"\x80\x02\x82\x01.",  # EXT1
        b"\x80\x05\x97.",  # NEXT_BUFFER
    ]


def malicious(marker: Path) -> list[bytes]:
    """Return pickles that would create a marker file, alone and inside the content of a batch."""
    labels, pixels = random_batch(3, 10)
    objects = np.array([Command(marker)], dtype=object)
    contents = [
        Command(marker),
        Evaluated(marker),
        {b"labels": labels, b"data": Command(marker)},
        {b"labels": [0, 1, Command(marker)], b"data": pixels},
        {b"labels": labels, b"data": pixels, b"filenames": [[{b"deep": Evaluated(marker)}]]},
        {b"labels": labels, b"data": objects},
        {Evaluated(marker): 1},
    ]
    return [pickle.dumps(content, protocol) for content in contents for protocol in (0, 2, 4)] + by_opcode(marker)


def test_a_malicious_pickle_is_refused_and_creates_no_marker(raw: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    for content in malicious(marker):
        cifar10(raw, test_batch=content)
        with pytest.raises(ValueError, match="test_batch: not a CIFAR batch"):
            cifar.read_cifar10(raw)
        assert not marker.exists()


def test_plain_pickle_runs_the_malicious_pickles(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Command(tmp_path / "command")))
    pickle.loads(pickle.dumps(Evaluated(tmp_path / "evaluated"))).close()
    assert (tmp_path / "command").exists()
    assert (tmp_path / "evaluated").exists()
    marker = tmp_path / "by_opcode"
    pickle.loads(by_opcode(marker)[0])
    assert marker.exists()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "Ran out of input"),
        (b"GIF89a", ""),
        (pickle.dumps([1, 2]), ""),
        (pickle.dumps({b"labels": [1]}), "data"),
        (pickle.dumps({b"data": b"12", b"labels": [1]}), "values"),
        (pickle.dumps({b"data": np.zeros((1, 3072)), b"labels": [1]}, 2), "'f8', not of bytes"),
        (pickle.dumps({b"data": np.zeros((2, 3071), np.uint8), b"labels": [1, 2]}, 2), "reshape"),
        (pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]}, 2), "reshape"),
        (pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": ["x"]}, 2), "'x'"),
    ],
)
def test_a_batch_of_another_format_is_refused(raw: Path, content: bytes, problem: str) -> None:
    cifar10(raw, test_batch=content)
    with pytest.raises(ValueError, match=f"test_batch: not a CIFAR batch: .*{problem}"):
        cifar.read_cifar10(raw)


@pytest.mark.parametrize("label", [10, 255])
def test_a_label_without_a_class_is_refused(raw: Path, label: int) -> None:
    cifar10(raw, test_batch=python2_batch(b"labels", [0, label], random_batch(2, 10)[1]))
    with pytest.raises(ValueError, match=r"labels outside 0\.\.9"):
        cifar.read_cifar10(raw)


def test_a_missing_batch_is_named(raw: Path) -> None:
    archive(
        raw / "cifar-100-python.tar.gz", {"cifar-100-python/test": python2_batch(b"fine_labels", *random_batch(2, 100))}
    )
    with pytest.raises(ValueError, match="cifar-100-python/train is missing"):
        cifar.read_cifar100(raw)


def test_a_batch_that_is_too_large_is_not_read(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar, "MAX_MEMBER", 1000)
    cifar10(raw)
    with pytest.raises(ValueError, match=r"has \d+ bytes, more than 1000"):
        cifar.read_cifar10(raw)


def test_links_and_second_batches_of_a_name_are_ignored(raw: Path) -> None:
    contents = cifar10(raw)
    path = raw / "cifar-10-python.tar.gz"
    with tarfile.open(path) as tar:
        members = [(member, tar.extractfile(member)) for member in tar]
        changed = [(member, stream.read()) for member, stream in members if stream is not None]
    with tarfile.open(path, "w:gz") as tar:
        for member, content in changed:
            tar.addfile(member, io.BytesIO(content))
        second = tarfile.TarInfo("cifar-10-batches-py/test_batch")
        tar.addfile(second, io.BytesIO())
        outside = tarfile.TarInfo("../../outside")
        outside.size = 3
        tar.addfile(outside, io.BytesIO(b"out"))
    assert cifar.read_cifar10(raw)["test"].labels.tolist() == contents["test_batch"][0]
    link = tarfile.TarInfo("cifar-10-batches-py/test_batch")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(path, "w:gz") as tar:
        tar.addfile(link)
        for member, content in changed:
            if member.name != link.name:
                tar.addfile(member, io.BytesIO(content))
    with pytest.raises(ValueError, match="cifar-10-batches-py/test_batch is missing"):
        cifar.read_cifar10(raw)
