"""What a task's body may do to its own process."""

import ctypes
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from celery.exceptions import SoftTimeLimitExceeded

__all__ = ["DEEDS", "OUT_OF_MEMORY", "lacks_cgroup", "remove_cgroups"]

OUT_OF_MEMORY: Final = "grow until killed"

_ROOM_BYTES: Final = 128 << 20
_PORTION_BYTES: Final = 1 << 20
_CGROUPS: Final = (  # where groups of processes are bound, and the file that says by how much
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
    (Path("/sys/fs/cgroup"), "memory.max"),
)


def _exit() -> None:
    os._exit(1)


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _segfault() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.string_at(0)


def _raise_memory_error() -> None:
    raise MemoryError


def _grow_to_the_limit() -> None:
    """Take memory until the system gives no more, with a limit on the process's addresses."""
    with _limited_addresses():
        _grow()


@contextmanager
def _limited_addresses() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _ROOM_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _grow_until_killed() -> None:
    """Take memory until the system ends the process, in a control group that has little of it."""
    root, bound = _cgroup()
    group = root / f"chaos-{os.getpid()}"
    group.mkdir()
    (group / bound).write_text(str(_ROOM_BYTES), encoding="ascii")
    (group / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")
    _grow()


def _grow() -> None:
    taken = []
    while True:
        taken.append(bytearray(os.urandom(1) * _PORTION_BYTES))


def _cgroup() -> tuple[Path, str]:
    return next((root, bound) for root, bound in _CGROUPS if _has(root, bound))


def _has(root: Path, bound: str) -> bool:
    """Tell whether memory is bound there: by the first version's own tree, or by the second one for groups below."""
    if not os.access(root, os.W_OK):
        return False
    if (root / bound).exists():
        return True
    below = root / "cgroup.subtree_control"
    return below.exists() and "memory" in below.read_text(encoding="ascii")


def remove_cgroups() -> None:
    """Remove the groups of those that were killed, which couldn't."""
    for root, _ in _CGROUPS:
        for group in root.glob("chaos-*"):
            with suppress(OSError):  # somebody is in it
                group.rmdir()


def lacks_cgroup() -> str:
    """Say what this machine lacks for the bound of a control group, '' for nothing."""
    return "" if any(_has(*one) for one in _CGROUPS) else "no control group for memory can be made here"


def _hang() -> None:
    time.sleep(3600)


def _hang_hard() -> None:
    """Hang without listening to the word that time is up."""
    while True:
        with suppress(SoftTimeLimitExceeded):
            time.sleep(3600)


DEEDS: Final[Mapping[str, Callable[[], None]]] = {
    "exit": _exit,
    "kill": _kill,
    "segfault": _segfault,
    "raise MemoryError": _raise_memory_error,
    "grow to the limit": _grow_to_the_limit,
    OUT_OF_MEMORY: _grow_until_killed,
    "hang": _hang,
    "hang hard": _hang_hard,
}
