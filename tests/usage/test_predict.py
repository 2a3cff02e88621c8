"""Tests of `imageclf predict`: its lines are the predictor's answers, and bad files are named, one by one."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import encode, new_spec, noise, noise_png, save_model
from imports import ROOT

from imageclf import cli
from imageclf.core.errors import UserError
from imageclf.download.entries import Entry
from imageclf.inference.predictor import Predictor
from imageclf.preprocess import pool
from imageclf.usage import chunks, predict

IMAGECLF = str(Path(sys.executable).parent / "imageclf")
CLASSES = ["cat", "a dog", "ü"]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a model for color images of 6x5 pixels."""
    folder = tmp_path_factory.mktemp("trained") / "model"
    shape = (3, 6, 5)
    save_model(
        folder, new_spec(raw_shape=shape, image_shape=shape, classes=CLASSES, normalization=([0.0] * 3, [1.0] * 3))
    )
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder with images of two sizes, also in a subfolder, and with files that are no images."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for number in range(5):
        (folder / f"{number}.png").write_bytes(noise_png(number))
    (folder / "sub" / "large.jpg").write_bytes(encode(noise(9, 40, 60), "JPEG"))
    (folder / "2 notes.txt").write_text("no image")
    (folder / "9.png").write_bytes(noise_png(1)[:60])
    (folder / ".hidden.png").write_bytes(b"ignored")
    return folder


def expected(model: Path, files: list[Path]) -> np.ndarray:
    """Return the probabilities, (n, K), that the predictor gives for each file alone."""
    predictor = Predictor.load(model, torch.device("cpu"))
    return np.concatenate([predictor.probabilities(predictor.read(file.read_bytes())[None]) for file in files])


@pytest.mark.parametrize("workers", [1, 2])
def test_each_image_gets_the_answer_of_the_predictor_and_each_other_file_its_reason(
    workers: int, model: Path, photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "POOL_FROM", 1)
    monkeypatch.setattr(chunks, "CHUNK", 2)
    monkeypatch.setattr(predict, "allowed_cores", lambda: workers)
    missing = photos / "missing.png"
    given = ["predict", *map(str, [missing, photos / "3.png", photos]), "--model", str(model), "--json", "--top", "9"]
    with pytest.raises(UserError, match=r"^refused 3 of 10 files, named above$"):
        cli.main(given)
    printed = capsys.readouterr()
    lines = [json.loads(line) for line in printed.out.splitlines()]
    files = [photos / name for name in ("3.png", "0.png", "1.png", "2.png", "3.png", "4.png", "sub/large.jpg")]
    assert [line["file"] for line in lines] == list(map(str, files))
    for line, row in zip(lines, expected(model, files), strict=True):
        assert {"class": line["class"], "probability": line["probability"]} == line["top"][0]
        assert {each["class"]: each["probability"] for each in line["top"]} == pytest.approx(
            dict(zip(CLASSES, map(float, row), strict=True)), abs=1e-6
        )
        assert [each["probability"] for each in line["top"]] == pytest.approx(sorted(row, reverse=True), abs=1e-6)
    assert printed.err.splitlines() == [
        f"refused {missing}: no such file or directory",
        f"refused {photos / '2 notes.txt'}: not a PNG, JPEG, BMP, GIF or WEBP image",
        f"refused {photos / '9.png'}: {printed.err.splitlines()[2].partition('9.png: ')[2]}",
    ]
    assert "damaged" in printed.err.splitlines()[2]


def test_a_row_of_the_table_has_the_top_classes_and_the_file(
    model: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = photos / "0.png"
    cli.main(["predict", str(file), "--model", str(model), "--top", "2"])
    (row,) = expected(model, [file])
    first, second = np.argsort(-row)[:2]
    cells = [f"{row[index]:7.2%} {CLASSES[index]:5}" for index in (first, second)]
    assert capsys.readouterr().out == f"{cells[0]}  {cells[1]}  {file}\n"


def test_names_that_are_hard_to_print_stay_on_their_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    for name in (b"a\nb.png", b"\xe4.png"):
        Path(f"{tmp_path}/photos/{name.decode('utf-8', 'surrogateescape')}").write_bytes(noise_png(0))
    cli.main(["predict", str(tmp_path / "photos"), "--model", str(model)])
    assert [line.rpartition("/")[2] for line in capsys.readouterr().out.splitlines()] == ["a\\nb.png", "ä.png"]
    cli.main(["predict", str(tmp_path / "photos"), "--model", str(model), "--json"])
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["file"].rpartition("/")[2] for line in lines] == ["a\nb.png", "\udce4.png"]


@pytest.mark.parametrize("arguments", [["--top", "0"], ["--top", "x"], []])
def test_bad_arguments_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["predict", *arguments])
    assert "Traceback" not in capsys.readouterr().err


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there are no files in it"):
        cli.main(["predict", str(tmp_path)])


def test_a_reader_that_has_read_enough_ends_it_quietly(model: Path, tmp_path: Path) -> None:
    """The 1,500 lines do not fit into the buffer of a pipe."""
    (tmp_path / "photos").mkdir()
    for number in range(1500):
        (tmp_path / "photos" / f"{number:04}.png").write_bytes(noise_png(0))
    command = f"set -o pipefail; '{IMAGECLF}' predict '{tmp_path}/photos' --top 3 --model '{model}' | head -n 1"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (141, "")
    assert done.stdout.endswith("0000.png\n")


@pytest.mark.parametrize("workers", [1, 2])
def test_only_a_few_chunks_are_read_ahead(workers: int, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "POOL_FROM", 1)
    monkeypatch.setattr(chunks, "CHUNK", 4)
    taken = 0

    def files() -> Iterator[Entry]:
        nonlocal taken
        for taken in range(1, 1001):  # noqa: B007 - read below
            yield from chunks.entries([photos / "0.png"])

    found = chunks.read(files(), 1000, (3, 6, 5), 16, workers)
    assert next(found).pixels.shape == (4, 3, 6, 5)
    assert taken <= 4 * (2 * workers + 1)
    assert sum(len(chunk.names) for chunk in found) == 996


def test_the_processes_that_decode_import_no_torch() -> None:
    code = "import sys, imageclf.usage.chunks; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_folder_that_cannot_be_read_is_named_and_the_rest_goes_on(
    model: Path, photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def forbidden(place: Path) -> object:
        if place == photos / "sub":
            raise PermissionError(errno.EACCES, "Permission denied", str(place))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", forbidden)
    (photos / "2 notes.txt").unlink()
    (photos / "9.png").unlink()
    with pytest.raises(UserError, match=r"^refused 1 of 6 files, named above$"):
        cli.main(["predict", str(photos), "--model", str(model)])
    printed = capsys.readouterr()
    assert printed.err == f"refused {photos / 'sub'}: permission denied\n"
    assert len(printed.out.splitlines()) == 5
