"""The recorder's end of the socket over which `imageclf.tracking.client` sends it JSON lines."""

import json
import os
import queue
import socket
import threading
import time
from contextlib import suppress
from typing import Any

Message = dict[str, Any]
"""A line of JSON."""

ANSWER_S = 8.0
"""Seconds in which a working server answers a health check, also during a long upload."""


class Channel:
    """The recorder's end of the socket."""

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)
        self._socket = socket.socket(fileno=descriptor)
        self.inbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        """Messages of the stage; None after the last one, or when the stage has died."""
        self._closing = threading.Event()
        """Set when the stage has sent its last message and waits for the recorder."""
        threading.Thread(target=self._read, daemon=True).start()

    def send(self, **message: Any) -> None:
        """Send a message to the stage, which may have died."""
        with suppress(OSError):
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def send_busy_while_server_answers(self, uri: str) -> None:
        """Make a stage that waits for the recorder continue to wait as long as the server answers anything."""
        threading.Thread(target=self._check_health, args=(f"{uri.rstrip('/')}/health",), daemon=True).start()

    def _check_health(self, address: str) -> None:
        import requests

        self._closing.wait()
        while True:
            with suppress(requests.RequestException):
                if requests.get(address, timeout=ANSWER_S, verify=False).status_code < 500:  # noqa: S501 - any answer
                    self.send(busy_until=time.monotonic() + ANSWER_S + 2)
            time.sleep(1)

    def _read(self) -> None:
        with self._socket.makefile("rb") as lines, suppress(OSError):
            for line in lines:
                self.inbox.put(json.loads(line))
        self._closing.set()
        self.inbox.put(None)
