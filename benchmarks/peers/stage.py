"""The processes of a measurement: the server, a system's workers, and the one that submits its tasks."""

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from redis import Redis

from benchmarks.peers.processes import cpu_seconds, families, pss_bytes, send
from benchmarks.peers.systems import PROJECT, System
from benchmarks.peers.tally import Tally
from orchestra.child import Child
from orchestra.embedded import EmbeddedServer
from orchestra.exceptions import PermanentError

__all__ = ["Reading", "Sender", "Stage", "Workers"]

_STOP_SECONDS: Final = 10.0
_OWN_COMMANDS: Final = {"info", "config|resetstat"}


@dataclass(frozen=True, slots=True)
class Reading:
    """What the server has done so far: commands, those within scripts among them, and reads from its clients."""

    commands: int
    reads: int


class Stage:
    """A private server, and a file for the tally; every sender has a database of its own."""

    def __init__(self, server: EmbeddedServer, directory: Path) -> None:
        self._server = server
        self._databases: dict[str, int] = {}
        self._directory = directory
        self.client = Redis.from_url(server.url)
        self.tally = Tally(directory / "tally")

    @classmethod
    @contextmanager
    def open(cls) -> Iterator[Self]:
        """Start the server, and stop it at the end."""
        with EmbeddedServer.start() as server, tempfile.TemporaryDirectory() as directory:
            stage = cls(server, Path(directory))
            try:
                yield stage
            finally:
                stage.client.close()

    @property
    def server_version(self) -> str:
        """The server's."""
        return self._server.version

    def url(self, system: System) -> str:
        """Return the address of a system's database."""
        number = self._databases.setdefault(system.sender, len(self._databases))
        return f"{self._server.url.rpartition('/')[0]}/{number}"

    def environment(self, system: System, **more: str) -> dict[str, str]:
        """Return what a system's processes find in their environment, and nothing of this project's settings."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("ORCHESTRA_", "PYTHON"))}
        return {
            **inherited,
            "PATH": f"{system.programs}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(PROJECT),
            "PEERS_URL": self.url(system),
            **system.variables,
            **more,
        }

    def empty(self, system: System) -> None:
        """Remove what a system has left, while it has no workers."""
        with Redis.from_url(self.url(system)) as client:
            client.flushdb()

    def reading(self) -> Reading:
        """Look at the server's counters."""
        found: Any = self.client.info("commandstats")
        calls = sum(one["calls"] for name, one in found.items() if name.removeprefix("cmdstat_") not in _OWN_COMMANDS)
        about: Any = self.client.info("stats")
        return Reading(calls, about["total_reads_processed"])

    @contextmanager
    def sender(self, system: System) -> Iterator["Sender"]:
        """Start the process that submits, and end it."""
        command = [str(system.programs / "python"), "-m", "benchmarks.peers.producer", system.module]
        log = self._directory / f"sender of {system.sender}"
        with log.open("wb") as errors:
            process = subprocess.Popen(  # noqa: S603  # a command of the benchmark's own
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=PROJECT,
                env=self.environment(system),
                text=True,
                start_new_session=True,
            )
        sender = Sender(system, process, log)
        try:
            yield sender
        finally:
            sender.end()

    @contextmanager
    def workers(self, system: System, commands: Sequence[Sequence[str]]) -> Iterator["Workers"]:
        """Start a system's workers, and stop them."""
        log = self._directory / f"workers of {system.name}"
        environment = self.environment(system, PEERS_TALLY=str(self._directory / "tally"))
        filled = [[word.replace("{url}", self.url(system)) for word in command] for command in commands]
        with ExitStack() as stack, log.open("wb") as output:
            workers = Workers(system, log)
            stack.callback(workers.stop)
            for command in filled:
                workers.start(Child(command, output=output, environment=environment, directory=PROJECT))
            yield workers


class Sender:
    """The process that submits a system's tasks, by `benchmarks.peers.producer`."""

    def __init__(self, system: System, process: "subprocess.Popen[str]", log: Path) -> None:
        self._system = system
        self._process = process
        self._log = log

    def ask(self, do: str, **parts: Any) -> Any:  # whatever the producer finds
        """
        Have it do something, and return what it found.

        Raises:
            PermanentError: it failed, or it isn't there any more.

        """
        asked, answers = self._process.stdin, self._process.stdout
        if asked is None or answers is None:
            message = "A sender is started with pipes."
            raise ValueError(message)
        with suppress(BrokenPipeError):
            print(json.dumps({"do": do, **parts}), file=asked, flush=True)
        line = answers.readline()
        answer: Mapping[str, Any] = json.loads(line) if line else {"error": _last_words(self._log)}
        if "error" in answer:
            message = f"The sender of {self._system.name} failed to {do}: {answer['error']}"
            raise PermanentError(message)
        return answer["found"]

    def end(self) -> None:
        """End it: its input ends, and so does it."""
        with suppress(BrokenPipeError, subprocess.TimeoutExpired):
            self._process.communicate(timeout=_STOP_SECONDS)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


class Workers:
    """A system's workers with all of their processes."""

    def __init__(self, system: System, log: Path) -> None:
        self._system = system
        self._log = log
        self._children: list[Child] = []

    def start(self, child: Child) -> None:
        """Start one more."""
        self._children.append(child)
        child.start()

    def check(self) -> None:
        """
        See that all of them are there.

        Raises:
            PermanentError: one has ended.

        """
        for child in self._children:
            if not child.running:
                message = f"A worker of {self._system.name} ended with {child.returncode}: {_last_words(self._log)}"
                raise PermanentError(message)

    @property
    def pids(self) -> list[int]:
        """Every process that stems from them."""
        return families([child.pid for child in self._children if child.pid is not None])

    def cpu_seconds(self) -> float:
        """Return the CPU time that they have used, with that of their children that have ended."""
        return cpu_seconds(self.pids)

    def pss_bytes(self) -> int:
        """Return the memory that they hold, where each has its share of what several hold."""
        return pss_bytes(self.pids)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Have all of them stand still."""
        stopped = self.pids
        send(signal.SIGSTOP, stopped)
        try:
            yield
        finally:
            send(signal.SIGCONT, stopped)

    def stop(self) -> None:
        """Ask them to end, and end those groups that haven't after a while."""
        for child in self._children:
            child.terminate()
        deadline = time.monotonic() + _STOP_SECONDS
        for child in self._children:
            child.wait(max(0.0, deadline - time.monotonic()))
            child.kill()


def _last_words(log: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
