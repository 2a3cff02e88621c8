"""Kill one training after the other, again and again until it has ended all the same.

    python kill_loop.py <project> <kills> <seed>

Every kill hits a process of its own, forked where torch is loaded already, so that hundreds take minutes. Three of
four fall anywhere, from the first line to the last; the fourth falls inside a save, at a random moment of it, by a
timer of the kernel. Prints JSON: the kills by kind, and the digest of what each training that ended has left.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from imageclf import paths, resume
from stages import train

OUTPUTS = (paths.WEIGHTS, paths.RECIPE, paths.HISTORY, paths.TRAIN_SCORES)


def digest() -> str:
    """Of all that a training leaves."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in OUTPUTS)).hexdigest()


def start(inside_save: int | None, duration_s: float) -> int:
    """A process that trains; with `inside_save` it dies inside its save of that number."""
    child = os.fork()
    if child:
        return child
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if inside_save is not None:
        resume.Slot.save = dying(resume.Slot.save, inside_save, duration_s)
    try:
        train.main()
    except BaseException as error:  # noqa: BLE001 - a child must never return into the parent's code
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def dying(save: Callable[..., None], number: int, duration_s: float) -> Callable[..., None]:
    """`save`, which at its call of that number is killed by a timer within the time that it takes."""
    calls = []

    def wrapped(*arguments: object) -> None:
        calls.append(1)
        if len(calls) == number:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, duration_s))
        save(*arguments)

    return wrapped


def main() -> None:
    """See the module."""
    root, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    os.chdir(root)
    random.seed(seed)
    torch.set_num_threads(1)
    for output in (paths.MODEL, paths.METRICS):
        shutil.rmtree(output, ignore_errors=True)
    began = time.monotonic()
    assert os.waitstatus_to_exitcode(os.waitpid(start(None, 0), 0)[1]) == 0
    whole_s, expected = time.monotonic() - began, digest()

    killed, inside, ended, wrong, litter = 0, 0, 0, 0, 0
    while killed < kills:
        save = random.randrange(1, 8) if random.random() < 0.25 else None
        child = start(save, duration_s=0.004)
        if save is None:
            time.sleep(random.uniform(0, whole_s))
            os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == 0:
            ended += 1
            wrong += digest() != expected
            litter += len(list(Path(resume.FOLDER).iterdir()))
            continue
        assert code in {-signal.SIGKILL, -signal.SIGALRM}, code
        killed += 1
        inside += code == -signal.SIGALRM
    assert os.waitstatus_to_exitcode(os.waitpid(start(None, 0), 0)[1]) == 0
    wrong += digest() != expected
    litter += len(list(Path(resume.FOLDER).iterdir()))
    print(json.dumps({"killed": killed, "inside_save": inside, "ended": ended + 1, "wrong": wrong, "litter": litter}))


if __name__ == "__main__":
    main()
