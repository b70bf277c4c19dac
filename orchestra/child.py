"""
A process that lives no longer than the one that started it.

Each child has a thread of its own, its keeper, which starts it, waits for its end, and then kills what is left of its
process group. Two things rest on that thread. Linux signals a child when the *thread* that started it ends, so the
thread has to last as long as the child. And an interrupt only ever strikes the main thread, so a Ctrl-C can't fall
between the start of a process and the line that remembers it.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Event, Lock, Thread
from typing import IO

__all__ = ["Child"]

# Run before the command in the child itself, since code between fork and exec may deadlock in a threaded parent.
# 1 is PR_SET_PDEATHSIG. The parent may have died before that call: then it isn't the parent any more.
_LEASH = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, int(sys.argv[1]))
if os.getppid() == int(sys.argv[2]):
    os.execvp(sys.argv[3], sys.argv[3:])
"""


class Child:
    """
    A command that runs in its own session, out of reach of the terminal's Ctrl-C.

    On Linux it gets `death_signal` when this process dies in whatever way; elsewhere it ends with a regular exit only.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        output: int | IO[bytes] = subprocess.DEVNULL,
        environment: Mapping[str, str] | None = None,
        directory: Path | None = None,
        death_signal: signal.Signals = signal.SIGKILL,
    ) -> None:
        self._command = _leashed(command, death_signal)
        self._output = output
        self._environment = environment
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._failure: OSError | None = None
        self._called_off = False
        self._lock = Lock()
        self._started = Event()
        self._ended = Event()

    def start(self) -> None:
        """
        Start it; a child starts once.

        Raises:
            OSError: the system refused to start the process.

        """
        Thread(target=self._keep, name=f"keeper of {self._command[-1]}", daemon=True).start()
        self._started.wait()
        if self._failure is not None:
            raise self._failure

    def _keep(self) -> None:
        with self._lock:
            process = None if self._called_off else self._spawn()
            self._process = process
        self._started.set()
        if process is not None:
            _wait_for_end(process)
            with self._lock:  # whoever holds it may signal the process by its number: it isn't reaped meanwhile
                process.wait()
                self._ended.set()

    def _spawn(self) -> "subprocess.Popen[bytes] | None":
        try:
            return subprocess.Popen(  # noqa: S603  # the callers make the command, not their users
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=subprocess.STDOUT,
                env=self._environment,
                cwd=self._directory,
                start_new_session=True,
            )
        except OSError as error:
            self._failure = error
            return None

    @property
    def pid(self) -> int | None:
        """The process id; None before the start."""
        return self._process.pid if self._process else None

    @property
    def output(self) -> IO[bytes] | None:
        """What it writes, when it was made with `output=subprocess.PIPE`."""
        return self._process.stdout if self._process else None

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal; None before the end."""
        return self._process.returncode if self._process and self._ended.is_set() else None

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and not self._ended.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for its end, by when the rest of its group is killed too; False when `timeout` seconds didn't do."""
        return self._process is None or self._ended.wait(timeout)

    def terminate(self, request: signal.Signals = signal.SIGTERM) -> None:
        """Ask the process itself to end by a signal; it sees to its own children."""
        with self._lock:
            self._called_off = True  # an interrupted start may not have come to its process yet: now it never will
            if self._process is not None and not self._ended.is_set():
                with suppress(ProcessLookupError):
                    os.kill(self._process.pid, request)  # Popen's own way would fetch an ended child from its keeper

    def kill(self) -> None:
        """End the whole group with SIGKILL, and wait for the end of the process itself."""
        with self._lock:
            self._called_off = True
            if self._process is not None and not self._ended.is_set():
                _kill_group(self._process.pid)
        self.wait()


def _leashed(command: Sequence[str], death_signal: signal.Signals) -> list[str]:
    if sys.platform != "linux":
        return list(command)
    return [sys.executable, "-I", "-S", "-c", _LEASH, str(int(death_signal)), str(os.getpid()), *command]


def _wait_for_end(process: "subprocess.Popen[bytes]") -> None:
    if not hasattr(os, "waitid"):  # macOS before Python 3.13
        process.wait()
        return
    # Left unreaped for a moment, so that the group's number can't have gone to a stranger when it is killed.
    with suppress(ChildProcessError):  # somebody else in this process waits for any child
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        _kill_group(process.pid)


def _kill_group(leader: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # macOS answers "not permitted" for a group of zombies
        os.killpg(leader, signal.SIGKILL)
