"""
Several agents of one app on one machine, started, watched and stopped together.

Every agent is a real `celery worker` process in a session of its own, so a Ctrl-C in the terminal reaches this process
alone, which then stops them in order.
"""

import atexit
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import SIGQUIT, SIGTERM, Signals
from threading import Lock
from types import TracebackType
from typing import Final, Self

from pydantic import ConfigDict

from orchestra.capabilities import CapabilitySet
from orchestra.exceptions import ConfigurationError, PermanentError, RetryableError
from orchestra.supervised import Death, Sink, Supervised

__all__ = ["AgentSpec", "Fleet"]

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_NUMBER: Final = re.compile(r"[0-9]{1,3}")
_FORM: Final = "NAME, NAME:CAPABILITIES or NAME:CAPABILITIES:PROCESSES, such as text:nlp,mem_gb=64:2"
_COLD_SECONDS: Final = 2.0
_POLL_SECONDS: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSpec:
    """
    One kind of agent: what it can, and how many processes of it run.

    Without capabilities it's started as a stock worker is. `pool` and `concurrency` are Celery's; None leaves them to
    the app.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: str
    capabilities: str = ""
    processes: int = 1
    pool: str | None = None
    concurrency: int | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            message = f"{self.name!r} is no name for an agent: use letters, digits, '_', '.' and '-', such as text."
            raise ConfigurationError(message)
        if self.processes < 1 or (self.concurrency is not None and self.concurrency < 1):
            message = f"Agent {self.name} needs at least one process, and a concurrency of 1 or more."
            raise ConfigurationError(message)
        if self.capabilities:
            CapabilitySet.parse(self.capabilities)

    @classmethod
    def parse(cls, text: str) -> Self:
        """
        Read `NAME:CAPABILITIES:PROCESSES`, of which the last two may be left out.

        >>> AgentSpec.parse("text:nlp:2").names
        ('text-1', 'text-2')
        """
        match text.split(":"):
            case [name]:
                return cls(name=name)
            case [name, capabilities]:
                return cls(name=name, capabilities=capabilities)
            case [name, capabilities, processes] if _NUMBER.fullmatch(processes):
                return cls(name=name, capabilities=capabilities, processes=int(processes))
        message = f"{text!r} doesn't say which agent to start: write {_FORM}."
        raise ConfigurationError(message)

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each process; a single one has the agent's own."""
        if self.processes == 1:
            return (self.name,)
        return tuple(f"{self.name}-{number}" for number in range(1, self.processes + 1))

    def command(self, app: str, name: str, log_level: str) -> list[str]:
        """Return the command that starts the process `name`, one of `names`."""
        command = [sys.executable, "-m", "celery", "-A", app, "--quiet", "worker", "-n", f"{name}@%h"]
        options = {
            "--loglevel": log_level,
            "--capabilities": self.capabilities,
            "--pool": self.pool,
            "--concurrency": self.concurrency,
        }
        return command + [str(word) for option, value in options.items() if value for word in (option, value)]


class Fleet:
    """
    The agents of `app`, a name as `celery -A` takes it.

    `environment` is laid over this process's own. `sink` is called with the agent's name and each line that it writes,
    one line at a time. `with Fleet(…) as fleet:` starts it and, at the end, stops it.
    """

    def __init__(
        self,
        app: str,
        agents: Iterable[AgentSpec],
        *,
        environment: Mapping[str, str] | None = None,
        sink: Sink | None = None,
        directory: Path | None = None,
        log_level: str = "INFO",
    ) -> None:
        self._environment = {**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})}
        self._sink = sink
        self._sink_lock = Lock()
        self._directory = directory
        self._processes: dict[str, Supervised] = {}
        self._owner_pid = os.getpid()
        self._running = False
        for spec in agents:
            for name in spec.names:
                self.add(name, spec.command(app, name, log_level), ready_line=rf"\b{re.escape(name)}@\S+ ready\.")
        self._agents = frozenset(self._processes)

    def add(
        self, name: str, command: Sequence[str], *, ready_line: str, environment: Mapping[str, str] | None = None
    ) -> None:
        """
        Let another program run with the agents; it's ready when it writes a line that matches `ready_line`.

        In a fleet that was started it starts at once.
        """
        if name in self._processes:
            message = f"Two processes of the fleet are called {name}; give one of them another name."
            raise ConfigurationError(message)
        self._processes[name] = Supervised(
            name=name,
            command=command,
            ready_line=re.compile(ready_line),
            hear=self._hear,
            environment={**self._environment, **(environment or {})},
            directory=self._directory,
        )
        if self._running:
            self._processes[name].start()

    def _hear(self, name: str, line: str) -> None:
        with self._sink_lock:
            if self._sink is None:
                return
            try:
                self._sink(name, line)
            except (OSError, ValueError):  # our own output is gone; the agents are read on, or they would stand still
                self._sink = None

    @property
    def names(self) -> tuple[str, ...]:
        """Every process's name, in the order of the start."""
        return tuple(self._processes)

    @property
    def pids(self) -> dict[str, int]:
        """The process id of each process that runs."""
        return {name: pid for name, process in self._processes.items() if (pid := process.pid) is not None}

    def start(self) -> None:
        """Start every process; what was started is stopped again when that fails or is interrupted."""
        atexit.register(self._kill_at_exit)
        self._running = True
        try:
            for process in self._processes.values():
                process.start()
        except BaseException:  # an interrupt too
            self._kill()
            raise

    def wait_ready(self, timeout: float = 60.0, *, ready: Callable[[], set[str]] | None = None) -> None:
        """
        Wait until every process is ready.

        `ready` returns the names of the agents that are, with or without their host; without it, Celery's own line
        "ready." in their logs tells.

        Raises:
            PermanentError: a process ended; carries `agent`, `exit_code` and `last_lines`.
            RetryableError: `timeout` seconds were not enough; carries `agents`.

        """
        deadline = time.monotonic() + timeout
        while waiting := self._waiting(ready):
            for process in waiting:
                if (death := process.death()) is not None:
                    raise _stillborn(death)
            if time.monotonic() > deadline:
                raise _late(waiting, timeout)
            waiting[0].wait(_POLL_SECONDS)

    def _waiting(self, ready: Callable[[], set[str]] | None) -> list[Supervised]:
        done = {name for name, process in self._processes.items() if process.said_ready}
        if ready is not None:
            done = (done - self._agents) | {name.partition("@")[0] for name in ready()}
        return [process for name, process in self._processes.items() if name not in done]

    def tend(self) -> list[Death]:
        """
        Start again who ended and has waited long enough; return who was found dead since the last call.

        To be called every now and then. The wait doubles from half a second up to half a minute.
        """
        return [death for process in self._processes.values() if (death := process.tend()) is not None]

    def stop(self, timeout: float = 10.0) -> None:
        """
        Ask every process to finish what it runs, and wait up to `timeout` seconds for all of them.

        Then, or when the wait is interrupted, ask for what Celery calls a cold shutdown, which gives tasks back rather
        than finishing them. Who is still there two seconds later is killed.
        """
        try:
            self._ask(SIGTERM, timeout)
        finally:  # an impatient second Ctrl-C lands here
            try:
                self._ask(SIGQUIT, _COLD_SECONDS)
            finally:  # and a third one here
                self._kill()

    def _ask(self, request: Signals, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        for process in self._processes.values():
            process.terminate(request)
        for process in self._processes.values():
            process.wait(max(0.0, deadline - time.monotonic()))

    def _kill(self) -> None:
        self._running = False
        for process in self._processes.values():
            process.kill()
        atexit.unregister(self._kill_at_exit)

    def _kill_at_exit(self) -> None:
        if os.getpid() == self._owner_pid:  # a forked child leaves them to its parent
            self._kill()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


def _stillborn(death: Death) -> PermanentError:
    *before, last = death.last_lines or ("it wrote nothing",)
    lines = "".join(f"\n  {line}" for line in before)
    message = f"{death.name} {death.cause} before it was ready: {last.strip()}" + (
        f"\nBefore that:{lines}" if lines else ""
    )
    return PermanentError(message, agent=death.name, exit_code=death.exit_code, last_lines=death.last_lines)


def _late(waiting: Sequence[Supervised], timeout: float) -> RetryableError:
    names = tuple(process.name for process in waiting)
    last = "".join(f"\n  {process.name}: {line}" for process in waiting for line in process.last_lines[-1:])
    message = f"Not ready within {timeout:g} s: {', '.join(names)}. Is Redis reachable? What each wrote last:{last}"
    return RetryableError(message, agents=names)
