"""Tests of the benchmark of learned weights: the images of a seed, its parameters, and its page."""

import io
import tarfile
from pathlib import Path

import pytest
from imports import ROOT

from benchmarks import transfer
from imageclf import params, yaml12
from imageclf.core import paths
from imageclf.study import recipes


def write_archive(path: Path, classes: tuple[str, ...] = ("cat", "dog")) -> None:
    with tarfile.open(path, "w:xz") as tar:
        for split, count in (("train", 30), ("test", 120)):
            for name in classes:
                for number in reversed(range(count)):
                    member = tarfile.TarInfo(f"{split}/{name}/{number:04}.jpg")
                    content = member.name.encode()
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def test_each_seed_draws_train_images_and_has_the_same_test_images(tmp_path: Path) -> None:
    write_archive(tmp_path / "images.tar.xz")
    groups = transfer.read_images(tmp_path / "images.tar.xz")
    found = []
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        transfer.write_images(groups, tmp_path / folder, seed)
        texts = {
            file.relative_to(tmp_path / folder).as_posix(): file.read_text()
            for file in tmp_path.rglob(f"{folder}/**/*.jpg")
        }
        assert all(name == text for name, text in texts.items())
        found.append(set(texts))
    first, again, other = found
    assert first == again != other
    assert {name for name in first if name.startswith("test/dog")} == {f"test/dog/{n:04}.jpg" for n in range(100)}
    assert {name for name in first if "test" in name} == {name for name in other if "test" in name}
    for split in ("train/cat/", "train/dog/"):
        assert sum(name.startswith(split) for name in first) == transfer.TRAIN


@pytest.mark.parametrize("name", transfer.VARIANTS)
def test_the_parameters_of_each_variant_are_valid(name: str) -> None:
    base = yaml12.read(ROOT / paths.PARAMS)
    changes = {**transfer.COMMON, **transfer.VARIANTS[name]}
    assert {key.partition(".")[0] for key in changes} <= base.keys()
    params.validate(recipes.merge(base, changes), name)


def test_the_page_has_a_row_per_variant_with_mean_and_standard_deviation(tmp_path: Path) -> None:
    found = {name: [0.5, 0.6] for name in transfer.VARIANTS}
    described = {
        "cores": 2,
        "processor": "x",
        "python": "3",
        "packages": {},
        "changed_since": False,
        "commit": "a" * 40,
    }
    page = transfer.as_markdown(described, found, "plot.png")
    rows = [line for line in page.partition("images per class")[2].splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + len(transfer.VARIANTS)
    assert all("55.0 ± 7.1" in row and row.endswith(" 2 |") for row in rows[2:])
    transfer.draw(found).savefig(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000
