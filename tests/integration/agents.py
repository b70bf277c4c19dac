"""Real agents for the tests: `celery worker` processes over an app that the test writes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = ["AgentProcess", "Agents", "wait_until"]


def wait_until(condition: Callable[[], object], *, seconds: float = 20.0, what: str = "the condition") -> float:
    """Wait until `condition()` is true; return the seconds that it took, fail after the deadline."""
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > seconds:
            message = f"{what} did not come true within {seconds} s"
            raise AssertionError(message)
        time.sleep(0.02)  # the poll's pace; what is waited for is the condition
    return time.monotonic() - started


@dataclass
class AgentProcess:
    """One running worker and its log."""

    process: subprocess.Popen[bytes]
    log: Path

    def says(self, text: str) -> bool:
        """Tell whether the log holds `text`."""
        return text in self.log.read_text(encoding="utf-8", errors="replace")

    def wait_for(self, text: str, *, seconds: float = 30.0) -> None:
        """Wait until the log holds `text`; fail with the log's end."""
        try:
            wait_until(lambda: self.says(text) or self.process.poll() is not None, seconds=seconds)
        finally:
            assert self.says(text), self.log.read_text(encoding="utf-8", errors="replace")[-3000:]

    def stop(self, *, seconds: float = 15.0) -> int:
        """Stop it warmly, by force if it doesn't listen; return its exit code."""
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            return self.process.wait()


class Agents:
    """Starts agents of one app module and stops them at the end."""

    def __init__(self, folder: Path, broker_url: str) -> None:
        self._folder = folder
        self._broker_url = broker_url
        self._stack = ExitStack()
        self._count = 0

    def write_app(self, source: str, *, module: str = "fleet") -> None:
        """Write the module that the agents run."""
        (self._folder / f"{module}.py").write_text(source, encoding="utf-8")

    def start(
        self, *options: str, name: str, module: str = "fleet", wait: bool = True, pool: str = "solo", **environment: str
    ) -> AgentProcess:
        """Start `celery -A <module> worker -n <name>@test`; wait until it has joined."""
        self._count += 1
        log = self._folder / f"{name}-{self._count}.log"
        command = [sys.executable, "-m", "celery", "-A", module, "worker", "-n", f"{name}@test", "-l", "INFO"]
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*command, *_pool_option(pool), *options],
                cwd=self._folder,
                env={
                    **os.environ,
                    "ORCHESTRA_BROKER_URL": self._broker_url,
                    "PYTHONPATH": str(self._folder),
                    **environment,
                },
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        agent = AgentProcess(process, log)
        self._stack.callback(_end, agent)
        if wait:
            agent.wait_for("agent joined")
        return agent

    def close(self) -> None:
        """End whatever still runs."""
        self._stack.close()


def _pool_option(pool: str) -> list[str]:
    """Return the option that chooses a pool; Celery's own, which stock workers have too, doesn't know ours."""
    return ["--agent-pool" if pool == "inline" else "-P", pool]


def _end(agent: AgentProcess) -> None:
    if agent.process.poll() is None:
        agent.stop(seconds=5)
    with suppress(ProcessLookupError):
        os.killpg(agent.process.pid, signal.SIGKILL)


@contextmanager
def agents(folder: Path, broker_url: str) -> Iterator[Agents]:
    """Give a starter of agents, and end them all."""
    started = Agents(folder, broker_url)
    try:
        yield started
    finally:
        started.close()
