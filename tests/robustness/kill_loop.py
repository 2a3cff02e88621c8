"""Kill a training many times at random moments, until it has finished.

    python kill_loop.py <project> <kills> <seed>

Each training is a forked process in which torch is already loaded, so that hundreds of kills take minutes. Three of
four kills are at any time of the training; the fourth is inside a save, by a timer of the kernel. Prints JSON:

    killed, inside_save    number of kills, and of those inside a save
    ended                  number of trainings that finished
    wrong                  number of those whose outputs differ from those of a training that was not killed
    leftovers              number of files of the state that they did not delete
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

from imageclf.core import paths
from imageclf.training import slots
from stages import train

OUTPUTS = (paths.WEIGHTS, paths.MODEL_SPEC, paths.HISTORY, paths.TRAIN_SCORES)


def digest() -> str:
    """Return the digest of the outputs of a training."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in OUTPUTS)).hexdigest()


def start(inside_save: int | None, duration_s: float) -> int:
    """Start a training process; it is killed inside its `inside_save`-th save, if that is not None."""
    child = os.fork()
    if child:
        return child
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if inside_save is not None:
        slots.Slot.save = killed_inside(slots.Slot.save, inside_save, duration_s)
    try:
        train.main()
    except BaseException as error:  # noqa: BLE001 - a child must not return to the parent's code
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def killed_inside(save: Callable[..., None], number: int, duration_s: float) -> Callable[..., None]:
    """Return `save` with a timer that kills the process during the call of this number."""
    calls = []

    def wrapped(*arguments: object) -> None:
        calls.append(1)
        if len(calls) == number:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, duration_s))
        save(*arguments)

    return wrapped


def main() -> None:
    """Run the loop and print the counts."""
    root, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    os.chdir(root)
    random.seed(seed)
    torch.set_num_threads(1)
    for output in (paths.MODEL, paths.METRICS):
        shutil.rmtree(output, ignore_errors=True)
    began = time.monotonic()
    assert os.waitstatus_to_exitcode(os.waitpid(start(None, 0), 0)[1]) == 0
    whole_s, expected = time.monotonic() - began, digest()

    killed, inside, ended, wrong, leftovers = 0, 0, 0, 0, 0
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
            leftovers += len(list(Path(slots.FOLDER).iterdir()))
            continue
        assert code in {-signal.SIGKILL, -signal.SIGALRM}, code
        killed += 1
        inside += code == -signal.SIGALRM
    assert os.waitstatus_to_exitcode(os.waitpid(start(None, 0), 0)[1]) == 0
    wrong += digest() != expected
    leftovers += len(list(Path(slots.FOLDER).iterdir()))
    print(
        json.dumps(
            {"killed": killed, "inside_save": inside, "ended": ended + 1, "wrong": wrong, "leftovers": leftovers}
        )
    )


if __name__ == "__main__":
    main()
