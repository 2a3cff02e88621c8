"""Tests of shards: moved and read back, fetched into a folder of limited size, from servers that fail."""

import hashlib
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import prepare_with

from imageclf.contracts import dataset, shards
from imageclf.contracts.dataset import Prepared, Split
from imageclf.contracts.raw import Images, RawData
from imageclf.contracts.shards import ShardedImages, ShardList
from imageclf.core import files, process
from imageclf.core.errors import UserError
from imageclf.core.remote import RemoteFolder
from imageclf.preprocess import npy
from imageclf.preprocess import shards as writer
from imageclf.preprocess.report.record import DataReport, Near, Pair
from imageclf.training.loading import blocks
from imageclf.training.loading.batches import Batches, Normalize
from imageclf.training.ranks import ALONE, Ranks

COUNT, SHAPE = 103, (1, 4, 5)
SHARD_BYTES = 400
"""Shards of 20 images of 20 bytes."""


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Make blocks of 4 images, windows of 2 shards, and a cache of its own."""
    monkeypatch.setattr(writer, "BLOCK_BYTES", 80)
    monkeypatch.setattr(blocks, "WINDOW_BYTES", 2 * SHARD_BYTES)
    monkeypatch.setenv("IMAGECLF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(process.stopping, "wait", lambda _: False)


def prepared(folder: Path, *, one_hot: bool = False) -> Prepared:
    """Return prepared data: the first pixel of a train image is its number, its class the tens."""
    numbers = np.arange(COUNT)
    pixels = np.random.default_rng(0).integers(256, size=(COUNT, *SHAPE), dtype=np.uint8)
    pixels[:, 0, 0, 0] = numbers
    classes = tuple(map(str, range(11)))
    train = Images(numbers // 10, lambda: iter([pixels]))
    test = Images(np.arange(11), lambda: iter([pixels[:11]]))
    prepare_with(RawData({"train": train, "test": test}, classes, SHAPE), folder, one_hot=one_hot)
    return dataset.read(folder)


def move(data: Prepared, address: Path) -> tuple[Prepared, list[int]]:
    """Move the train images to shards; return the data, and the new number of each image."""
    server = RemoteFolder(str(address))
    server.check()
    _, numbers = writer.move(data.folder, data.manifest, server, progress=False, shard_bytes=SHARD_BYTES)
    return dataset.read(data.folder), numbers.tolist()


def sharded(split: Split) -> ShardedImages:
    assert isinstance(split.images, ShardedImages)
    return split.images


@pytest.mark.parametrize("one_hot", [True, False], ids=["one-hot", "indices"])
def test_moved_images_are_the_same_in_another_order_with_their_targets(one_hot: bool, tmp_path: Path) -> None:
    before = prepared(tmp_path / "data", one_hot=one_hot)
    stored, old_sha256 = np.array(before["train"].images[:]), before.manifest.sha256
    after, new_numbers = move(before, tmp_path / "server")
    train = after["train"]
    assert sorted(new_numbers) == list(range(COUNT))
    assert np.array_equal(sharded(train)[new_numbers], stored)
    assert np.array_equal(train.labels[new_numbers], np.arange(COUNT) // 10)
    assert np.array_equal(train.images[:], train.images[np.arange(COUNT)])
    assert (train.images.shape, train.images.nbytes) == ((COUNT, *SHAPE), stored.nbytes)
    assert after.manifest.sha256 != old_sha256
    assert not (after.folder / "train_images.npy").exists()
    assert len(list((tmp_path / "server").glob("*.npy"))) == 6
    assert [path.name for path in after.folder.iterdir() if "shard" in path.name] == []
    assert np.array_equal(after["test"].images[:], before["test"].images[:])


def test_a_shard_mixes_images_from_all_parts_of_the_file(tmp_path: Path) -> None:
    data, _ = move(prepared(tmp_path / "data"), tmp_path / "server")
    first = data["train"].images[:20][:, 0, 0, 0]
    assert len(set(first // 10)) > 5
    assert (np.diff(first.astype(int)) == 1).mean() < 0.2


def test_the_same_images_give_the_same_shards_which_are_uploaded_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first, _ = move(prepared(tmp_path / "one"), tmp_path / "server")
    uploads: list[object] = []
    server = RemoteFolder(str(tmp_path / "server"))
    monkeypatch.setattr(type(server._files), "put_file", lambda *args: uploads.append(args))
    second, _ = move(prepared(tmp_path / "two"), tmp_path / "server")
    assert second.manifest.shards == first.manifest.shards
    assert uploads == []


def test_train_and_the_report_find_what_was_moved(tmp_path: Path) -> None:
    before = prepared(tmp_path / "data")
    row = np.array(before["train"].images[42])
    after, numbers = move(before, tmp_path / "server")
    report = DataReport(
        counts={}, imbalance=1.0, left_out={}, traits={}, repeated={}, shared={}, relabeled=0, near_skipped=None,
        near=Near(count=1, share=0.1, pairs=[Pair(3, 42, 0.9, 0.9)]), warnings=[],
    )  # fmt: skip
    found = report.renumbered(np.array(numbers)).near
    assert found is not None
    assert np.array_equal(after["train"].images[[found.pairs[0].train]][0], row)
    assert replace(report, near=None).renumbered(np.array(numbers)).near is None
    assert after.manifest.images_sha256("train") != after.manifest.images_sha256("test")


def batches(data: Prepared, batch_size: int = 7, ranks: Ranks = ALONE) -> Batches:
    return Batches(
        data["train"], Normalize(([0.0], [1.0])), batch_size, torch.device("cpu"), resident=False, ranks=ranks
    )


def numbers_in(data: Prepared, skip: int = 0, batch_size: int = 7, ranks: Ranks = ALONE) -> list[list[int]]:
    """Return the numbers of the images in the batches of an epoch; their targets must be right."""
    found: list[list[int]] = []
    for images, targets in batches(data, batch_size, ranks).shuffled(5, skip):
        found.append(images[:, 0, 0, 0].tolist())
        assert targets.tolist() == [number // 10 for number in found[-1]]
    return found


def test_an_epoch_has_every_image_once_and_resumes_at_any_batch(tmp_path: Path) -> None:
    data, _ = move(prepared(tmp_path / "data"), tmp_path / "server")
    epoch = numbers_in(data)
    assert sorted(chain(*epoch)) == list(range(COUNT))
    assert [len(batch) for batch in epoch] == 14 * [7] + [5]
    for skip in range(15):
        assert numbers_in(data, skip) == epoch[skip:]
    in_order = [int(image[0, 0, 0]) for images, _ in batches(data).in_order() for image in images]
    assert in_order == data["train"].images[:][:, 0, 0, 0].tolist()


@pytest.mark.parametrize("size", [2, 3, 9])
def test_the_ranks_share_the_batches_of_one_process(size: int, tmp_path: Path) -> None:
    data, _ = move(prepared(tmp_path / "data"), tmp_path / "server")
    whole = numbers_in(data)
    parts = [numbers_in(data, ranks=Ranks(rank, size)) for rank in range(size)]
    assert [list(chain(*each)) for each in zip(*parts, strict=True)] == whole


def fetched(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache/shards").glob("*.npy"))


def test_the_local_folder_stays_below_its_limit_and_keeps_what_was_used_last(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data, _ = move(prepared(tmp_path / "data"), tmp_path / "server")
    images = sharded(data["train"])
    size = (tmp_path / "server" / f"{images.shards.sha256[0]}.npy").stat().st_size
    monkeypatch.setattr(shards, "GIB", 3 * size)
    images = sharded(data["train"])
    for row in (0, 20, 40, 0, 60):
        assert len(images[[row]]) == 1
        assert len(fetched(tmp_path)) <= 3
    assert fetched(tmp_path) == sorted(f"{images.shards.sha256[shard]}.npy" for shard in (0, 2, 3))
    killed, running = (tmp_path / "cache/shards" / f".a.npy.{number}.tmp" for number in (1, 2))
    for path in (killed, running):
        path.write_bytes(b"a part")
    os.utime(killed, (0, 0))
    assert sorted(chain(*numbers_in(data))) == list(range(COUNT))
    assert [killed.exists(), running.exists()] == [False, True]


def test_several_readers_of_a_small_folder_disturb_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data, _ = move(prepared(tmp_path / "data"), tmp_path / "server")
    monkeypatch.setattr(shards, "GIB", 1)
    epochs: list[list[list[int]]] = []
    threads = [threading.Thread(target=lambda: epochs.append(numbers_in(data))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(epochs) == 4
    assert all(epoch == epochs[0] for epoch in epochs)


def failing(times: int, error: Exception, then: Callable[..., None]) -> Callable[..., None]:
    """Return a function that raises an error so many times, and then calls another."""
    left = [error] * times

    def call(*args: object) -> None:
        if left:
            raise left.pop()
        then(*args)

    return call


@pytest.mark.parametrize("error", [ConnectionRefusedError("nobody listens"), TimeoutError("no answer"), OSError("?")])
def test_a_server_may_fail_for_minutes(
    error: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, _ = move(prepared(tmp_path / "data"), tmp_path / "server")
    epoch = numbers_in(data)
    for path in (tmp_path / "cache/shards").glob("*.npy"):
        path.unlink()
    kind = type(RemoteFolder(str(tmp_path))._files)
    monkeypatch.setattr(kind, "get_file", failing(5, error, kind.get_file))
    assert numbers_in(data) == epoch
    assert f"fails ({type(error).__name__}: {error}); trying again for 10 minutes\n" in capsys.readouterr().out


def test_patience_ends_with_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data, _ = move(prepared(tmp_path / "data"), tmp_path / "server")
    monkeypatch.setattr(RemoteFolder._patiently, "__defaults__", (0,))
    for path in (tmp_path / "server").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"fails \(FileNotFoundError: .*\); the same command continues when it works"):
        numbers_in(data)


def test_a_refused_access_is_an_error_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    server = RemoteFolder(str(tmp_path))
    monkeypatch.setattr(type(server._files), "pipe_file", failing(1, PermissionError("Forbidden"), print))
    with pytest.raises(UserError, match=r"^shards: .* refuses access \(Forbidden\)$"):
        server.check()


def test_a_place_that_cannot_be_written_is_an_error_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"^shards: .*/file/folder fails \((NotADirectory|FileExists)Error: .*"):
        RemoteFolder(str(tmp_path / "file/folder")).check()


def test_a_damaged_shard_is_named_and_not_kept(tmp_path: Path) -> None:
    data, _ = move(prepared(tmp_path / "data"), tmp_path / "server")
    path = next((tmp_path / "server").glob("*.npy"))
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=rf"{path.name} is not what preprocess wrote .* delete it there"):
        numbers_in(data)
    assert path.name not in fetched(tmp_path)


def test_a_shard_that_arrived_in_part_is_fetched_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data, _ = move(prepared(tmp_path / "data"), tmp_path / "server")
    kind = type(RemoteFolder(str(tmp_path))._files)
    whole = kind.get_file
    parts = iter([b"\x93NUMPY", b""])

    def get_file(self: Any, source: str, target: str) -> None:
        part = next(parts, None)
        whole(self, source, target) if part is None else Path(target).write_bytes(part)

    monkeypatch.setattr(kind, "get_file", get_file)
    assert sorted(chain(*numbers_in(data))) == list(range(COUNT))


@pytest.mark.parametrize("address", ["nothing://bucket/folder", "abfs://container/folder"])
def test_an_address_that_nothing_can_read_is_named(address: str) -> None:
    with pytest.raises(UserError, match=rf"^shards: {address} cannot be used .* `uv sync --group remotes`$"):
        RemoteFolder(address)


def test_shards_are_named_by_their_content(tmp_path: Path) -> None:
    data, _ = move(prepared(tmp_path / "data"), tmp_path / "server")
    assert data.manifest.shards == ShardList(
        address=str(tmp_path / "server"),
        rows=20,
        sha256=[hashlib.sha256(_shard(tmp_path, data, number)).hexdigest() for number in range(6)],
    )
    for path in (tmp_path / "server").iterdir():
        assert files.sha256(path) == path.stem


def _shard(tmp_path: Path, data: Prepared, number: int) -> bytes:
    path = tmp_path / "made.npy"
    npy.write(path, data["train"].images[20 * number : 20 * (number + 1)], {})
    return path.read_bytes()
