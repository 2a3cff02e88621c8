"""The model behind MLflow's own server, and behind a bare web application: what the serving benchmark compares."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import requests

SAVE = """
import sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
from imageclf.tracking.recorder.served_model import save_served_model
save_served_model(Path(sys.argv[1]), Path("model"))
"""
READY_S = 120


def save_model(checkpoint: Path, work: Path) -> Path:
    """Write the checkpoint as an MLflow model to a folder in `work`, as a training does; return the folder."""
    environment = {**os.environ, "MLFLOW_LOG_UV_FILES": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    subprocess.run([sys.executable, "-c", SAVE, str(checkpoint)], cwd=work, env=environment, check=True)
    return work / "model"


def free_port() -> int:
    """Return a port that no program uses."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextmanager
def mlflow_server(model: Path) -> Iterator[str]:
    """Serve a model with `mlflow models serve`; yield the address that takes images."""
    port = free_port()
    command = ["mlflow", "models", "serve", "-m", str(model), "-p", str(port), "--env-manager", "local"]
    with running([sys.executable, "-m", *command], f"http://127.0.0.1:{port}/ping"):
        yield f"http://127.0.0.1:{port}/invocations"


@contextmanager
def bare_server(checkpoint: Path) -> Iterator[str]:
    """Serve a checkpoint with a web application of a few lines; yield the address that takes images."""
    port = free_port()
    with running([sys.executable, "-m", "benchmarks.served", str(checkpoint), str(port)], f"http://127.0.0.1:{port}/"):
        yield f"http://127.0.0.1:{port}/invocations"


@contextmanager
def running(
    command: Sequence[str], ready: str, folder: Path | None = None, environment: Mapping[str, str] = os.environ
) -> Iterator[None]:
    """Run a server in `folder` until the end of the block, which begins when the address `ready` answers."""
    tools = str(Path(sys.executable).parent)  # mlflow starts uvicorn by its name
    path = os.pathsep.join([tools, environment.get("PATH", "")])
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**environment, "PATH": path},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + READY_S
        while not _answers(ready):
            if time.monotonic() > until or process.poll() is not None:
                raise TimeoutError(f"{' '.join(command)} does not answer at {ready}")
            time.sleep(0.2)
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _answers(address: str) -> bool:
    try:
        return requests.get(address, timeout=5).status_code < 500
    except requests.RequestException:
        return False


def main() -> None:
    """Serve a checkpoint on a port: the same path as MLflow's server, with nothing around it."""
    import torch
    import uvicorn
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    from imageclf.inference.predictor import Predictor
    from imageclf.inference.served import ServedModel

    torch.set_num_threads(1)
    model = ServedModel(Predictor.load(Path(sys.argv[1]), torch.device("cpu")))

    async def invocations(request: Request) -> JSONResponse:
        content = await request.json()
        return JSONResponse({"predictions": await run_in_threadpool(model.predict, content["inputs"])})

    routes = [Route("/invocations", invocations, methods=["POST"])]
    uvicorn.run(Starlette(routes=routes), port=int(sys.argv[2]), log_level="error")


if __name__ == "__main__":
    main()
