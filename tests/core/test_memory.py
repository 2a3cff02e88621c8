"""Tests of the free memory: what Linux calls available, within the limit of a container."""

from pathlib import Path

import pytest

from imageclf.core import memory

MIB = 2**20


@pytest.fixture
def meminfo(tmp_path: Path) -> Path:
    path = tmp_path / "meminfo"
    path.write_text("MemTotal:       4096 kB\nMemFree:         100 kB\nMemAvailable:   3072 kB\n")
    return path


def limit(folder: Path, limit: str) -> Path:
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{2 * MIB}\n")
    (folder / "memory.stat").write_text(f"anon {MIB // 2}\ninactive_file {MIB}\n")
    return folder


@pytest.mark.parametrize(
    ("maximum", "expected"), [("max", 3 * MIB), (str(3 * MIB), 2 * MIB), (str(9 * MIB), 3 * MIB), (str(MIB // 2), 0)]
)
def test_free_is_what_the_machine_and_the_container_allow(
    maximum: str, expected: int, meminfo: Path, tmp_path: Path
) -> None:
    assert memory.free_bytes(meminfo, limit(tmp_path, maximum)) == expected


def test_without_a_container_the_machine_decides(meminfo: Path, tmp_path: Path) -> None:
    assert memory.free_bytes(meminfo, tmp_path / "absent") == 3 * MIB


def test_where_the_system_does_not_tell_a_gibibyte_is_assumed(tmp_path: Path) -> None:
    assert memory.free_bytes(tmp_path / "absent", tmp_path / "absent") == memory.UNKNOWN
