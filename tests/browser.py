"""A real browser for tests: Debian's Chromium, driven through the WebDriver protocol of its chromedriver."""

import base64
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

needs_browser = pytest.mark.skipif(
    not (shutil.which("chromium") and shutil.which("chromedriver")),
    reason="needs chromium and chromedriver (Debian: chromium, chromium-driver)",
)
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--window-size=1000,700")
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
"""The key of an element's id in answers, a constant of the protocol."""

Point = tuple[int, int]


class Browser:
    """One window of a browser."""

    def __init__(self, session: str) -> None:
        self._session = session

    def _call(self, path: str, method: str = "POST", **content: Any) -> Any:
        answer = requests.request(
            method, f"{self._session}/{path}", json=content if method == "POST" else None, timeout=60
        )
        value = answer.json()["value"]
        assert answer.ok, value
        return value

    def open(self, address: str) -> None:
        """Load a page."""
        self._call("url", url=address)

    def run(self, script: str, *arguments: Any) -> Any:
        """Run JavaScript in the page; return what it returns."""
        return self._call("execute/sync", script=script, args=list(arguments))

    def wait_for(self, condition: str) -> Any:
        """Wait until a JavaScript expression is true; return its value."""
        script = f"""
            const done = arguments[0], end = Date.now() + 20000;
            (function check() {{
                const value = {condition};
                if (value || Date.now() > end) done(value); else setTimeout(check, 50);
            }})()"""
        value = self._call("execute/async", script=script, args=[])
        assert value, condition
        return value

    def draw(self, selector: str, points: Sequence[Point]) -> None:
        """Draw a line with the mouse, through points from the top left corner of an element."""
        left, top = self.run(
            "const r = document.querySelector(arguments[0]).getBoundingClientRect(); return [r.left, r.top]", selector
        )
        places = [{"x": round(left + x), "y": round(top + y)} for x, y in points]
        move = {"type": "pointerMove", "duration": 50, "origin": "viewport"}
        steps = [{**move, **places[0]}, {"type": "pointerDown", "button": 0}]
        steps += [{**move, **place} for place in places[1:]]
        self._call(
            "actions",
            actions=[{"type": "pointer", "id": "mouse", "actions": [*steps, {"type": "pointerUp", "button": 0}]}],
        )

    def upload(self, selector: str, path: Path) -> None:
        """Choose a file in an input of type file."""
        element = self._call("element", using="css selector", value=selector)[ELEMENT]
        self._call(f"element/{element}/value", text=str(path))

    def screenshot(self) -> bytes:
        """Return the window as a PNG file."""
        return base64.b64decode(self._call("screenshot", method="GET"))


@contextmanager
def opened(profile: Path) -> Iterator[Browser]:
    """Open a browser with a new profile in the folder `profile`."""
    command = ["chromedriver", "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as driver:
        assert driver.stdout is not None
        try:
            line = next(line for line in driver.stdout if "started successfully on port" in line)
            address = f"http://127.0.0.1:{int(line.split()[-1].rstrip('.'))}/session"
            chrome = {"args": [*OPTIONS, f"--user-data-dir={profile}"], "binary": shutil.which("chromium")}
            wanted = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": chrome}}}
            session = requests.post(address, json=wanted, timeout=60).json()["value"]["sessionId"]
            yield Browser(f"{address}/{session}")
            requests.delete(f"{address}/{session}", timeout=60)
        finally:
            driver.terminate()
