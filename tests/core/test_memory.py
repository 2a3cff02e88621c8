"""Tests of the memory: what is free by Linux within the limit of a container, and what a training keeps."""

import mmap
import platform
import subprocess
import sys
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


ALLOCATING = """
import resource
import sys
from imageclf.core import memory

if "keep" in sys.argv:
    memory.keep_freed_memory()

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

bytearray(64 * 2**20)
before = faults()
bytearray(64 * 2**20)
print(faults() - before)
"""
"""Allocates and frees 64 MiB twice, and prints the page faults of the second time."""


def page_faults(*arguments: str) -> int:
    command = [sys.executable, "-c", ALLOCATING, *arguments]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_kept_memory_is_used_again_without_page_faults() -> None:
    assert page_faults("keep") < 10 < 64 * MIB // mmap.PAGESIZE <= page_faults()
