"""Breakers, live: what a fleet of real agents does while a service is away, and when it comes back."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import chord
from redis import Redis

from benchmarks.breaker import figures_of
from benchmarks.outage import outage
from orchestra import Orchestra
from orchestra.breaker import BreakerPhase, BreakerState
from orchestra.store import Keys, text_of
from orchestra.types import TaskState
from tests.integration.agents import AgentProcess, Agents, wait_until
from tests.integration.breaker_tasks import make_app, read_calls

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

PROJECT = Path(__file__).parents[2]


class Service:
    """A service that the tasks call: off or on, and slow or not."""

    def __init__(self, folder: Path, fleet: Agents, app: Any, client: Any) -> None:
        self.folder = folder
        self.app = app
        self.client = client
        self._fleet = fleet
        self.keys = Keys("orchestra", "fleet")

    def agent(self, name: str, *options: str, capabilities: str = "api,general", pool: str = "threads") -> AgentProcess:
        """Start an agent with four slots, or as `options` say."""
        return self._fleet.start(
            *("-c", "4", "--capabilities", capabilities, *options),
            name=name,
            pool=pool,
            BREAKER_TEST_FOLDER=str(self.folder),
            PYTHONPATH=f"{self.folder}:{PROJECT}",
            ORCHESTRA_BEAT_SECONDS="0.4",
        )

    def switch(self, name: str, *, on: bool) -> None:
        """Switch a host off or on; `hold` has calls wait while it's on."""
        file = self.folder / name
        if on:
            file.touch()
        else:
            file.unlink(missing_ok=True)

    def down(self, name: str = "api") -> None:
        """Switch a host off."""
        self.switch(f"down-{name}", on=True)

    def up(self, name: str = "api") -> None:
        """Switch it on again."""
        self.switch(f"down-{name}", on=False)

    def send(self, *numbers: int, **options: Any) -> list[Any]:
        """Send calls of the api."""
        return [self.app.send_task("fleet.call", (number,), **options) for number in numbers]

    def calls(self, name: str = "api") -> list[int]:
        """Return the numbers of the calls that were made of a host."""
        return [call["number"] for call in read_calls(self.folder) if call["name"] == name]

    def state(self, name: str = "api") -> BreakerState:
        """Return how a breaker stands."""
        found = [state for state in self.app.breakers.states() if state.name == name]
        return found[0] if found else BreakerState(name=name, state=BreakerPhase.CLOSED)

    def trip(self) -> None:
        """Switch the api off, and have its breaker find out."""
        self.down()
        self.send(901, 902)
        wait_until(lambda: self.state().state is not BreakerPhase.CLOSED, what="the breaker to open")

    def keep_open(self) -> None:
        """Have the breaker stay open, whatever its cooldown says."""
        self.app.breakers.open("api", by="the test")

    def waiting(self) -> int:
        """Return how many messages wait in the api's queue."""
        return sum(queue.depth for queue in Orchestra(self.app).queues() if queue.name == "fleet:api")


@pytest.fixture
def service(tmp_path: Path, fleet: Agents, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """Give a service that is on, and a fleet without agents."""
    monkeypatch.setenv("ORCHESTRA_BROKER_URL", redis_url)
    monkeypatch.setenv("BREAKER_TEST_FOLDER", str(tmp_path))
    fleet.write_app("from tests.integration.breaker_tasks import make_app\n\napp = make_app()\n")
    app = make_app()
    with Redis.from_url(redis_url) as client:
        yield Service(tmp_path, fleet, app, client)
    app.close()


def _results(results: list[Any]) -> list[int]:
    return [result.get(timeout=60) for result in results]


class TestOutage:
    def test_a_service_is_switched_off(self) -> None:
        """
        Sixteen slots call a service that goes away: few calls reach it, one probes at a time, and nothing is lost.

        What reaches it beyond the probes was fetched before it went away, or is what opened the breaker.
        """
        figures = figures_of(outage("guarded", down=4, cooldown=1, before=2))

        assert (0, 0, 0) == (figures.lost, figures.duplicates, figures.retries_while_open)
        assert set(figures.probes) == {1}
        assert len(figures.probes) >= 2
        assert figures.calls_while_down <= 200
        assert figures.seconds_to_full_rate is not None


class TestSharedQueue:
    def test_is_left_alone(self, service: Service) -> None:
        """While the breaker is open, messages stay in the queue whose tasks all share it; then they run in order."""
        service.agent("a")
        service.agent("b")
        service.keep_open()
        results = service.send(*range(50))

        wait_until(lambda: service.waiting() + service.state().waiting == 50)
        others = [service.app.send_task("fleet.add", ([number, 1],)) for number in range(20)]
        assert list(range(1, 21)) == _results(others)
        assert service.waiting() >= 40  # what agents took before they knew is parked
        assert [] == service.calls()

        service.app.breakers.close("api", by="the test")
        assert list(range(50)) == _results(results)
        assert list(range(50)) == sorted(service.calls())

    def test_a_message_of_another_kind(self, service: Service) -> None:
        """A task that a caller sent there by its own choice isn't held up by the others' breaker."""
        service.agent("a")
        service.keep_open()
        service.send(1)

        assert 3 == service.app.send_task("fleet.add", ([1, 2],), requires="api").get(timeout=30)
        assert [] == service.calls()


class TestProbes:
    def test_of_a_killed_agent(self, service: Service) -> None:
        """A probe whose agent is killed frees its place: another one probes, and one alone."""
        killed = service.agent("a", "-c", "2")
        service.trip()
        service.switch("hold", on=True)
        before = len(service.calls())
        wait_until(lambda: len(service.calls()) == before + 1, what="a probe")
        assert 1 == service.state().probes
        service.agent("b")
        os.killpg(killed.process.pid, signal.SIGKILL)

        wait_until(lambda: len(service.calls()) == before + 2, seconds=40, what="another probe")
        service.up()
        service.switch("hold", on=False)

        wait_until(lambda: service.state().state is BreakerPhase.CLOSED, what="the breaker to close")
        wait_until(lambda: not service.client.exists(service.keys.leased("fleet:api"), "fleet:api"))
        assert {901, 902} == set(service.calls())

    def test_of_a_killed_process(self, service: Service) -> None:
        """So it is with a pool process alone."""
        service.agent("a", "-c", "2", pool="prefork")
        service.trip()
        service.switch("hold", on=True)
        before = len(service.calls())
        wait_until(lambda: len(service.calls()) == before + 1, what="a probe")
        os.kill(read_calls(service.folder)[-1]["pid"], signal.SIGKILL)

        wait_until(lambda: len(service.calls()) == before + 2, seconds=40, what="another probe")
        service.up()
        service.switch("hold", on=False)
        wait_until(lambda: service.state().state is BreakerPhase.CLOSED, what="the breaker to close")

    def test_results_that_come_late(self, service: Service) -> None:
        """Calls that began before it opened neither close nor open it with what becomes of them later."""
        service.agent("a")
        service.switch("hold", on=True)
        results = service.send(1, 2, 3)
        wait_until(lambda: {1, 2, 3} == set(service.calls()))
        service.keep_open()
        changes = len(service.state().changes)

        service.switch("hold", on=False)

        assert [1, 2, 3] == _results(results)
        assert (BreakerPhase.OPEN, changes) == (service.state().state, len(service.state().changes))


class TestWaiting:
    def test_agents_come_and_go(self, service: Service) -> None:
        """What waits for a breaker outlives every agent, whether it's stopped or killed, and nothing of it is lost."""
        agents = [service.agent("a"), service.agent("b", pool="prefork")]
        service.keep_open()
        results = [service.app.send_task("fleet.call", (number,), requires="api,general") for number in range(20)]
        wait_until(lambda: 20 == service.state().waiting, what="all to wait")
        assert 0 == agents[0].stop()
        os.killpg(agents[1].process.pid, signal.SIGKILL)
        service.agent("c")
        service.app.breakers.close("api", by="the test")

        assert list(range(20)) == _results(results)
        assert list(range(20)) == sorted(service.calls())

    def test_a_host_holds_up_its_own(self, service: Service) -> None:
        """With a breaker for each host, one that is away holds up nobody else's tasks, and no slot."""
        service.agent("a")
        service.down("one.example")
        held = [service.app.send_task("fleet.fetch", ("one.example", number)) for number in range(30)]
        free = [service.app.send_task("fleet.fetch", ("two.example", number)) for number in range(30)]

        assert list(range(30)) == _results(free)
        assert BreakerPhase.CLOSED is not service.state("host:one.example").state
        service.up("one.example")
        assert list(range(30)) == _results(held)

    def test_a_part_of_a_chord(self, service: Service) -> None:
        """A chord's part that waits is counted once, when it has run."""
        service.agent("a")
        service.keep_open()
        parts = [service.app.signature("fleet.call", (number,)) for number in range(3)]
        body = chord(parts, app=service.app)(service.app.signature("fleet.add"))
        wait_until(lambda: 3 == service.waiting() + service.state().waiting)

        service.app.breakers.close("api", by="the test")

        assert 3 == body.get(timeout=60)

    def test_no_attempt_is_burned(self, service: Service) -> None:
        """Through a longer outage than its attempts would last, a task keeps those that it had."""
        service.agent("a")
        service.trip()
        results = service.send(*range(10))
        wait_until(lambda: [text_of(change.state) for change in service.state().changes].count("half_open") >= 5)
        service.up()

        assert list(range(10)) == _results(results)
        records = [service.app.state.read(result.id) for result in results]
        assert {(TaskState.SUCCEEDED, 1)} == {(record.state, record.attempt) for record in records}
