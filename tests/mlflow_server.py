"""A real `mlflow server`, and a proxy in front of it that can be slow, silent, broken or gone."""

import http.client
import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Self

from project import clean_environment


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """The address of a server whose database and artifacts are in `folder`."""
    port = free_port()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
            *("--backend-store-uri", "sqlite:///mlflow.db", "--artifacts-destination", str(folder / "artifacts")),
        ],
        cwd=folder,
        env={**clean_environment(), "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        _await(f"http://127.0.0.1:{port}/health")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _await(address: str) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(address, timeout=5):  # noqa: S310 - our own server
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise TimeoutError(address)


class Proxy:
    """Passes everything on, but for requests whose path holds `where`, from the one numbered `first` on.

    How those are answered: `late`: 12 s after the server has done its work. `refused`: with an HTTP status and a page
    of HTML. `silent` and `gone`, which then hold for all requests: no answer, or nobody who listens.
    """

    def __init__(self, behind: str, where: str, how: str, *, first: int = 1, status: int = 500) -> None:
        self.where, self.how, self.first, self.status = where, how, first, status
        self.met = 0
        """Requests whose path held `where`."""
        self._broken = threading.Event()
        self._over = threading.Event()
        self._port = int(behind.rpartition(":")[2])
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self) -> None:
                proxy._answer(self)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer  # noqa: N815

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        return Handler

    def _answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        meant = self.where in request.path
        self.met += meant
        meant = meant and self.met >= self.first
        if self._broken.is_set() or (meant and self.how in {"silent", "gone"}):
            self._broken.set()
            if self.how == "gone":
                self._server.shutdown()
                self._server.server_close()
            else:
                self._over.wait()
        elif meant and self.how == "refused":
            request.send_error(self.status)
        else:
            self._pass_on(request, body, late_s=12 if meant else 0)

    def _pass_on(self, request: http.server.BaseHTTPRequestHandler, body: bytes, late_s: float) -> None:
        headers = {key: value for key, value in request.headers.items() if key.lower() not in {"host", "connection"}}
        with closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)) as connection:
            connection.request(request.command, request.path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
        self._over.wait(late_s)
        with suppress(OSError):  # who asked may have left
            request.send_response(answer.status)
            request.send_header("Content-Type", answer.headers.get("Content-Type", "application/json"))
            request.send_header("Content-Length", str(len(content)))
            request.end_headers()
            request.wfile.write(content)
