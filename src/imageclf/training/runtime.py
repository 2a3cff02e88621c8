"""The machine: device, threads, precision; and the one source of randomness."""

import os
import re
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import nn

from imageclf.core import cores, memory, spinning, workers
from imageclf.core.errors import UserError, first_line

P = ParamSpec("P")
T = TypeVar("T")


def choose_device(name: str) -> torch.device:
    """Return the device `name`, or with `auto` the first of cuda, mps and cpu that computes.

    With `auto` a device that torch sees and cannot use (its driver or its age) is reported and passed over. Raises
    `UserError` for a device that was asked for by name, and for one whose memory others have filled: else the
    device, and with it the last digits of every result, would depend on who else is computing.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    for device in [device for device, there in present.items() if there and name in {"auto", device}]:
        problem = None if device == "cpu" else device_problem(torch.device(device))
        if problem is None:
            if device == "cuda":
                local_rank = os.environ.get("LOCAL_RANK")
                torch.cuda.set_device(int(local_rank or workers.lease_gpu(torch.cuda.device_count())))
            return torch.device(device)
        if re.search("out of memory|busy or unavailable", problem):
            remedy = "wait until they end, or set it to cpu in params.yaml"
            raise UserError(f"runtime.device: {device} is in use by other programs ({problem}); {remedy}")
        if name != "auto":
            raise UserError(
                f"runtime.device: {device} cannot be used ({problem}); set it to cpu or auto in params.yaml"
            )
        print(f"runtime.device: {device} cannot be used ({problem}); auto takes the next device", flush=True)
        # Adam asks every accelerator that torch sees, even for a net on the CPU, and fails on a broken one.
        module: Any = torch.get_device_module(device)
        module.is_available = lambda: False
    there = ", ".join(device for device, is_there in present.items() if is_there)
    raise UserError(f"runtime.device: torch sees no {name} here; there is {there}, and auto chooses")


def device_problem(device: torch.device) -> str | None:
    """Compute a little on the device; return the first line of torch's error, or None if all is well.

    torch sees a device whose driver is too old, for which its build has no kernels, or whose memory is full.
    """
    try:
        images = torch.ones(2, 1, 8, 8, device=device)
        maps = nn.functional.conv2d(images, torch.ones(1, 1, 3, 3, device=device))  # cuDNN
        (maps.flatten(1) @ torch.ones(36, 1, device=device)).sum().item()  # cuBLAS; `item` waits for the device
    except (RuntimeError, AssertionError) as error:  # the second: a build of torch without CUDA
        return first_line(error)
    return None


def allow_tf32(device: torch.device) -> None:
    """Let a GPU round the factors of float32 products to TF32's 10 bits of mantissa: several times as fast.

    torch does so for convolutions anyway, and for products of matrices only when asked. By the older switches:
    torch.compile reads these and fails on a mixture (pytorch issue 166387).
    """
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True


def place(net: nn.Module, device: torch.device) -> nn.Module:
    """`net` on the device, its filters channels last, and the maps that they make follow.

    Tensor cores read them so; on a CPU a step of the small nets takes 0.6 of the time (max-pools run as vectors).
    """
    return net.to(device).to(memory_format=torch.channels_last)


def compile_step(step: Callable[P, T], instead: Callable[P, T] | None = None) -> Callable[P, T]:
    """Return a function of tensors, which computes gradients, as one program of torch.compile.

    The program is made in the first call, for the shapes of its arguments. It belongs to this function alone, and each
    later call checks only these shapes, not each weight and layer. If torch cannot make a program, a line says so, and
    the function runs as it is, or `instead` of it another one. Raises `UserError` if there is no C++ compiler, which
    torch needs for the CPU and for a GPU.
    """
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise UserError(f"compile: needs a C++ compiler, and there is no {compiler} here; install it or set CXX")
    from torch import _dynamo as dynamo
    from torch._dynamo.exc import TorchDynamoException

    if not hasattr(dynamo.config, "trace_autograd_ops"):
        return _uncompiled(instead or step, f"torch {torch.__version__} cannot compile a backward pass")
    torch.compiler.reset()
    dynamo.config.trace_autograd_ops = True
    compiler: Any = torch.compile
    checks = {"guard_filter_fn": torch.compiler.keep_tensor_guards_unsafe}
    program: Callable[P, T] = compiler(step, fullgraph=True, dynamic=False, isolate_recompiles=True, options=checks)

    def compiled_or_not(*args: P.args, **kwargs: P.kwargs) -> T:
        nonlocal program
        try:
            return program(*args, **kwargs)
        except TorchDynamoException as error:
            program = _uncompiled(instead or step, first_line(error))
            return program(*args, **kwargs)

    return compiled_or_not


def _uncompiled(step: Callable[P, T], reason: str) -> Callable[P, T]:
    print(f"compile: the training runs without torch.compile ({reason})", flush=True)
    return step


def set_threads(threads: int | str) -> int:
    """Let torch use `threads` CPU threads, or with `auto` the cores that this process may use; returns how many.

    In a container torch sees the host's cores; more threads than the quota run slower than one. Denormal numbers,
    to which the optimizers' moments of unused weights decay, are flushed to zero: an Intel core takes many times as
    long to compute with them. The flag holds for threads that start after it, so call this before any computation.
    While other programs need the cores, threads that wait for each other sleep early.
    """
    torch.set_flush_denormal(True)
    count = cores.allowed_cores() if threads == "auto" else int(threads)
    torch.set_num_threads(count)
    if count > 1:
        spinning.adapt(_use_all_threads)
    return count


def _use_all_threads() -> None:
    torch.ones(1_000_000).add_(1)


def free_memory(device: torch.device) -> int:
    """Return the bytes that are free for new tensors on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return memory.free_bytes()


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """The context of a forward pass; raises `UserError` where bfloat16 has no instructions (40 times slower)."""
    if precision == "float32":
        return nullcontext()
    if device.type == "cpu" and not {"avx512_bf16", "amx_bf16"} & cores.processor_flags():
        raise UserError("precision: this processor has no bfloat16 instructions; use float32")
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError("precision: this GPU has no bfloat16 instructions; use float32")
    return torch.autocast(device.type, torch.bfloat16)


def derive(seed: int, *path: int) -> int:
    """A seed for one purpose: the same for the same (seed, path), unrelated for any other.

    Every random draw is seeded by (seed, epoch), so there is no generator state to save or to lose.
    """
    return int(np.random.SeedSequence(seed, spawn_key=path).generate_state(1, np.uint64)[0] >> 1)


def random_state(device: torch.device) -> torch.Tensor:
    """The state of the generator that dropout on this device draws from."""
    return _generators(device).get_rng_state()


def set_random_state(state: torch.Tensor, device: torch.device) -> None:
    """Set what `random_state` gave."""
    _generators(device).set_rng_state(state)


def _generators(device: torch.device) -> Any:
    return torch if device.type == "cpu" else torch.get_device_module(device)
