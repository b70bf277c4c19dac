"""What tests ask about processes, and how they wait."""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

__all__ = ["alive", "processes_of_group", "processes_within", "stopped", "until"]


def until(condition: Callable[[], object], *, seconds: float = 30.0) -> None:
    """Wait for a condition, and fail when it doesn't come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.01)  # the poll's pace; what is waited for is the condition


def alive(pid: int | None) -> bool:
    """Tell whether a process runs; one that ended and wasn't fetched by its parent does not."""
    return pid is not None and _stat(pid)[0] not in {"", "Z", "X"}


def stopped(pid: int) -> bool:
    """Tell whether a process is held by SIGSTOP, which takes effect some time after it was sent."""
    return _stat(pid)[0] == "T"


def processes_of_group(leader: int) -> list[int]:
    """List the live processes of a process group."""
    return [pid for pid in _pids() if alive(pid) and _stat(pid)[2] == str(leader)]


def processes_within(directory: Path) -> list[int]:
    """List the live processes, but this one, that work somewhere below a directory, removed or not."""
    found = []
    for pid in _pids():
        with suppress(OSError):
            if str(Path(f"/proc/{pid}/cwd").readlink()).startswith(str(directory)):
                found.append(pid)
    return [pid for pid in found if alive(pid) and pid != os.getpid()]


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]


def _stat(pid: int) -> list[str]:
    """Read state, parent and group from what the system tells of a process; empty words when it's gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[:3]
    except (FileNotFoundError, ProcessLookupError):
        return ["", "", ""]
