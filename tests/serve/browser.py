"""Chromium without a window, told what to do over a pipe (the DevTools protocol)."""

import contextlib
import json
import os
import shutil
import subprocess
import time

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe",
    "--no-first-run", "--disable-background-networking", "about:blank",
)  # fmt: skip


class Page:
    """One page.

    Attributes:
      said: what it wrote to its console, and errors.
    """

    def __init__(self, send: int, receive: int):
        self._send, self._receive, self._rest, self._number = send, receive, b"", 0
        self._session, self.said = None, []
        target = self.tell("Target.createTarget", url="about:blank")["targetId"]
        made = self.tell("Target.attachToTarget", targetId=target, flatten=True)
        self._session = made["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.tell(f"{domain}.enable")

    def tell(self, method: str, **parameters) -> dict:
        """Has the browser do something; returns what it answers."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._send, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            if answer.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.said.append(answer["params"])
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def value(self, script: str):
        """What an expression of the page gives."""
        return self.tell("Runtime.evaluate", expression=script, returnByValue=True)["result"].get(
            "value"
        )

    def wait(self, script: str, seconds: float = 30):
        """Waits until an expression is true."""
        until = time.monotonic() + seconds
        while not self.value(script):
            assert time.monotonic() < until, f"{script} is not so; the page says {self.said}"
            time.sleep(0.05)

    def _next(self) -> dict:
        while b"\0" not in self._rest:
            more = os.read(self._receive, 2**16)
            if not more:
                raise EOFError("the browser has ended")
            self._rest += more
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)


@contextlib.contextmanager
def open_page(profile):
    """A Page of a browser whose files lie in `profile`."""
    to_browser, from_us = os.pipe()
    from_browser, to_us = os.pipe()
    shell = f'exec "$@" 3<&{to_browser} 4>&{to_us}'
    command = ["bash", "-c", shell, "browser", CHROMIUM, *_FLAGS, f"--user-data-dir={profile}"]
    process = subprocess.Popen(
        command, pass_fds=(to_browser, to_us), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    for end in (to_browser, to_us):
        os.close(end)
    try:
        yield Page(from_us, from_browser)
    finally:
        process.terminate()
        process.wait(20)
        for end in (from_us, from_browser):
            os.close(end)
