"""The recorder's end of the socket over which `imageclf.tracking` sends it JSON lines."""

import json
import os
import queue
import socket
import threading
import time
from contextlib import suppress
from typing import Any

Message = dict[str, Any]

ANSWER_S = 8.0
"""A server that answers within this time is alive, however long an upload takes it."""


class Channel:
    """The recorder's end of the socket: messages in, lines out."""

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)
        self._socket = socket.socket(fileno=descriptor)
        self.inbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        """The messages as they come; None when the stage has closed its end, or has died."""
        self.closing = threading.Event()
        """Set when the stage has nothing more to tell, and waits."""
        threading.Thread(target=self._read, daemon=True).start()

    def say(self, **message: Any) -> None:
        """A line to the stage, which may have died."""
        with suppress(OSError):
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def say_while_server_answers(self, uri: str) -> None:
        """Let the stage wait, once it waits, as long as the server answers anything at all."""
        threading.Thread(target=self._probe, args=(f"{uri.rstrip('/')}/health",), daemon=True).start()

    def _probe(self, address: str) -> None:
        import requests

        self.closing.wait()
        while True:
            with suppress(requests.RequestException):
                if requests.get(address, timeout=ANSWER_S, verify=False).status_code < 500:  # noqa: S501 - any answer
                    self.say(busy_until=time.monotonic() + ANSWER_S + 2)
            time.sleep(1)

    def _read(self) -> None:
        with self._socket.makefile("rb") as lines, suppress(OSError):
            for line in lines:
                self.inbox.put(json.loads(line))
        self.closing.set()
        self.inbox.put(None)
