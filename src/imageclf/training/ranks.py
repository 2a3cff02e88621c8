"""Processes that train one net together: each computes the gradients of its part of every batch.

The stage is rank 0. It alone writes files, records the run, validates and answers signals. The other ranks are its
children, which run the same command with the variable `RANK`, follow it step by step, and end when it ends. If a
launcher such as torchrun or srun has set `RANK` and `WORLD_SIZE`, no process is started here.

The sums of all ranks are added in the order of the ranks. So the weights equal, to the bit, those of one process that
takes each batch in as many micro-batches.
"""

import atexit
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from imageclf.core import process
from imageclf.core.errors import UserError, first_line

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

MEETING_S = 120
"""Seconds in which all ranks must have started."""
STEP_S = 24 * 3600
"""Seconds for which a rank waits for another: rank 0 also validates and saves. A dead rank is noticed at once."""
PEER_ENDED = "another process of this training has ended"
"""Beginning of the message of a rank that has lost its connection to another one."""
DEATH_S = 2.0
"""Seconds in which a rank whose connection has ended becomes a dead process."""


@dataclass(frozen=True)
class Ranks:
    """The place of this process among `size` processes."""

    rank: int = 0
    size: int = 1

    def share(self, start: int, stop: int) -> slice:
        """Return the part of this rank of consecutive images; parts differ by one image at most."""
        each, more = divmod(stop - start, self.size)
        begin = start + self.rank * each + min(self.rank, more)
        return slice(begin, begin + each + (self.rank < more))

    def sum(self, tensors: "Sequence[Tensor]") -> None:
        """Replace each tensor by its sum over all ranks, which all must call; they travel as one message."""
        if self.size == 1:
            return
        import torch
        from torch import distributed

        parts = [tensor.flatten().to(torch.float32) for tensor in tensors]
        own = torch.cat(parts)
        everyone = own.new_empty(self.size, len(own))
        distributed.all_gather(list(everyone.unbind()), own)
        total = everyone[0]
        for row in everyone[1:]:
            total += row
        for tensor, part in zip(tensors, total.split([len(part) for part in parts]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def any(self, value: bool) -> bool:
        """Return True if the value is true on one of the ranks, which all must call."""
        if self.size == 1:
            return value
        import torch
        from torch import distributed

        count = torch.tensor(float(value), device="cuda" if distributed.get_backend() == "nccl" else "cpu")
        self.sum([count])
        return count.item() > 0


ALONE = Ranks()


def rank() -> int:
    """Return the rank of this process, which is 0 if it trains alone."""
    return int(os.environ.get("RANK", "0"))


def count(processes: int | str, net: "nn.Module", device: "torch.device") -> int:
    """Return the number of processes for a setting of `runtime.processes`; `auto` is the number of GPUs, else 1.

    Raises `UserError` for a net with batch norm, whose statistics would differ between the ranks; `auto` is 1 for it.
    """
    import torch
    from torch import nn

    if "WORLD_SIZE" in os.environ:
        processes = int(os.environ["WORLD_SIZE"])
    batch_norm = any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in net.modules())  # noqa: SLF001
    if processes == "auto":
        return torch.cuda.device_count() if device.type == "cuda" and not batch_norm else 1
    if int(processes) > 1 and batch_norm:
        raise UserError("runtime.processes: this net has batch norm, which needs one process; set it to 1 or auto")
    return int(processes)


@contextmanager
def joined(size: int, device: "torch.device") -> Iterator[Ranks]:
    """Connect this process with the other ranks; rank 0 starts them first, unless a launcher has done so.

    Raises `UserError` if one of the processes that were started here dies.
    """
    if size == 1:
        yield ALONE
        return
    if "RANK" in os.environ:
        with _named_by([]), _connected(None, device) as ranks:
            yield ranks
        return
    with (
        socket.create_server(("127.0.0.1", 0), backlog=size) as server,
        _children(size, server.getsockname()[1]) as children,
        _named_by(children),
        _connected(server, device) as ranks,
    ):
        yield ranks


@contextmanager
def _children(size: int, port: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start ranks 1, 2, ... of this stage, and end them with the block."""
    meeting = {"WORLD_SIZE": str(size), "MASTER_PORT": str(port)}
    os.environ.update(meeting)
    meeting[process.PARENT] = str(os.getpid())
    children = [_start({**meeting, "RANK": str(number), "LOCAL_RANK": str(number)}) for number in range(1, size)]
    try:
        yield children
    finally:
        for child in children:
            child.kill()
        for child in children:
            child.wait()


def _start(variables: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "stages.train"],
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,  # rank 0 prints
        start_new_session=True,  # Ctrl-C reaches rank 0 alone
    )


def end_with_rank_0() -> None:
    """Let this process end with rank 0, even if rank 0 is killed, and not before.

    If rank 0 has started it, Linux kills it; otherwise the lost connection ends it. Launchers send SIGTERM and SIGINT
    to all ranks at once. Rank 0 answers them, and needs the others until it has finished its step and saved the state.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def _named_by(children: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Raise `UserError`, with the exit codes of dead ranks, in place of an error of the connection to them."""
    try:
        yield
    except RuntimeError as error:
        for child in children:
            with suppress(subprocess.TimeoutExpired):
                child.wait(DEATH_S)
        dead = [f"rank {number} ({child.returncode})" for number, child in enumerate(children, 1) if child.returncode]
        if not dead and not re.search("Connection (closed|reset)|Broken pipe", str(error)):
            raise
        atexit.register(os._exit, 1)  # torch may abort while Python unloads it with a lost connection
        codes = f", with an exit code: {', '.join(dead)}" if dead else ""
        raise UserError(f"{PEER_ENDED}{codes} ({first_line(error)}); the same command resumes it") from error


@contextmanager
def _connected(server: socket.socket | None, device: "torch.device") -> Iterator[Ranks]:
    """Meet the other ranks: over `server` if this is rank 0 and has started them, or as the launcher has set it up."""
    from torch import distributed

    number, size = rank(), int(os.environ["WORLD_SIZE"])
    store = None
    if server is not None or "MASTER_ADDR" not in os.environ:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # works also if the name of the host cannot be resolved
        store = distributed.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
            "127.0.0.1",
            int(os.environ["MASTER_PORT"]),
            size,
            is_master=server is not None,
            timeout=timedelta(seconds=MEETING_S),
            wait_for_workers=False,
            master_listen_fd=None if server is None else os.dup(server.fileno()),
        )
    backend = "nccl" if device.type == "cuda" else "gloo"
    wait = timedelta(seconds=STEP_S)
    # Without a store, torch reads the variables that torchrun or srun has set.
    distributed.init_process_group(
        backend, store=store, rank=number if store else -1, world_size=size if store else -1, timeout=wait
    )
    yield Ranks(number, size)
    # The process group is not destroyed: ranks end one after the other, and the last one would wait for the others.
