"""
Who has run how many tasks since when, in a file that the workers' processes and the measuring one share.

A task's entry costs a microsecond and no word with Redis, so that what is measured is the system's own.
"""

import fcntl
import mmap
import os
from pathlib import Path
from threading import Lock
from time import monotonic_ns
from typing import Final

__all__ = ["Tally", "count"]

SLOTS: Final = 64  # processes that may run tasks at a time
SAMPLES: Final = 4096  # delays that a process may note, the last ones
_PID, _COUNT, _LAST, _HEAD = 0, 1, 2, 3
_WIDTH: Final = _HEAD + SAMPLES
_CELL: Final = 8  # bytes


class Tally:
    """The file. Whoever counts takes one slot of it for its process; whoever reads takes none."""

    def __init__(self, path: Path) -> None:
        """Open the file, and make it where it isn't there."""
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(self._file, SLOTS * _WIDTH * _CELL)
        self._cells = memoryview(mmap.mmap(self._file, 0)).cast("Q")
        self._base = -1
        self._lock = Lock()

    def count(self, delay_ns: int | None = None) -> None:
        """Note that this process has run a task, and how long that had to wait."""
        with self._lock:
            if self._base < 0:
                self._base = self._claimed()
            cells, base = self._cells, self._base
            done = cells[base + _COUNT]
            if delay_ns is not None:
                cells[base + _HEAD + done % SAMPLES] = delay_ns
            cells[base + _LAST] = monotonic_ns()
            cells[base + _COUNT] = done + 1

    def _claimed(self) -> int:
        """Take the slot of a process that is no more, whose counts stay in it, or a fresh one."""
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            for base in range(0, SLOTS * _WIDTH, _WIDTH):
                if not _lives(self._cells[base]):
                    self._cells[base] = os.getpid()
                    return base
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)
        message = f"More than {SLOTS} processes run tasks at a time."
        raise RuntimeError(message)

    def leave(self) -> None:
        """Forget the slot: this process is a child of the one that took it."""
        self._base, self._lock = -1, Lock()

    def clear(self) -> None:
        """Begin anew, while nobody runs a task."""
        for base in range(0, SLOTS * _WIDTH, _WIDTH):
            self._cells[base + _COUNT] = self._cells[base + _LAST] = 0

    def counts(self) -> list[int]:
        """Return how many tasks each process has run that has run any."""
        return [done for base in range(0, SLOTS * _WIDTH, _WIDTH) if (done := self._cells[base + _COUNT])]

    def last_ns(self) -> int:
        """Return when the last task was run, by the monotonic clock; 0 where none was."""
        return max(self._cells[base + _LAST] for base in range(0, SLOTS * _WIDTH, _WIDTH))

    def delays_ns(self) -> list[int]:
        """Return the delays that were noted."""
        return [
            self._cells[base + _HEAD + number]
            for base in range(0, SLOTS * _WIDTH, _WIDTH)
            for number in range(min(self._cells[base + _COUNT], SAMPLES))
        ]


def _lives(pid: int) -> bool:
    return bool(pid) and Path(f"/proc/{pid}").exists()


def _of_this_process() -> "Tally | None":
    path = os.environ.get("PEERS_TALLY")
    if path is None:
        return None
    found = Tally(Path(path))
    os.register_at_fork(after_in_child=found.leave)
    return found


_own: Final = _of_this_process()


def count(delay_ns: int | None = None) -> None:
    """Count a task of this process, where anybody measures."""
    if _own is not None:
        _own.count(delay_ns)
