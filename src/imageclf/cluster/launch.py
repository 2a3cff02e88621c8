"""Train on a Ray cluster: the stage starts a driver, waits for it, and ends as it ends.

The driver is a child of the stage, because Ray takes over the signals of the process that connects to it.
"""

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

from imageclf.core import process
from imageclf.core.errors import UserError
from imageclf.params import RuntimeParams

IDENTITY = "IMAGECLF_IDENTITY"
"""Variable with a digest of the parameters, code and data of the training, in the driver and the ranks."""
COMMAND = [sys.executable, "-m", "imageclf.cluster.driver"]
POLL_S = 0.2
# Without the second setting, Ray copies the project to each machine if `uv run` has started DVC.
SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}


def train(identity: str) -> None:
    """Train on the cluster, and return when the outputs are written; exit like the driver if it fails.

    Raises `UserError` if Ray is not installed, or if the driver was killed.
    """
    if importlib.util.find_spec("ray") is None:
        raise UserError("runtime.launcher: ray needs the package ray; `uv sync --group ray` installs it")
    source = str(Path(__file__).resolve().parents[2])  # a queued experiment has its own code
    search = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, **SETTINGS, "PYTHONPATH": search, IDENTITY: identity, process.PARENT: str(os.getpid())}
    with (
        process.deferred_signals() as signals,  # stops the stage at the end of the block if a signal arrived
        subprocess.Popen(COMMAND, env=environment, stdin=subprocess.DEVNULL, start_new_session=True) as driver,
    ):
        try:
            while (code := driver.poll()) is None:
                if signals.received is not None:
                    driver.terminate()
                time.sleep(POLL_S)
        finally:
            driver.kill()
    if code < 0:
        raise UserError(f"the driver of the Ray cluster was killed ({code}); the same command resumes the training")
    if code:
        sys.exit(code)  # the driver has printed the reason


def settings_of_rank(machine: RuntimeParams, identity: str) -> RuntimeParams:
    """Return the settings with the number of threads that the driver has chosen for all ranks.

    Raises `UserError` if the rank has other parameters, code or data than its stage had.
    """
    if os.environ[IDENTITY] != identity:
        raise UserError(
            f"{os.uname().nodename}: params.yaml, the code, the data or torch differ from those of the stage when it "
            "began; all machines need the same folder, and it must not change meanwhile"
        )
    return machine.model_copy(update={"threads": int(os.environ["OMP_NUM_THREADS"])})
