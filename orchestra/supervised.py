"""A process that is listened to: each line it writes is heard, its death is noticed, a successor follows."""

import re
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGTERM, Signals
from threading import Thread
from typing import IO, Final, TypeAlias

from orchestra.child import Child
from orchestra.exceptions import Backoff

__all__ = ["Death", "Sink", "Supervised"]

Sink: TypeAlias = Callable[[str, str], None]

_KEPT_LINES: Final = 20
_LINE_BYTES: Final = 64 * 1024  # a longer line is cut into pieces
_LAST_WORDS_SECONDS: Final = 1.0  # how long what a dead process wrote may take to be read
_STEADY_SECONDS: Final = 60.0  # who lived so long starts anew as if it were the first time
_RESTARTS: Final = Backoff(base_seconds=0.5, max_seconds=30.0, jitter="none")


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """A process that ended unasked: its exit code (negative for a signal), what it wrote last, and its successor."""

    name: str
    exit_code: int
    last_lines: tuple[str, ...]
    restart_in_seconds: float

    @property
    def cause(self) -> str:
        """What the exit code says, in words."""
        if self.exit_code >= 0:
            return f"ended with exit code {self.exit_code}"
        try:
            return f"was ended by {Signals(-self.exit_code).name}"
        except ValueError:
            return f"was ended by signal {-self.exit_code}"


@dataclass(kw_only=True)
class Supervised:
    """
    One process by name, and its successors after it died.

    `hear` gets the name and each line, in a thread of the process's own. A line that matches `ready_line` sets
    `said_ready`.
    """

    name: str
    command: Sequence[str]
    ready_line: re.Pattern[str]
    hear: Sink
    environment: Mapping[str, str] | None = None
    directory: Path | None = None
    said_ready: bool = field(default=False, init=False)
    _child: Child | None = field(default=None, init=False)
    _reader: Thread | None = field(default=None, init=False)
    _lines: deque[str] = field(default_factory=lambda: deque(maxlen=_KEPT_LINES), init=False)
    _deaths: int = field(default=0, init=False)
    _started_at: float = field(default=0.0, init=False)
    _restart_at: float | None = field(default=None, init=False)

    def start(self) -> None:
        """Start the process; `OSError` when the system refuses."""
        self.said_ready = False
        self._lines.clear()
        self._started_at = time.monotonic()
        self._child = Child(
            self.command,
            output=subprocess.PIPE,
            environment=self.environment,
            directory=self.directory,
            death_signal=SIGTERM,
        )
        self._child.start()
        if (output := self._child.output) is not None:  # None when a stop overtook the start
            self._reader = Thread(target=self._read, args=(output,), name=f"reader of {self.name}", daemon=True)
            self._reader.start()

    def _read(self, output: IO[bytes]) -> None:
        with output:
            for raw in iter(lambda: output.readline(_LINE_BYTES), b""):
                line = raw.decode(errors="replace").rstrip()
                self._lines.append(line)
                self.hear(self.name, line)
                if self.ready_line.search(line):
                    self.said_ready = True

    @property
    def pid(self) -> int | None:
        """The process id; None while nothing runs."""
        return self._child.pid if self._child is not None and self._child.running else None

    @property
    def last_lines(self) -> tuple[str, ...]:
        """What it wrote last, without the empty lines."""
        return tuple(line for line in list(self._lines) if line)

    def death(self) -> Death | None:
        """Return how the process ended; None while it runs, and before its start."""
        if self._child is None or self._child.returncode is None:
            return None
        self._hear_out()
        return Death(
            name=self.name,
            exit_code=self._child.returncode,
            last_lines=self.last_lines,
            restart_in_seconds=_RESTARTS.delay_seconds(self._deaths_in_a_row()),
        )

    def tend(self) -> Death | None:
        """Return a death that wasn't told yet, or start the successor when its time has come."""
        if self._restart_at is not None:
            if time.monotonic() >= self._restart_at:
                self._restart_at = None
                self.start()
            return None
        death = self.death()
        if death is not None:
            self._deaths = self._deaths_in_a_row()
            self._restart_at = time.monotonic() + death.restart_in_seconds
        return death

    def _deaths_in_a_row(self) -> int:
        lived_seconds = time.monotonic() - self._started_at
        return 1 if lived_seconds > _STEADY_SECONDS else self._deaths + 1

    def terminate(self, request: Signals = SIGTERM) -> None:
        """Ask the process to end."""
        if self._child is not None:
            self._child.terminate(request)

    def wait(self, timeout: float) -> bool:
        """Wait for the end of the process; False when it still runs after `timeout` seconds."""
        return self._child is None or self._child.wait(timeout)

    def kill(self) -> None:
        """End the process and everything in its group at once."""
        if self._child is not None:
            self._child.kill()
            self._hear_out()

    def _hear_out(self) -> None:
        if self._reader is not None and self._reader.is_alive():  # an interrupt may have come before its start
            self._reader.join(_LAST_WORDS_SECONDS)
