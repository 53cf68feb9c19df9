"""A headless Chromium, driven by its DevTools protocol: what a person would see, asked by a test.

Only what the pages of Dagster need: open, wait until an expression is true, evaluate, take a picture.
"""

import base64
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
WIDTH, HEIGHT = 1440, 1000


def installed() -> str | None:
    """The browser of this machine, if it has one."""
    return next((path for name in PROGRAMS if (path := shutil.which(name))), None)


class Page:
    """One tab."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._number = 0
        self._session: str | None = None
        self.errors: list[str] = []
        """What the pages threw, what was answered with an error, and requests that would leave this machine."""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network"):
            self._call(f"{domain}.enable")
        size = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setDeviceMetricsOverride", **size)

    def open(self, url: str) -> None:
        """Go there; what is drawn by script comes later."""
        self._call("Page.navigate", url=url)

    def tell(self, expression: str) -> Any:
        """What a JavaScript expression is worth now."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, expression: str, seconds: float = 20) -> Any:
        """The first true worth of the expression.  Fails with the page's text where none comes."""
        deadline = time.monotonic() + seconds
        while not (found := self.tell(expression)):
            assert time.monotonic() < deadline, f"not seen in {seconds} s: {expression}\n{self.text()}"
            time.sleep(0.1)
        return found

    def wait_for(self, *texts: str, seconds: float = 20) -> None:
        """Until each of the texts can be read on the page."""
        for text in texts:
            self.wait(f"!!document.body && document.body.innerText.includes({json.dumps(text)})", seconds)

    def text(self) -> str:
        """All that can be read."""
        return self.tell("document.body ? document.body.innerText : ''") or ""

    def picture(self, path: Path) -> None:
        """What is seen, as a PNG file."""
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"]))

    def _call(self, method: str, **params: Any) -> Any:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        self._socket.send(json.dumps(message | ({"sessionId": self._session} if self._session else {})))
        while (answer := json.loads(self._socket.recv(timeout=60))).get("id") != self._number:
            self._note(answer)
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def _note(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        if event.get("method") == "Network.responseReceived" and params["response"]["status"] >= 400:
            self.errors.append(f"{params['response']['status']} of {params['response']['url'][:200]}")
        if event.get("method") == "Network.requestWillBeSent":
            url = params["request"]["url"]
            if not url.startswith(("http://127.0.0.1", "data:", "blob:", "about:")):
                self.errors.append(f"a request to {url[:200]}")


@contextmanager
def browser(program: str, folder: Path) -> Iterator[Page]:
    """A tab of a browser of its own, which keeps its profile in `folder`."""
    arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage"]
    command = [program, *arguments, "--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            with connect(_address(folder, process), max_size=None) as socket:
                yield Page(socket)
        finally:
            process.terminate()


def _address(folder: Path, process: subprocess.Popen[bytes]) -> str:
    # Chromium writes the port that it took, and the path of its socket, into this file.
    told, deadline = folder / "DevToolsActivePort", time.monotonic() + 30
    while not (told.exists() and told.read_text().count("\n")):
        assert process.poll() is None, f"the browser ended with {process.returncode}"
        assert time.monotonic() < deadline, "the browser does not answer"
        time.sleep(0.05)
    port, path = told.read_text().splitlines()[:2]
    return f"ws://127.0.0.1:{port}{path}"
