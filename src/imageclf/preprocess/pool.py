"""A pool of processes that decode images."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import TypeVar

POOL_FROM = 2000
"""Minimum number of files for a process pool, which takes half a second to start."""

Task = TypeVar("Task")
Result = TypeVar("Result")


def spread(function: Callable[[Task], Result], tasks: Iterator[Task], files: int, workers: int) -> Iterator[Result]:
    """Yield the results of `function` for the tasks, in order; use `workers` processes if there are many files.

    `function` and the tasks are pickled. The module of `function` is imported by each process: it must not need torch.
    """
    if workers == 1 or files < POOL_FROM:
        yield from map(function, tasks)
        return
    # Not forked, because a fork does not copy the threads of numpy and of the caller.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_in_worker) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for task in tasks:
                waiting.append(pool.submit(function, task))
                if len(waiting) > 2 * workers:  # bounds the memory
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _in_worker() -> None:
    """Ignore Ctrl-C, which the parent handles, and exit when the parent ends, even if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
