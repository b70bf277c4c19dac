"""A headless Chromium, steered over a pair of pipes by the DevTools protocol."""

import json
import os
import select
import shutil
import signal
import subprocess
import time
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.integration.agents import wait_until

__all__ = ["CHROMIUM", "Browser", "browser_in"]

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

PATIENCE_SECONDS = 20.0
SWITCHES = (
    "--headless",
    "--no-sandbox",  # which root would need, as containers have it
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--no-first-run",
    "--hide-scrollbars",
    "--window-size=1200,675",
    "--remote-debugging-pipe",
)
# Chromium reads commands from file 3 and answers on file 4; each message ends with a zero byte.
COMMAND = 'exec "$@" 3<&{commands} 4>&{answers}'


class Browser:
    """One page of a running Chromium."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands = commands
        self._answers = answers
        self._received = b""
        self._count = 0
        self._session: str | None = None
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def open(self, url: str) -> str:
        """Go to a page; return the error that the browser shows in its place, or nothing."""
        return str(self._call("Page.navigate", url=url).get("errorText", ""))

    def click(self, selector: str) -> None:
        """Click what a CSS selector finds, once it's there."""
        wait_until(lambda: self.evaluate(f"document.querySelector({selector!r}) !== null"), what=selector)
        self.evaluate(f"document.querySelector({selector!r}).click()")

    def text(self) -> str:
        """Return what a person can read on the page: cells are parted by tabs, rows by newlines."""
        return str(self.evaluate("document.body ? document.body.innerText : ''"))

    def source(self) -> str:
        """Return all of the page as it is now, with what isn't shown."""
        return str(self.evaluate("document.documentElement.outerHTML"))

    def rows(self, selector: str) -> list[list[str]]:
        """Return the texts of a table's cells, row by row."""
        script = (
            "Array.from(document.querySelectorAll({}), row => Array.from(row.cells, cell => cell.innerText.trim()))"
        )
        found: list[list[str]] = self.evaluate(script.format(json.dumps(f"{selector} tbody tr")))
        return found

    def evaluate(self, script: str) -> Any:
        """Return the value of a line of JavaScript."""
        return self._call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def save(self, path: Path) -> None:
        """Write a picture of the page, a PNG."""
        path.write_bytes(b64decode(self._call("Page.captureScreenshot", format="png")["data"]))

    def _call(self, method: str, **params: object) -> Any:
        self._count += 1
        session = {} if self._session is None else {"sessionId": self._session}
        message = {"id": self._count, "method": method, "params": params, **session}
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._count:
            pass  # events, which nobody asked for
        assert "error" not in answer, answer
        return answer["result"]

    def _next(self) -> Any:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while b"\0" not in self._received:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))
            read = os.read(self._answers, 1 << 16) if ready else b""
            assert read, "Chromium ended, or doesn't answer"
            self._received += read
        answer, _, self._received = self._received.partition(b"\0")
        return json.loads(answer)


@contextmanager
def browser_in(folder: Path) -> Iterator[Browser]:
    """Give a browser that keeps everything in a folder, and end it."""
    assert CHROMIUM is not None
    theirs_in, commands = os.pipe()
    answers, theirs_out = os.pipe()
    with (folder / "chromium.log").open("wb") as log:
        process = subprocess.Popen(
            [
                *("bash", "-c", COMMAND.format(commands=theirs_in, answers=theirs_out), "bash"),
                *(CHROMIUM, *SWITCHES, f"--user-data-dir={folder / 'profile'}"),
            ],
            env={**os.environ, "HOME": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=(theirs_in, theirs_out),
            start_new_session=True,
        )
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        yield Browser(commands, answers)
    finally:
        os.close(commands)  # at which Chromium ends
        os.close(answers)
        with suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE_SECONDS)
        with suppress(ProcessLookupError):  # none of its processes is left, as a rule
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
