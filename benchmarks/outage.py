"""An outage: a fleet of its own calls a service without a pause, which is killed and started again."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from socket import create_connection, socket
from threading import Event, Thread
from typing import Any, Final

from redis import Redis

from benchmarks.calling import CALLS
from orchestra import Orchestra, OrchestraCelery, Requirement
from orchestra.child import Child
from orchestra.embedded import EmbeddedServer
from orchestra.exceptions import RetryableError
from orchestra.fleet import AgentSpec, Fleet
from orchestra.types import TaskRecord, TaskState

__all__ = ["FULL", "SLOTS", "Call", "Outage", "full_since", "outage"]

SLOTS: Final = 16
FULL: Final = 0.9  # part of the rate before the outage that counts as full again
_BACKLOG: Final = 200  # tasks that wait, so that no slot lacks work
_CALL_SECONDS: Final = 0.2
_PATIENCE_SECONDS: Final = 120.0
_HOST: Final = "127.0.0.1"
_PROJECT: Final = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the service: of which task, from when to when by Redis's clock, and whether it was answered."""

    number: int
    began: float
    ended: float
    answered: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """What was seen of one outage; the breaker's changes are pairs of a time and the state that it changed to."""

    calls: Sequence[Call]
    down_at: float
    up_at: float
    retried: Sequence[float]  # when each attempt began that a retry came of
    states: dict[int, str]  # of each task
    changes: Sequence[tuple[float, str]]
    rate_before: float


def full_since(calls: Sequence[Call], up_at: float, rate: float) -> float | None:
    """Return when the first second began, after a service's return, in which calls were answered at the full rate."""
    ends = sorted(call.ended for call in calls if call.answered and call.ended >= up_at)
    enough = max(1, round(FULL * rate))
    return next((first for first, last in zip(ends, ends[enough - 1 :], strict=False) if last - first <= 1.0), None)


def outage(task: str, *, down: float, cooldown: float, before: float) -> Outage:
    """Switch the service off for `down` seconds, after `before` seconds of work by `task`: `guarded` or `bare`."""
    port = _free_port()
    with EmbeddedServer.start() as server:
        os.environ["ORCHESTRA_BROKER_URL"] = server.url
        settings = {
            "ORCHESTRA_BROKER_URL": server.url,
            "BENCHMARK_SERVICE": f"http://{_HOST}:{port}",
            "BENCHMARK_COOLDOWN": str(cooldown),
        }
        specs = [
            AgentSpec(name=f"caller-{one}", capabilities=task, pool="threads", concurrency=SLOTS // 2) for one in "ab"
        ]
        app: Any = OrchestraCelery("calling", broker=server.url, set_as_current=False)
        written = Redis.from_url(f"{server.url.rpartition('/')[0]}/1")
        fleet = Fleet("benchmarks.calling:app", specs, environment=settings, directory=_PROJECT)
        try:
            with fleet, _service(port) as service:
                fleet.wait_ready()
                return _Strike(task, app, written, service).run(down, before)
        finally:
            written.close()
            app.close()


@dataclass
class _Service:
    port: int
    child: Child | None = None

    def start(self) -> None:
        self.child = Child([sys.executable, "-m", "benchmarks.flaky_service", str(self.port), str(_CALL_SECONDS)])
        self.child.start()
        _until(self._listens)

    def kill(self) -> None:
        if self.child is not None:
            self.child.kill()

    def _listens(self) -> bool:
        with suppress(OSError), create_connection((_HOST, self.port), timeout=5):
            return True
        return False


@contextmanager
def _service(port: int) -> Iterator[_Service]:
    service = _Service(port)
    service.start()
    try:
        yield service
    finally:
        service.kill()


@dataclass
class _Strike:
    """One run: feed, strike, wait, drain, look."""

    task: str
    app: Any
    written: Any
    service: _Service
    ids: dict[int, str] = field(default_factory=dict)
    done: Event = field(default_factory=Event)

    def run(self, down: float, before: float) -> Outage:
        feeder = Thread(target=self._feed)
        feeder.start()
        try:
            _until(lambda: self._answered(self._now() - 1.0) > 0)
            time.sleep(before + 1.0)
            rate = self._answered(self._now() - before) / before
            down_at = self._now()
            self.service.kill()
            time.sleep(down)
            up_at = self._now()
            self.service.start()
            _until(lambda: full_since(self._calls(), up_at, rate) is not None)
        finally:
            self.done.set()
            feeder.join()
        _until(self._drained)
        return self._seen(down_at, up_at, rate)

    def _feed(self) -> None:
        orchestra = Orchestra(self.app)
        name = self.app.queue_names.name_for(Requirement.parse(self.task))
        while not self.done.wait(0.05):
            (waiting,) = self.app.registry.backlogs([name], steps=self.app.priority_steps)
            if (missing := _BACKLOG - waiting.waiting) > 0:
                numbers = range(len(self.ids), len(self.ids) + missing)
                handles = orchestra.submit_many(self.task, ({"number": number} for number in numbers))
                self.ids |= {number: handle.id for number, handle in zip(numbers, handles, strict=True)}

    def _now(self) -> float:
        seconds, micros = self.written.time()
        return float(seconds + micros / 1e6)

    def _calls(self) -> list[Call]:
        return [Call(**json.loads(entry)) for entry in self.written.lrange(CALLS, 0, -1)]

    def _answered(self, since: float) -> int:
        return sum(call.answered and call.ended >= since for call in self._calls())

    def _drained(self) -> bool:
        return all(
            record is not None and record.state.finished for record in self.app.state.read_many(list(self.ids.values()))
        )

    def _seen(self, down_at: float, up_at: float, rate: float) -> Outage:
        records = dict(zip(self.ids, self.app.state.read_many(list(self.ids.values())), strict=True))
        changes = [change for state in self.app.breakers.states() for change in state.changes]
        return Outage(
            calls=self._calls(),
            down_at=down_at,
            up_at=up_at,
            retried=[began for record in records.values() for began in _retried(record)],
            states={number: record.state.value for number, record in records.items()},
            changes=sorted((change.at.timestamp(), change.state.value) for change in changes),
            rate_before=rate,
        )


def _retried(record: TaskRecord) -> Iterator[float]:
    """Yield when those attempts of a task began that a retry came of."""
    began, running = 0.0, 0
    for entry in record.history:
        if entry.state is TaskState.RUNNING:
            began, running = entry.at.timestamp(), entry.attempt
        elif entry.state is TaskState.RETRYING and entry.attempt == running + 1:
            yield began
            running = 0


def _free_port() -> int:
    with socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


def _until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            message = f"The fleet was not done within {_PATIENCE_SECONDS:g} s."
            raise RetryableError(message)
        time.sleep(0.1)
