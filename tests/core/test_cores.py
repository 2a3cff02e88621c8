"""Tests of what is read from the processor: cores, instruction sets, vendor."""

import os
from pathlib import Path

import pytest

from imageclf.core import cores
from imageclf.core.cores import allowed_cores


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)), raising=False)


@pytest.fixture
def cpu_max(tmp_path: Path) -> Path:
    return tmp_path / "cpu.max"


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("200000 100000\n", 2),
        ("150000 100000\n", 1),
        ("50000 100000\n", 1),
        ("400000 50000\n", 8),
        ("6400000 100000\n", 8),
        ("max 100000\n", 8),
        ("", 8),
    ],
)
def test_cores_are_what_affinity_and_quota_allow(quota: str, cores: int, cpu_max: Path) -> None:
    cpu_max.write_text(quota)
    assert allowed_cores(cpu_max) == cores


@pytest.mark.usefixtures("eight_cores")
def test_without_a_quota_file_cores_are_what_affinity_allows(cpu_max: Path) -> None:
    assert allowed_cores(cpu_max) == 8


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize(("limit", "cores"), [("3", 3), ("20", 8), ("0", 1), ("", 8), ("4,2", 8)])
def test_omp_num_threads_is_a_limit(limit: str, cores: int, monkeypatch: pytest.MonkeyPatch, cpu_max: Path) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", limit)
    assert allowed_cores(cpu_max) == cores


def test_where_there_is_no_affinity_all_cores_count(monkeypatch: pytest.MonkeyPatch, cpu_max: Path) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert allowed_cores(cpu_max) == 5


def test_processor_flags_are_those_of_the_first_processor(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(
        "processor\t: 0\nflags\t\t: fpu avx512_bf16 amx_bf16\nbugs\t\t:\n\nprocessor\t: 1\nflags\t\t: x\n"
    )
    assert cores.processor_flags(cpuinfo) == {"fpu", "avx512_bf16", "amx_bf16"}


@pytest.mark.parametrize("text", [None, "", "processor\t: 0\nFeatures\t: fp asimd\n"], ids=["absent", "empty", "arm"])
def test_where_linux_lists_no_flags_there_are_none(text: str | None, tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    if text is not None:
        cpuinfo.write_text(text)
    assert cores.processor_flags(cpuinfo) == set()


@pytest.mark.parametrize(
    ("line", "vendor"), [("vendor_id\t: AuthenticAMD", "AuthenticAMD"), ("processor\t: 0", "")], ids=["amd", "arm"]
)
def test_the_vendor_is_that_of_the_first_processor(line: str, vendor: str, tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"{line}\nflags\t\t: fpu\n\nvendor_id\t: another\n"[: None if vendor else len(line)])
    assert cores.processor_vendor(cpuinfo) == vendor
