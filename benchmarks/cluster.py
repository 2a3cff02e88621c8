"""Train on three machines of a Ray cluster while one of them is lost: seconds until it is noticed, seconds in all.

    uv run --group ray python -m benchmarks.cluster

Each machine is a set of namespaces of this one (network, processes, mounts, name), on a bridge without a way outside.
Machine 0 is the head of the cluster and runs the stage, machines 1 to 3 run a rank each, and machine 4 joins when one
of them is lost. They share the file system. Linux only, as root, with `ip` of iproute2. Prints a table; run nothing
else at the same time.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks import ROOT, machine, projects
from benchmarks.output import markdown_table
from imageclf import yaml12
from imageclf.core import files, paths, process

RANKS = 3
BRIDGE, HEAD = "icbridge", "10.77.0.10:6379"
TRIALS = ["nothing", "rank 1 killed", "rank 0 killed", "rank 1 cut off", "rank 0 cut off"]
CHANGES = {
    "dataset": "digits",
    "model": "mlp",
    "hidden": [64],
    "dropout": 0.0,
    "batch_size": 61,
    "schedule": "constant",
}
RUNTIME = {"device": "cpu", "threads": 1, "processes": RANKS, "tracking": False, "progress": False}
START = """
hostname machine{number}; mount -t tmpfs tmpfs /dev/shm; mount --bind {folder} /tmp
exec {ray} start --block --disable-usage-stats --object-store-memory=100000000 --node-ip-address={address} {role}
"""
"""Commands of a machine."""


def ip(*arguments: str) -> None:
    """Run `ip`."""
    subprocess.run(["ip", *arguments], check=True)


class Machine:
    """One machine: a network namespace, and the processes that Ray has started there."""

    def __init__(self, number: int, folder: Path) -> None:
        self.address, self._number, self._folder = f"10.77.0.1{number}", number, folder / f"tmp{number}"
        self._name, self._link = f"icmachine{number}", f"iclink{number}"
        self._process: subprocess.Popen[bytes] | None = None

    def connect(self) -> None:
        """Create the namespace, and connect it to the bridge."""
        self._folder.mkdir()
        ip("netns", "add", self._name)
        ip("-n", BRIDGE, "link", "add", self._link, "type", "veth", "peer", "name", "eth0", "netns", self._name)
        ip("-n", BRIDGE, "link", "set", self._link, "master", "bridge", "up")
        ip("-n", self._name, "addr", "add", f"{self.address}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            ip("-n", self._name, "link", "set", device, "up")
        ip("-n", self._name, "route", "add", "default", "dev", "eth0")
        hosts = Path("/etc/netns", self._name, "hosts")
        hosts.parent.mkdir(parents=True)
        names = [f"10.77.0.1{number} machine{number}" for number in range(RANKS + 2)]
        hosts.write_text("\n".join(["127.0.0.1 localhost", *names, ""]))

    def start(self) -> None:
        """Start Ray's processes: those of the head on machine 0."""
        head, other = "--num-cpus=0 --head --port=6379 --include-dashboard=false", f"--num-cpus=1 --address={HEAD}"
        role = other if self._number else head
        ray = Path(sys.executable).with_name("ray")
        script = START.format(number=self._number, folder=self._folder, ray=ray, address=self.address, role=role)
        inside = [
            "unshare",
            "--uts",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount",
            "--mount-proc",
            "bash",
            "-c",
            script,
        ]
        self._process = subprocess.Popen(
            ["ip", "netns", "exec", self._name, *inside],
            env={**os.environ, "HOME": str(self._folder), "RAY_USAGE_STATS_ENABLED": "0"},
            stdout=(self._folder / "ray.log").open("wb"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def inside(self) -> list[str]:
        """Return the beginning of a command that runs on this machine."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return ["nsenter", "-t", children[0], "-m", "-u", "-p", "-n"]

    def kill(self) -> None:
        """End all processes at once, by SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def cut(self) -> None:
        """Cut the machine off."""
        ip("-n", BRIDGE, "link", "set", self._link, "down")

    def remove(self) -> None:
        """Undo all."""
        self.kill()
        subprocess.run(["ip", "netns", "del", self._name], check=False)
        shutil.rmtree(f"/etc/netns/{self._name}", ignore_errors=True)


@contextmanager
def cluster(folder: Path) -> Iterator[list[Machine]]:
    """Start a Ray cluster on a head and three machines; yield them, and one more that has not joined."""
    with ExitStack() as undo:
        ip("netns", "add", BRIDGE)
        undo.callback(subprocess.run, ["ip", "netns", "del", BRIDGE], check=False)
        ip("-n", BRIDGE, "link", "add", "bridge", "type", "bridge")
        ip("-n", BRIDGE, "link", "set", "bridge", "up")
        machines = [Machine(number, folder) for number in range(RANKS + 2)]
        for each in machines:
            undo.callback(each.remove)
            each.connect()
        for each in machines[: RANKS + 1]:
            each.start()
            time.sleep(5)
        yield machines


def trial(prepared: Path, folder: Path, what: str, epochs: int) -> dict[str, Any]:
    """Train; in the middle, lose the machine of a rank, such as `rank 0 killed`. Return seconds, SHA-256 of weights."""
    shutil.copytree(prepared, folder / "project")
    events: dict[str, float] = {}
    hosts: list[str] = []
    with cluster(folder) as machines:
        began = time.monotonic()
        with subprocess.Popen(
            [*machines[0].inside(), "env", f"-C{folder / 'project'}", sys.executable, "-m", "stages.train"],
            env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": HEAD, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as stage:
            assert stage.stdout is not None
            for line in stage.stdout:
                now = time.monotonic()
                print(f"{now - began:7.2f} {line}", end="", file=sys.stderr, flush=True)
                if line.startswith("Ray runs") and not hosts:
                    hosts = line.removeprefix("Ray runs the ranks on ").strip().split(", ")
                if line.startswith(f"epoch {epochs // 2}/") and "lost" not in events and what != "nothing":
                    events["lost"] = now
                    victim = next(each for each in machines if each.address == hosts[int(what.split()[1])])
                    victim.kill() if what.endswith("killed") else victim.cut()
                    machines[-1].start()
                if "starting all ranks again" in line:
                    events.setdefault("noticed", now)
                if line.startswith("resuming"):
                    events["resumed"] = now
        seconds = time.monotonic() - began
        assert stage.returncode == 0, stage.returncode
    found = {"seconds": seconds, "sha256": files.sha256(folder / "project" / paths.WEIGHTS)}
    return found | {key: events[key] - events["lost"] for key in ("noticed", "resumed") if key in events}


def prepare(folder: Path, epochs: int) -> None:
    """Fill a folder with a project and the prepared digits."""
    folder.mkdir()
    projects.copy_code(folder)
    content = yaml12.read(ROOT / paths.PARAMS)
    content |= {**CHANGES, "epochs": epochs, "runtime": {**content["runtime"], **RUNTIME}}
    files.write_json(folder / paths.PARAMS, content)  # JSON is valid YAML
    for stage in ("check", "list", "download", "preprocess", "weights", "train"):
        projects.run(folder, "-m", f"stages.{stage}", OMP_NUM_THREADS="1")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Train on three machines of a Ray cluster while one of them is lost.")
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--trials", nargs="+", default=TRIALS)
    given = parser.parse_args()
    print(machine.sentence(machine.describe_with_commit(("torch", "ray"))), flush=True)
    rows = [["lost", "noticed after, s", "resumed after, s", "seconds in all", "SHA-256 of one host"]]
    with tempfile.TemporaryDirectory(dir="/var/tmp") as place:  # each machine has its own /tmp
        prepared = Path(place, "prepared")
        prepare(prepared, given.epochs)
        expected = files.sha256(prepared / paths.WEIGHTS)
        shutil.rmtree(prepared / paths.MODEL)
        params = prepared / paths.PARAMS
        params.write_text(params.read_text().replace('"launcher": "local"', '"launcher": "ray"'))
        for number, what in enumerate(given.trials):
            folder = Path(place, str(number))
            folder.mkdir()
            found = trial(prepared, folder, what, given.epochs)
            times = [f"{found[key]:.0f}" if key in found else "" for key in ("noticed", "resumed", "seconds")]
            rows.append([what, *times, "equal" if found["sha256"] == expected else "different"])
    print(markdown_table(rows))


if __name__ == "__main__":
    process.run(main)
