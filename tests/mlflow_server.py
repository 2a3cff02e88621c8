"""A real `mlflow server`, on SQLite or PostgreSQL, and a proxy in front of it that can be slow, silent or closed."""

import http.client
import http.server
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Self

import pytest
from project import clean_environment

from benchmarks.served import free_port, running


@contextmanager
def server(folder: Path, store: str = "sqlite:///mlflow.db") -> Iterator[str]:
    """Yield the address of a server whose artifacts, and by default its database, are in `folder`."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", store, "--artifacts-destination", str(folder / "artifacts")]
    settings = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with running(command, f"{address}/health", folder, {**clean_environment(), **settings}):
        yield address


PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
needs_postgresql = pytest.mark.skipif(
    not PROGRAMS or importlib.util.find_spec("psycopg") is None,
    reason="needs PostgreSQL (Debian: postgresql) and `uv sync --group server`",
)


@contextmanager
def postgresql() -> Iterator[str]:
    """Yield the address of a new PostgreSQL database, which only this machine can reach."""
    folder, port = Path(tempfile.mkdtemp()), free_port()
    shutil.chown(folder, *(["postgres"] if os.geteuid() == 0 else [os.geteuid()]))
    command = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []  # it refuses to run as root
    initdb = [*command, str(PROGRAMS[-1]), "-D", str(folder), "-U", "mlflow", "-A", "trust", "--no-sync"]
    subprocess.run(initdb, check=True, stdout=subprocess.DEVNULL)
    server = [*command, str(PROGRAMS[-1].with_name("postgres")), "-D", str(folder), "-p", str(port), "-k", ""]
    process = subprocess.Popen([*server, "-h", "127.0.0.1", "-c", "fsync=off"], stderr=subprocess.DEVNULL)
    try:
        isready = [str(PROGRAMS[-1].with_name("pg_isready")), "-h", "127.0.0.1", "-p", str(port)]
        while subprocess.run(isready, check=False, stdout=subprocess.DEVNULL).returncode:
            assert process.poll() is None
            time.sleep(0.1)
        yield f"postgresql://mlflow@127.0.0.1:{port}/postgres"
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(folder)


class Proxy:
    """A proxy with a fault for requests whose path contains `where`, starting with the one numbered `first`.

    The fault `how` is one of: `late`, an answer 12 s after the server's; `refused`, an HTTP status and an HTML page;
    `silent`, no answer to this and all later requests; `closed`, no listener from this request on.
    """

    def __init__(self, server: str, where: str, how: str, *, first: int = 1, status: int = 500) -> None:
        self.where, self.how, self.first, self.status = where, how, first, status
        self.matches = 0
        """Number of requests whose path contained `where`."""
        self._down = threading.Event()
        self._closing = threading.Event()
        self._port = int(server.rpartition(":")[2])
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
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
        faulty = self.where in request.path
        self.matches += faulty
        faulty = faulty and self.matches >= self.first
        if self._down.is_set() or (faulty and self.how in {"silent", "closed"}):
            self._down.set()
            if self.how == "closed":
                self._server.shutdown()
                self._server.server_close()
            else:
                self._closing.wait()
        elif faulty and self.how == "refused":
            request.send_error(self.status)
        else:
            self._forward(request, body, late_s=12 if faulty else 0)

    def _forward(self, request: http.server.BaseHTTPRequestHandler, body: bytes, late_s: float) -> None:
        headers = {key: value for key, value in request.headers.items() if key.lower() not in {"host", "connection"}}
        with closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)) as connection:
            connection.request(request.command, request.path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
        self._closing.wait(late_s)
        with suppress(OSError):  # the client may have disconnected
            request.send_response(answer.status)
            request.send_header("Content-Type", answer.headers.get("Content-Type", "application/json"))
            request.send_header("Content-Length", str(len(content)))
            request.end_headers()
            request.wfile.write(content)
