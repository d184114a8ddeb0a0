"""A headless Chromium, driven over its debugging pipe.

Owns: the process, its profile directory and the exchange of DevTools messages. Knows nothing of
the page. The pipe (descriptors 3 and 4) needs no port, so the browser may run in any namespace.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-default-apps", "--disable-extensions", "--disable-dev-shm-usage",
    "--hide-scrollbars", "--mute-audio", "--lang=en-GB",
)  # fmt: skip
TIMEOUT_S = 30.0


class BrowserError(RuntimeError):
    """The browser did not start, ended, or a script in the page failed."""


def find_chromium() -> str | None:
    """Return the path of an installed Chromium, None without one."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


class Page:
    """One tab.

    `problems` collects what the browser complained about, violations of the page's policy among
    it; `requests` the URLs that the page asked for.
    """

    def __init__(self, browser: Browser, target: str) -> None:
        self.problems: list[str] = []
        self.requests: list[str] = []
        self._browser = browser
        attached = browser.ask("Target.attachToTarget", {"targetId": target, "flatten": True})
        self._session = attached["sessionId"]
        browser.pages[self._session] = self
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, parameters: dict[str, Any] | None = None) -> dict[str, Any]:
        return self._browser.ask(method, parameters, self._session)

    def show_as(
        self, width: int, height: int, *, scheme: str = "light", phone: bool = False
    ) -> None:
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            {
                "width": width,
                "height": height,
                "deviceScaleFactor": 2 if phone else 1,
                "mobile": phone,
            },
        )
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.ask("Emulation.setEmulatedMedia", {"features": [feature]})

    def open(self, url: str) -> None:
        answer = self.ask("Page.navigate", {"url": url})
        if "errorText" in answer:
            raise BrowserError(f"{url}: {answer['errorText']}")
        self.wait_for("document.readyState === 'complete' && location.protocol === 'http:'")

    def run(self, script: str) -> Any:
        """Evaluate an expression in the page, a promise included, and return its value."""
        answer = self.ask(
            "Runtime.evaluate",
            {"expression": script, "returnByValue": True, "awaitPromise": True},
        )
        if "exceptionDetails" in answer:
            raise BrowserError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait_for(self, condition: str, timeout_s: float = 10.0) -> None:
        """Evaluate an expression again and again until it is true; a missing element is not."""
        script = f"(() => {{ try {{ return Boolean({condition}); }} catch {{ return false; }} }})()"
        deadline = time.monotonic() + timeout_s
        while not self.run(script):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{condition}: not within {timeout_s:g} s; {self.problems}")
            time.sleep(0.05)

    def text(self, selector: str) -> str:
        """Return what a person reads there."""
        return str(self.run(f"document.querySelector({json.dumps(selector)}).innerText"))

    def click(self, selector: str) -> None:
        """Click with the mouse, in the middle of the element."""
        at = self.run(
            f"(() => {{ const node = document.querySelector({json.dumps(selector)});"
            " node.scrollIntoView({block: 'center'}); const box = node.getBoundingClientRect();"
            " return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        mouse = {"x": at[0], "y": at[1], "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            self.ask("Input.dispatchMouseEvent", {"type": kind, **mouse})

    def type(self, text: str) -> None:
        self.ask("Input.insertText", {"text": text})

    def screenshot(self, path: Path) -> None:
        """Write a picture of the whole page, not only of what fits the window."""
        answer = self.ask("Page.captureScreenshot", {"captureBeyondViewport": True})
        path.write_bytes(base64.b64decode(answer["data"]))

    def heard(self, event: str, parameters: dict[str, Any]) -> None:
        if event == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.problems.append(parameters["entry"]["text"])
        elif event == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(parameters["exceptionDetails"]))
        elif event == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif event == "Network.webSocketCreated":
            self.requests.append(parameters["url"])


class Browser:
    """The process. `pages` are its tabs by session."""

    def __init__(self, directory: Path, wrapper: Sequence[str] = ()) -> None:
        """Start it with a new profile below `directory`; wrapper: `ip netns exec NAME`."""
        program = find_chromium()
        if program is None:
            raise BrowserError("chromium is not installed")
        self.pages: dict[str, Page] = {}
        self._buffer = b""
        self._number = 0
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        command = [*wrapper, program, *FLAGS, f"--user-data-dir={directory}",
                   "--remote-debugging-pipe", "about:blank"]  # fmt: skip
        try:
            # A shell puts the pipes where the browser looks for them.
            self._process = subprocess.Popen(
                ["bash", "-c", f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}', "sh", *command],
                pass_fds=(theirs_in, theirs_out),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "HOME": str(directory)},
                start_new_session=True,
            )
        finally:
            os.close(theirs_in)
            os.close(theirs_out)

    def page(self) -> Page:
        """Open a tab."""
        return Page(self, self.ask("Target.createTarget", {"url": "about:blank"})["targetId"])

    def ask(
        self, method: str, parameters: dict[str, Any] | None = None, session: str | None = None
    ) -> dict[str, Any]:
        """Send one command and return its result; events that come before are handed over."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method}
        message["params"] = parameters or {}
        if session is not None:
            message["sessionId"] = session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            answer = self._receive(deadline, method)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise BrowserError(f"{method}: {answer['error']}")
                return dict(answer["result"])
            page = self.pages.get(answer.get("sessionId", ""))
            if page is not None and "method" in answer:
                page.heard(answer["method"], answer["params"])

    def _receive(self, deadline: float, method: str) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError(f"the browser did not answer {method}")
            part = os.read(self._in, 1 << 20)
            if not part:
                raise BrowserError(f"the browser ended at {method}")
            self._buffer += part
        text, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(text))

    def close(self) -> None:
        """End it with all its processes."""
        os.close(self._out)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._in)


@contextlib.contextmanager
def browser(directory: Path, wrapper: Sequence[str] = ()) -> Iterator[Browser]:
    one = Browser(directory, wrapper)
    try:
        yield one
    finally:
        one.close()
