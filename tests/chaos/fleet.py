"""Agents that are started again whenever they end, as an init system would."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Final

from tests.processes import _stat, alive, processes_within, until

__all__ = ["Agent", "Fleet", "running_fleet"]

_PROJECT: Final = Path(__file__).parents[2]
_READY: Final = b" ready."
_READY_SECONDS: Final = 60.0
_RESTART_SECONDS: Final = 1.0
_STOP_SECONDS: Final = 10.0  # as Docker gives; whoever hasn't ended by then is killed
_LOOK_SECONDS: Final = 0.05


class Agent:
    """One `celery worker` after another, by one name; each run writes a log of its own."""

    def __init__(
        self,
        name: str,
        folder: Path,
        options: Sequence[str],
        environment: Mapping[str, str],
        *,
        prefix: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.started_at = 0.0  # monotonic
        self.hung_stops = 0
        self.own_ends = 0  # that nobody asked for
        self._folder = folder
        self._command = [*prefix, sys.executable, "-m", "celery", "-A", "tests.chaos.agent", "worker", "-n", self.name]
        self._command += ["-l", "INFO", "-P", "prefork", *options]
        self._environment = {**os.environ, **environment, "PYTHONPATH": str(_PROJECT), "PYTHONUNBUFFERED": "1"}
        self._process: subprocess.Popen[bytes] | None = None
        self._runs = 0
        self._ready = False
        self._struck = False
        self._stop_by: float | None = None
        self._start_at: float | None = None

    # ── what faults ask ──

    @property
    def pid(self) -> int:
        """The main process."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the main process runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def ready(self) -> bool:
        """Whether this run of the agent has said that it is ready."""
        self._ready = self._ready or _READY in self._log.read_bytes()
        return self.running and self._ready and self._stop_by is None

    @property
    def _log(self) -> Path:
        return self._folder / f"{self._runs}.log"

    def processes(self) -> list[int]:
        """List every process of the agent, those that a killed main process has left behind included."""
        return processes_within(self._folder)

    def orphans(self) -> list[int]:
        """List those of its processes that don't descend from its main one."""
        found, family = self.processes(), {self.pid}
        while grown := {pid for pid in found if _parent_of(pid) in family} - family:
            family |= grown
        return sorted(set(found) - family)

    def strike(self, fault: signal.Signals) -> None:
        """Send the main process a signal that ends it."""
        self._struck = True
        os.kill(self.pid, fault)

    def strike_group(self, fault: signal.Signals) -> None:
        """Send the whole process group a signal that ends it."""
        self._struck = True
        os.killpg(self.pid, fault)

    def stop(self, request: signal.Signals) -> None:
        """Ask it to end; it's killed when it doesn't."""
        self._stop_by = time.monotonic() + _STOP_SECONDS
        self.strike(request)

    # ── what the supervisor does ──

    def start(self) -> None:
        """Start the agent."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._runs += 1
        self.started_at = time.monotonic()
        self._ready, self._struck, self._stop_by, self._start_at = False, False, None, None
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def tend(self) -> None:
        """Kill it when it hasn't stopped in time; start it again when it has ended and its time has come."""
        now = time.monotonic()
        if self.running:
            if self._stop_by is not None and now > self._stop_by:
                self.hung_stops += 1
                self._stop_by = None
                self.kill()
        elif self._start_at is None:
            self.own_ends += not self._struck
            self._start_at = now + _RESTART_SECONDS
        elif now >= self._start_at:
            self.start()

    def kill(self) -> None:
        """End every process of the agent."""
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self._process is not None:
            self._process.wait()


class Fleet:
    """The agents and the thread that tends them."""

    def __init__(self, agents: Sequence[Agent]) -> None:
        self.agents = agents
        self._ended = Event()
        self._thread = Thread(target=self._tend, name="supervisor", daemon=True)

    def start(self) -> None:
        """Start every agent, and wait until all are ready."""
        for agent in self.agents:
            agent.start()
        self._thread.start()
        self.wait_ready()

    def wait_ready(self) -> None:
        """Wait until every agent is ready."""
        until(lambda: all(agent.ready for agent in self.agents), seconds=_READY_SECONDS)

    def _tend(self) -> None:
        while not self._ended.wait(_LOOK_SECONDS):
            for agent in self.agents:
                agent.tend()

    def close(self) -> None:
        """End the agents, and leave none of their processes."""
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()
        for agent in self.agents:
            agent.kill()
            until(lambda agent=agent: not any(alive(pid) for pid in agent.processes()), seconds=10)  # type: ignore[misc]


def _parent_of(pid: int) -> int | None:
    """Return the parent of a process; None when it is gone."""
    parent = _stat(pid)[1]
    return int(parent) if parent else None


@contextmanager
def running_fleet(agents: Sequence[Agent]) -> Iterator[Fleet]:
    """Give these agents once all are ready, and end them."""
    fleet = Fleet(agents)
    try:
        fleet.start()
        yield fleet
    finally:
        fleet.close()
