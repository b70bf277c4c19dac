"""
The heartbeat of a process that leases messages.

A thread's beats would stand still while any code holds Python's lock, and one regular expression can hold it for
seconds. So a tiny process beats, `pulse_process.py`, as long as this one shows that it works.
"""

import json
import mmap
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from time import monotonic
from typing import Any, Final

import hiredis

from orchestra import pulse_process
from orchestra.logging_utils import get_logger
from orchestra.pulse_process import BEATS, BECAME_DUE, MEMORY_BYTES, RECLAIMED, RUNNING, TICKS
from orchestra.store import Argument, Keys, Script, text_of

__all__ = ["Pulse", "beat_arguments"]

_LOOK_SECONDS: Final = 1.0  # how often a tick looks whether the helper lives
_BEATS_BEFORE_LOST: Final = 4
_TLS: Final = (
    *("ssl", "ssl_ca_certs", "ssl_ca_data", "ssl_ca_path", "ssl_cert_reqs", "ssl_certfile"),
    *("ssl_check_hostname", "ssl_ciphers", "ssl_keyfile", "ssl_min_version", "ssl_password"),
)
_SERVER: Final = (*_TLS, "host", "port", "path", "username", "password", "db", "sentinels", "master_name")
# What the interpreter, TLS and the search for addresses go by. The rest stays here: it may hold the broker's password.
_ENVIRONMENT: Final = (
    *("DYLD_LIBRARY_PATH", "LD_LIBRARY_PATH", "LOCALDOMAIN"),
    *("OPENSSL_CONF", "RES_OPTIONS", "SSL_CERT_DIR", "SSL_CERT_FILE"),
)

log = get_logger(__name__)


class Pulse:
    """
    Beats for this process, by a script that a helper process runs every `every_seconds`.

    It beats while `running` is set, and for `lost_after_seconds` after each tick; not while this process is stopped by
    a signal. It beats at least four times within `lost_after_seconds`, also where `every_seconds` would be longer.

    Only the process that called `start` has the pulse: in its forks every method does nothing.

    Args:
        parameters: how to reach Redis, in redis-py's names for the arguments of a connection: `host` and `port`, or
            `path`; `username`, `password`, `db`; `ssl=True` with the `ssl_…` options. With `sentinels`, pairs of host
            and port, and `master_name`, Sentinel is asked; `sentinel_kwargs` has the parameters for that. Other
            names are left out.
        script: what a beat runs. It returns two numbers: messages taken back, messages that became due.
        keys: the script's keys.
        args: the script's arguments.
        every_seconds: the time between two beats.
        lost_after_seconds: the silence after which others take the leases.

    """

    def __init__(
        self,
        parameters: Mapping[str, Any],
        script: Script,
        keys: Sequence[str],
        args: Sequence[Argument],
        *,
        every_seconds: float,
        lost_after_seconds: float,
    ) -> None:
        self._settings: Mapping[str, Any] = {
            "connection": _connection(parameters),
            "source": script.source,
            "sha": script.sha,
            "keys": list(keys),
            "args": [text_of(arg) for arg in args],
            "every_seconds": min(every_seconds, lost_after_seconds / _BEATS_BEFORE_LOST),
            "lost_after_seconds": lost_after_seconds,
        }
        self._numbers: list[int] | memoryview[int] = [0] * (MEMORY_BYTES // 8)
        self._shared: _SharedMemory | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0  # the process that has the pulse
        self._look_at = 0.0

    def start(self) -> None:
        """
        Start the helper; nothing happens when it was started.

        Raises:
            OSError: the system refused to start a process.

        """
        if self._owner:
            return
        self._shared = _SharedMemory()
        try:
            self._spawn(self._shared)
        except BaseException:
            self._shared.close()
            raise
        self._numbers = self._shared.numbers
        self._owner = os.getpid()
        self._look_at = monotonic() + _LOOK_SECONDS

    def _spawn(self, shared: "_SharedMemory") -> None:
        self._close_input()
        packages = str(Path(hiredis.__file__).parents[1])
        # Without -I the folder of the program would be searched first, and our `types` come before Python's.
        self._process = subprocess.Popen(  # noqa: S603  # nothing of it comes from outside
            [sys.executable, "-I", "-S", pulse_process.__file__, packages],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
            pass_fds=(shared.file,),
            start_new_session=True,  # out of reach of the terminal's Ctrl-C: tasks are being finished then
        )
        settings = {**self._settings, "parent": os.getpid(), "memory": shared.file}
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):  # it has ended already, which the next look finds
                self._process.stdin.write(json.dumps(settings).encode() + b"\n")
                self._process.stdin.flush()

    def tick(self) -> None:
        """Say that the loop turns, in less than a microsecond; once a second this restarts a helper that died."""
        if os.getpid() != self._owner:
            return
        self._numbers[TICKS] += 1
        if monotonic() >= self._look_at:
            self._look()

    def _look(self) -> None:
        self._look_at = monotonic() + _LOOK_SECONDS
        if self._process is None or self._shared is None or self._process.poll() is None:
            return
        exit_code = self._process.returncode
        try:
            self._spawn(self._shared)
        except OSError as error:
            log.warning("pulse not restarted", exit_code=exit_code, error=str(error))
        else:
            log.warning("pulse restarted", exit_code=exit_code)

    @property
    def running(self) -> bool:
        """Whether a task is running: then beats need no ticks."""
        return self._numbers[RUNNING] != 0

    @running.setter
    def running(self, value: bool) -> None:
        if os.getpid() == self._owner:
            self._numbers[RUNNING] = int(value)

    @property
    def reclaimed(self) -> int:
        """How many messages its beats took back from lost holders."""
        return self._numbers[RECLAIMED]

    @property
    def became_due(self) -> int:
        """How many delayed messages its beats moved to their queues."""
        return self._numbers[BECAME_DUE]

    @property
    def beats(self) -> int:
        """How many beats Redis has answered."""
        return self._numbers[BEATS]

    def stop(self) -> None:
        """End the helper at once; no beat is sent after this. What was counted stays to be read."""
        if os.getpid() != self._owner:
            return
        self._owner = 0
        if self._process is not None:
            self._process.kill()  # a beat is one step of the server's: nothing can be cut in two
            self._process.wait()
            self._close_input()
        if self._shared is not None:
            self._numbers = list(self._shared.numbers)
            self._shared.close()

    def _close_input(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            with suppress(BrokenPipeError):  # settings that it didn't live to read
                self._process.stdin.close()


class _SharedMemory:
    """Numbers that a child sees too, who gets `file`; nobody else can reach them by any path."""

    def __init__(self) -> None:
        self.file = _nameless_file()
        os.ftruncate(self.file, MEMORY_BYTES)
        self._map = mmap.mmap(self.file, MEMORY_BYTES)
        self.numbers = memoryview(self._map).cast("Q")

    def close(self) -> None:
        """Give the memory back."""
        self.numbers.release()
        self._map.close()
        os.close(self.file)


def _nameless_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("orchestra-pulse")
    with TemporaryFile() as file:
        return os.dup(file.fileno())


def _connection(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Keep what the helper understands: clients are told more, some of which is no JSON."""
    known = {name: parameters[name] for name in _SERVER if name in parameters}
    sentinel = _connection(parameters.get("sentinel_kwargs") or {}) if known.get("sentinels") else {}
    return {"host": "localhost", "port": 6379, **known, "sentinel_kwargs": sentinel}


def beat_arguments(
    keys: Keys, *, holder: str, agent: str, lost_after_seconds: float, limit: int = 1000
) -> tuple[list[str], list[Argument]]:
    """
    Return the keys and the arguments of `scripts/pulse.lua`.

    Args:
        keys: the fleet's key names.
        holder: who beats.
        agent: the name under which the holder is registered as an agent; empty for none.
        lost_after_seconds: the silence after which a holder's messages are taken back.
        limit: the most messages that one beat takes back, and the most that it moves because they are due.

    """
    return (
        [keys.holders, keys.beats, keys.agents, keys.agent(agent), keys.due, keys.redelivered],
        [keys.base, holder, lost_after_seconds, agent, limit],
    )
