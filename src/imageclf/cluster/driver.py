"""Drive a training on a Ray cluster: `python -m imageclf.cluster.driver`, which `launch` starts.

Each rank is an actor, and runs the train stage as its child, in the project's folder, which all machines share. So
signals, records and messages are those of any training. If a machine or a process is lost, all ranks end, Ray finds
places for new ones, and they resume from the last saved state.
"""

import importlib
import math
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT, Popen
from typing import Any

from imageclf import params
from imageclf.core import process
from imageclf.core.errors import UserError, first_line
from imageclf.params import RuntimeParams
from imageclf.training.ranks import PEER_ENDED

ray: Any = importlib.import_module("ray")  # its types do not fit its use

INHERITED = ("DVC_", "IMAGECLF_", "MLFLOW_", "GIT_", "AWS_", "GLOO_", "NCCL_", "OMP_", "PYTHON")
"""Beginnings of the variables that ranks get from the stage; the others are those of their machine."""
POLL_S, CONNECT_S, PATIENCE_S = 0.5, 10.0, 10.0
GRACE_S = 60.0
"""Seconds that actors have to start, and ranks to end after SIGTERM or after one of them has failed."""
LOSSES, STEADY_S = 5, 600.0
"""Losses in a row after which the training fails; ranks that have run for so many seconds begin a new row."""


class LostError(Exception):
    """A machine or a process was lost: another attempt may succeed."""


class Rank:
    """An actor that runs one rank of the training. Ray copies the class, so it uses nothing of this project."""

    def place(self) -> tuple[str, int]:
        """Return the id of the actor's machine, and a free port there."""
        with socket.create_server(("", 0)) as server:
            return ray.get_runtime_context().get_node_id(), server.getsockname()[1]

    def run(self, command: list[str], folder: str, parent: str, variables: dict[str, str]) -> Iterator[str | int]:
        """Yield the lines that the rank prints, and then its exit code."""
        environment = {**os.environ, **variables, parent: str(os.getpid())}
        streams: dict[str, Any] = {"stdin": DEVNULL, "stdout": PIPE, "stderr": STDOUT}
        self._child = Popen(command, cwd=folder, env=environment, text=True, errors="replace", **streams)
        for line in self._child.stdout or ():  # noqa: UP028 - Ray sends values to a generator, and a file takes none
            yield line
        yield self._child.wait()

    def stop(self) -> None:
        """Ask the rank to save the state and to end."""
        self._child.terminate()


def main(stopped: threading.Event) -> None:
    """Train on the cluster; start again after each loss. Exit 143 if `stopped`, and like a rank that fails."""
    connect(os.environ.get("RAY_ADDRESS", ""))
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())  # in place of Ray's
    size, resources = plan(params.load().runtime)
    variables = {key: value for key, value in os.environ.items() if key.startswith(INHERITED)}
    variables |= {"WORLD_SIZE": str(size), "LOCAL_RANK": "0", "OMP_NUM_THREADS": str(resources["CPU"])}
    losses = 0
    while True:
        began = time.monotonic()
        try:
            return attempt(size, resources, variables, stopped)
        except LostError as error:
            losses = 1 if time.monotonic() - began > STEADY_S else losses + 1
            if losses == LOSSES:
                raise UserError(f"{error}, {losses} times in a row; the same command resumes the training") from None
            print(f"{error}; starting all ranks again", flush=True)


def connect(address: str) -> None:
    """Connect to the cluster at this address; if it is empty, to that of this machine."""
    try:
        if re.fullmatch(r"[^/]+:\d+", address):  # Ray tries for minutes
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), CONNECT_S).close()
        ray.init(address="auto", log_to_driver=False, logging_level="error")
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"runtime.launcher: there is no Ray cluster at {address or 'this machine'} ({first_line(error)}); "
            "start one with `ray start --head`, or set RAY_ADDRESS"
        ) from None


def plan(machine: RuntimeParams) -> tuple[int, dict[str, int]]:
    """Return the number of ranks, and the resources of each; `auto` is one rank per GPU, else one rank."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = int(sum(each.get("GPU", 0) for each in machines)) if machine.device in {"auto", "cuda"} else 0
    size = (gpus or 1) if machine.processes == "auto" else machine.processes
    cores = [int(each["CPU"]) for each in machines if each.get("CPU")] or [1]
    share = min(cores) // math.ceil(size / len(cores))
    threads = max(1, share) if machine.threads == "auto" else machine.threads
    return size, {"CPU": threads, "GPU": 1} if gpus or machine.device == "cuda" else {"CPU": threads}


def attempt(size: int, resources: dict[str, int], variables: dict[str, str], stopped: threading.Event) -> None:
    """Start all ranks, spread over the machines, and follow them to their end; raise `LostError` if one is lost."""
    group, actors = ray.util.placement_group([resources] * size, strategy="SPREAD"), []
    place = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy
    actor = ray.remote(max_concurrency=2, num_cpus=resources["CPU"], num_gpus=resources.get("GPU", 0))(Rank)
    try:
        if not group.wait(PATIENCE_S):
            print(f"waiting until the Ray cluster has room for {size} ranks, each with {resources}", flush=True)
        while not group.wait(POLL_S):
            if stopped.is_set():
                sys.exit(128 + signal.SIGTERM)
        actors = [actor.options(scheduling_strategy=place(group, number)).remote() for number in range(size)]
        follow(actors, {**variables, **meeting(actors)}, stopped)
    except OSError as error:
        reason = first_line(getattr(error, "cause", error))
        raise UserError(f"a rank cannot be started ({reason}); all machines need the project's folder") from None
    except ray.exceptions.RayError as error:
        raise LostError(f"a machine or its process was lost ({type(error).__name__})") from error
    finally:
        for each in actors:
            ray.kill(each)
        ray.util.remove_placement_group(group)


def meeting(actors: list[Any]) -> dict[str, str]:
    """Return the variables with which the ranks find each other; print their addresses."""
    places = ray.get([actor.place.remote() for actor in actors], timeout=GRACE_S)
    addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
    hosts = [addresses[machine] for machine, _ in places]
    print(f"Ray runs the ranks on {', '.join(hosts)}", flush=True)
    here = {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}  # on one machine, its name need not be known
    return {"MASTER_ADDR": hosts[0], "MASTER_PORT": str(places[0][1]), **(here if len(set(hosts)) == 1 else {})}


def follow(actors: list[Any], variables: dict[str, str], stopped: threading.Event) -> None:
    """Run the ranks, and print what rank 0 prints, until it has succeeded; otherwise exit like the failed rank."""
    same = [[sys.executable, "-m", "stages.train"], str(Path.cwd()), process.PARENT]
    running = {
        actor.run.options(num_returns="streaming").remote(*same, {**variables, "RANK": str(rank)}): rank
        for rank, actor in enumerate(actors)
    }
    codes, last, until = dict[int, int](), dict[int, str](), math.inf
    while running and codes.get(0) != 0 and time.monotonic() < until:
        if stopped.is_set() or any(codes.values()):
            until = min(until, time.monotonic() + GRACE_S)
        if stopped.is_set():
            actors[0].stop.remote()
        for stream in ray.wait(list(running), timeout=POLL_S)[0]:
            rank, item = running[stream], ray.get(next(stream))
            if isinstance(item, int):
                codes[running.pop(stream)] = item
                continue
            if PEER_ENDED not in last.get(rank, ""):  # torch may abort after this line
                last[rank] = item
            if rank == 0:
                print(item, end="", flush=True)
    if codes.get(0) != 0:
        sys.exit(128 + signal.SIGTERM if stopped.is_set() else exit_code(codes, last))


def exit_code(codes: dict[int, int], last: dict[int, str]) -> int:
    """Return the exit code of the first rank that failed by itself, from the codes and the last lines of the ranks.

    All others lose their connection to it. Raises `LostError` if there is no such rank, or if one was killed.
    """
    failed = [rank for rank, code in sorted(codes.items()) if code and PEER_ENDED not in last.get(rank, "")]
    killed = [f"rank {rank} ({codes[rank]})" for rank in failed if codes[rank] < 0]
    if killed or not failed:
        raise LostError(f"lost {', '.join(killed) or 'the connection between ranks'}")
    if failed[0]:  # what rank 0 prints is printed already
        print(last.get(failed[0], "").rstrip(), file=sys.stderr)
    return codes[failed[0]]


if __name__ == "__main__":
    process.end_with_parent(signal.SIGTERM)
    try:
        main(threading.Event())
    except UserError as problem:
        sys.exit(f"error: {problem}")
