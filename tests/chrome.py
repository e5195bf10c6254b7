"""A browser for tests: headless Chromium, spoken to over a pipe (the DevTools protocol), in any network namespace."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PATIENCE = 20.0
"""Seconds for one answer of the browser."""
COMMANDS = ("chromium", "chromium-browser", "google-chrome")


def command() -> str | None:
    return next((found for name in COMMANDS if (found := shutil.which(name))), None)


class Page:
    """One tab. `complaints` are what the page's console said of errors, refused fetches included."""

    def __init__(self, reader: int, writer: int) -> None:
        self._reader, self._writer = reader, writer
        self._rest = b""
        self._number = 0
        self._session = ""
        self.complaints: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    # --- what tests do

    def size(self, width: int, height: int, *, dark: bool = False, scale: float = 1.0) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale,
                  mobile=False)  # fmt: skip
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[theme])

    def go(self, url: str) -> None:
        self.call("Page.navigate", url=url)

    def js(self, expression: str) -> Any:
        """The value of an expression in the page; promises are waited for. Raises `AssertionError` as it throws."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, expression: str, seconds: float = PATIENCE) -> None:
        """Until the expression is true. Raises `AssertionError` when it is not in time."""
        end = time.monotonic() + seconds
        while True:
            value = self.js(f"!!({expression})")
            if value:
                return
            assert time.monotonic() < end, f"not in {seconds:g} s: {expression}; complaints: {self.complaints}"
            time.sleep(0.03)

    def click(self, selector: str) -> None:
        """With a mouse, where the element is once it stands still; something in front of it would take the click."""
        place = self.js(
            f"(async () => {{ const e = document.querySelector({json.dumps(selector)});"
            "const look = () => { const b = e.getBoundingClientRect();"
            " return [b.x + b.width / 2, b.y + Math.min(b.height / 2, 12)] };"
            "let then = look();"
            "for (;;) { await new Promise(done => setTimeout(done, 80)); const now = look();"
            " if (`${now}` === `${then}`) return now; then = now; } })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    def press(self, key: str, text: str = "") -> None:
        for kind in ("keyDown", "keyUp"):
            more = {"text": text} if text and kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, **more)

    def screenshot(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    # --- the protocol: JSON with a zero byte behind

    def call(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        frame: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            frame["sessionId"] = self._session
        os.write(self._writer, json.dumps(frame).encode() + b"\0")
        end = time.monotonic() + PATIENCE
        while True:
            answer = self._read(end)
            self._note(answer)
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def _read(self, end: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._reader], [], [], max(0.0, end - time.monotonic()))
            assert ready, "the browser does not answer"
            piece = os.read(self._reader, 1 << 20)
            assert piece, "the browser has ended"
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(line)
        return found

    def _note(self, event: dict[str, Any]) -> None:
        parameters = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            details = parameters["exceptionDetails"]
            self.complaints.append(str(details.get("exception", {}).get("description", details["text"])))
        elif event.get("method") == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.complaints.append(str(parameters["entry"]["text"]))


def _pipe() -> tuple[int, int]:
    """Beyond the numbers 3 and 4, which the browser wants its own to have."""
    ends = os.pipe()
    moved = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    for end in ends:
        os.close(end)
    return moved[0], moved[1]


@contextmanager
def browser(namespace: str = "") -> Iterator[Page]:
    """`namespace` is one of `ip netns`: the browser has that network and no other."""
    program = command()
    assert program is not None, "there is no Chromium: apt-get install chromium"
    read_here, write_there = _pipe()
    read_there, write_here = _pipe()
    with tempfile.TemporaryDirectory(prefix="hm-browser-", ignore_cleanup_errors=True) as home:
        inside = ["nsenter", f"--net=/run/netns/{namespace}"] if namespace else []
        process = subprocess.Popen(
            [*inside, "bash", "-c", f'exec "$@" 3<&{read_there} 4>&{write_there}', "bash", program, "--headless=new",
             "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={home}", "--no-first-run",
             "--disable-background-networking", "--disable-component-update", "--hide-scrollbars", "about:blank"],
            pass_fds=(read_there, write_there), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, env={**os.environ, "HOME": home}, start_new_session=True,
        )  # fmt: skip
        os.close(read_there)
        os.close(write_there)
        try:
            yield Page(read_here, write_here)
        finally:
            os.close(write_here)  # it ends when its pipe does
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            os.close(read_here)
