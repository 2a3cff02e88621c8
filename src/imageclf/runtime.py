"""The machine: device, threads, precision; and the one source of randomness."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import torch

from imageclf.cores import allowed_cores
from imageclf.errors import UserError


def choose_device(name: str) -> torch.device:
    """`auto` is cuda, else mps, else cpu; raises `UserError` for one that this machine lacks."""
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, there in present.items() if there)
    if not present[name]:
        there = ", ".join(device for device, is_there in present.items() if is_there)
        raise UserError(f"runtime.device: torch sees no {name} here; there is {there}, and auto chooses")
    return torch.device(name)


def set_threads(threads: int | str) -> int:
    """Let torch use `threads` CPU threads, or with `auto` the cores that this process may use; returns how many.

    In a container torch sees the host's cores; more threads than the quota run slower than one.
    """
    count = allowed_cores() if threads == "auto" else int(threads)
    torch.set_num_threads(count)
    return count


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """The context of a forward pass; raises `UserError` where bfloat16 has no instructions (40 times slower)."""
    if precision == "float32":
        return nullcontext()
    if device.type == "cpu" and not {"avx512_bf16", "amx_bf16"} & cpu_flags():
        raise UserError("precision: this processor has no bfloat16 instructions; use float32")
    if device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise UserError("precision: this GPU has no bfloat16 instructions; use float32")
    return torch.autocast(device.type, torch.bfloat16)


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> set[str]:
    """The instruction sets that Linux lists; empty elsewhere."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.split(":")[1].split()) for line in lines if line.startswith("flags")), set())


def derive(seed: int, *path: int) -> int:
    """A seed for one purpose: the same for the same (seed, path), unrelated for any other.

    Every random draw is seeded by (seed, epoch), so there is no generator state to save or to lose.
    """
    return int(np.random.SeedSequence(seed, spawn_key=path).generate_state(1, np.uint64)[0] >> 1)
