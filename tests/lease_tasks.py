"""Tasks that tell of their runs at a server which no fault reaches, and the fleet that runs them."""

import ctypes
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from redis import Redis

from orchestra import Orchestra
from orchestra.app import OrchestraCelery
from orchestra.store import Keys, text_of
from tests.chaos.oracle import ORACLE_VARIABLE, Execution, Oracle, marked
from tests.chaos.servers import Server
from tests.fleets import app_at
from tests.integration.agents import AgentProcess, Agents, agents, wait_until

__all__ = ["GENERAL", "POOLS", "Command", "LiveFleet", "live_fleet", "make_app"]

POOLS: Final = ("prefork", "solo", "threads", "inline")
GENERAL: Final = "celery"  # the queue of tasks without requirements

_PROJECT: Final = Path(__file__).parents[1]
_APP: Final = "from tests.lease_tasks import make_app\n\napp = make_app()\n"


# ── within the agents ──


def _sleep(self: Any, number: int, seconds: float) -> int:  # Celery's task
    """Take so long."""
    with marked(number, self.request.hostname):
        time.sleep(seconds)
    return number


def _hold(self: Any, number: int, seconds: float) -> int:  # Celery's task
    """Take so long, and let no other thread of the process run meanwhile."""
    with marked(number, self.request.hostname):
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:  # a signal cuts the call short
            ctypes.PyDLL(None).usleep(int(left * 1e6) + 1)
    return number


def make_app() -> Any:  # OrchestraCelery, whose tasks' options Celery's types don't know
    """Make the agents' app."""
    app: Any = OrchestraCelery("fleet", set_as_current=False)
    app.conf.worker_soft_shutdown_timeout = float(os.environ.get("SOFT_SHUTDOWN_SECONDS", "0"))
    app.task(name="fleet.sleep", bind=True, shared=False)(_sleep)
    app.task(name="fleet.hold", bind=True, shared=False)(_hold)
    app.task(name="fleet.once", bind=True, shared=False, acks_late=False)(_sleep)
    app.task(name="fleet.limited", bind=True, shared=False, rate_limit="2/s")(_sleep)
    return app


# ── for the tests ──


@dataclass(frozen=True, slots=True)
class Command:
    """What a server carried out; the commands of a script have the number of the call that ran it."""

    call: int
    text: str


@dataclass
class LiveFleet:
    """Agents over a server that a test may strike."""

    server: Server
    app: Any  # OrchestraCelery, as above
    client: Any  # of the server
    oracle: Oracle
    keys: Keys = field(default_factory=lambda: Keys("orchestra", "fleet"))
    agents: dict[str, AgentProcess] = field(default_factory=dict)
    _agents: Agents | None = None
    environment: dict[str, str] = field(default_factory=dict)

    # ── agents ──

    def start(self, name: str, *options: str, pool: str = "solo", **environment: str) -> AgentProcess:
        """Start an agent, with one process or thread for tasks; `joined` waits for it."""
        assert self._agents is not None
        given = {**self.environment, **environment}
        agent = self._agents.start("-c", "1", *options, name=name, pool=pool, wait=False, **given)
        self.agents[name] = agent
        return agent

    def joined(self) -> None:
        """Wait until every agent that was started is in the registry."""
        for agent in self.agents.values():
            agent.wait_for("agent joined", seconds=60)

    def strike(self, name: str, request: signal.Signals) -> None:
        """Send a signal to an agent's main process."""
        os.kill(self.agents[name].process.pid, request)

    def strike_group(self, name: str, request: signal.Signals) -> None:
        """Send a signal to an agent's main process and to its pool."""
        os.killpg(self.agents[name].process.pid, request)

    def tell(self, command: str, name: str) -> None:
        """Send a remote control command to an agent until it answers: it may not listen yet when it has joined."""
        asked = {"destination": [f"{name}@test"], "reply": True, "timeout": 2, "limit": 1}
        wait_until(lambda: self.app.control.broadcast(command, **asked), what=f"an answer of {name} to {command}")

    # ── tasks ──

    def send(self, number: int, seconds: float = 0.0, *, task: str = "sleep", **options: Any) -> Any:
        """Send a task."""
        return self.app.send_task(f"fleet.{task}", (number, seconds), **options)

    def runs(self, *numbers: int) -> list[Execution]:
        """Return the runs of these tasks, or of all, in the order of their begins."""
        return [run for run in self.oracle.executions() if not numbers or run.number in numbers]

    def begun(self, number: int, *, times: int = 1) -> list[Execution]:
        """Wait until a task has begun so many times; return its runs."""
        wait_until(lambda: len(self.runs(number)) >= times, seconds=30, what=f"{times} begins of {number}")
        return self.runs(number)

    def ended(self, *numbers: int, times: int = 1, seconds: float = 30.0) -> list[Execution]:
        """Wait until each of these tasks has come to its end so many times; return all their runs."""

        def all_ended() -> bool:
            ends = Counter(run.number for run in self.runs(*numbers) if run.ended is not None)
            return all(ends[number] >= times for number in numbers)

        wait_until(all_ended, seconds=seconds, what=f"the ends of {numbers}")
        return self.runs(*numbers)

    @contextmanager
    def commands(self) -> Iterator[list[Command]]:
        """Give a list that holds, at the end of the block, what the server carried out."""
        seen: list[Command] = []
        with Redis.from_url(self.server.url) as watcher, watcher.monitor() as monitor:
            yield seen
            self.client.echo("the end")
            calls = 0
            while (told := monitor.next_command())["command"] != "ECHO the end":
                calls += told["client_type"] != "lua"
                seen.append(Command(calls, told["command"]))

    # ── leases ──

    def holder_of(self, name: str) -> str:
        """Return the name under which an agent holds its leases."""
        return text_of(self.client.hget(self.keys.agent(f"{name}@test"), "instance"))

    def held_by(self, name: str) -> int:
        """Return how many leases an agent has."""
        return int(self.client.hlen(self.keys.leases(self.holder_of(name))))

    def holds(self, name: str, leases: int) -> None:
        """Wait until an agent has so many leases."""
        wait_until(lambda: self.held_by(name) == leases, what=f"{leases} leases of {name}")

    def waiting(self, queue: str) -> int:
        """Return how many messages of a queue nobody has fetched."""
        return sum(one.depth for one in Orchestra(self.app).queues() if one.name == queue)

    def waits(self, queue: str, messages: int) -> None:
        """Wait until so many messages of a queue aren't fetched by anybody."""
        wait_until(lambda: self.waiting(queue) == messages, what=f"{messages} messages in {queue}")

    def learn_pace(self, name: str, *, requires: str | None = None) -> None:
        """Let an agent, the only one that takes tasks now, see that tasks are short, so that it fetches many ahead."""
        results = [self.send(0, requires=requires) for _ in range(40)]
        for result in results:
            result.get(timeout=30)
        self.holds(name, 0)


@contextmanager
def live_fleet(
    folder: Path, server: Server, oracle_url: str, *, beat_seconds: float = 0.4, lost_after_beats: int = 5
) -> Iterator[LiveFleet]:
    """Give a fleet without agents; those that it starts count as lost after two seconds, and are killed at the end."""
    environment = {
        "ORCHESTRA_BEAT_SECONDS": str(beat_seconds),
        "ORCHESTRA_LOST_AFTER_BEATS": str(lost_after_beats),
        ORACLE_VARIABLE: oracle_url,
        "PYTHONPATH": f"{folder}:{_PROJECT}",
        "PYTHONUNBUFFERED": "1",
    }
    oracle = Oracle(oracle_url)
    try:
        with agents(folder, server.url) as started, app_at(server.url, main="fleet") as app, server.client() as client:
            started.write_app(_APP)
            fleet = LiveFleet(server, app, client, oracle, _agents=started, environment=environment)
            yield fleet
            for agent in fleet.agents.values():  # a warm stop would wait for their tasks
                _kill(agent)
    finally:
        oracle.close()


def _kill(agent: AgentProcess) -> None:
    if agent.process.poll() is None:
        os.killpg(agent.process.pid, signal.SIGKILL)
        agent.process.wait()
