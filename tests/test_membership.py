"""An agent's place in the registry: taken, kept through every loss, and given up."""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from threading import Event, Thread
from time import monotonic
from typing import Any

import pytest

from orchestra.capabilities import CapabilitySet
from orchestra.embedded import EmbeddedServer
from orchestra.exceptions import AgentNameTakenError, AgentOrchestraException, BrokerUnavailableError
from orchestra.membership import Doing, Membership, Profile, served_queues
from orchestra.queues import QueueNames
from orchestra.registry import AgentEntry, AgentRegistry, CatalogueEntry
from orchestra.store import Store
from tests.processes import until
from tests.stores import publish, store_at

SHOP = QueueNames("shop", "celery")


class TestServedQueues:
    @pytest.mark.parametrize(
        ("suffix", "served"),
        [
            ("nlp", True),
            ("mem_gb~ge~16+nlp", True),
            ("mem_gb~ge~128+nlp", False),
            ("gpu", False),
            ("not~gpu", True),
            ("general", False),
            ("nlp@shop.index", True),
            ("nlp@shop.mail", False),
            ("gpu@shop.index", False),
            ("Not Ours", False),
            ("", False),
        ],
    )
    def test_are_those_that_the_agent_satisfies(self, suffix: str, served: bool) -> None:
        """An agent serves a queue if and only if it can do what that asks for and knows its task."""
        can = CapabilitySet.parse("nlp,mem_gb=64")

        assert ({f"shop:{suffix}"} if served else set()) == served_queues([suffix], can, ["shop.index"], SHOP)

    def test_general_agent_serves_the_default_queue(self) -> None:
        """General work waits in the app's default queue."""
        can = CapabilitySet.parse("general")

        assert {"celery", "shop:general@shop.index"} == served_queues(
            ["general", "nlp", "general@shop.index"], can, {"shop.index": object()}, SHOP
        )


class Member:
    """An agent of the tests: a membership, and what it was told."""

    def __init__(
        self,
        registry: AgentRegistry,
        *,
        name: str,
        instance: str,
        every_seconds: float,
        patience_seconds: float,
        fails: bool = False,
    ) -> None:
        self.fails = fails
        self.told: list[tuple[str, ...]] = []
        self.serves: list[str] = []
        self.swept: list[Membership] = []
        self.membership = Membership(
            registry,
            Profile(
                name=name,
                instance=instance,
                about={"host": "box", "pid": 4711},
                tasks={"shop.index": CatalogueEntry(requires="nlp")},
                needs=frozenset({"nlp"}),
            ),
            every_seconds=every_seconds,
            patience_seconds=patience_seconds,
            doing=lambda: Doing(queues=tuple(self.serves), running=2),
            on_queues=self.told.append,
            sweep=self.sweep,
        )

    def sweep(self) -> None:
        """Note that there was a sweep, or fail as a result backend might."""
        if self.fails:
            raise ConnectionResetError
        self.swept.append(self.membership)


Join = Callable[..., Member]


@pytest.fixture
def store(redis_url: str) -> Iterator[Store]:
    """Give the shop's store over an empty Redis."""
    with store_at(redis_url) as store:
        yield store


@pytest.fixture
def registry(store: Store) -> AgentRegistry:
    """Give the shop's registry, which is patient enough for a slow machine."""
    return AgentRegistry(store, lost_after_seconds=60)


@pytest.fixture
def make(registry: AgentRegistry) -> Iterator[Join]:
    """Give a way to make agents, which leave at the end of the test."""
    with ExitStack() as stack:

        def made(at: AgentRegistry = registry, **given: Any) -> Member:
            settings = {"name": "text@a", "instance": "1", "every_seconds": 0.02, "patience_seconds": 0.0, **given}
            member = Member(at, **settings)
            stack.callback(member.membership.stop)
            return member

        yield made


@pytest.fixture
def start(make: Join) -> Join:
    """Give a way to make agents that have joined."""

    def started(*args: Any, **given: Any) -> Member:
        member = make(*args, **given)
        member.membership.start()
        return member

    return started


def only(registry: AgentRegistry) -> AgentEntry:
    """Return the one agent that there is."""
    (agent,) = registry.agents()
    return agent


class TestStart:
    def test_agent_is_known_when_it_returns(self, registry: AgentRegistry, start: Join) -> None:
        """An agent that has joined is alive, and its tasks and queues are published."""
        start()

        agent = only(registry)
        assert ("text@a", True, 2) == (agent.name, agent.alive, agent.running)
        assert {"shop.index": CatalogueEntry(requires="nlp")} == registry.catalogue()
        assert {"nlp"} == set(registry.queues())

    def test_agent_has_heard_of_the_queues_when_it_returns(self, store: Store, start: Join) -> None:
        """An agent that joins late learns at once what already waits."""
        publish(store, "1", suffix="gpu", queue="shop:gpu")

        assert [{"gpu", "nlp"}] == [set(queues) for queues in start().told]

    def test_live_twin_is_refused(self, registry: AgentRegistry, make: Join, start: Join) -> None:
        """A second agent of one name doesn't join while the first lives, and the first isn't disturbed."""
        start()
        twin = make(instance="2", patience_seconds=0.1)

        with pytest.raises(AgentNameTakenError, match="text@a is alive on box"):
            twin.membership.start()
        twin.membership.stop()

        assert "text@a" == only(registry).name

    def test_twin_is_given_its_time(self, start: Join, make: Join) -> None:
        """The refusal comes when the name's holder has had the time to be recognised as lost."""
        start()
        twin = make(instance="2", patience_seconds=0.2)

        before = monotonic()
        with pytest.raises(AgentNameTakenError):
            twin.membership.start()

        assert monotonic() - before >= 0.2

    def test_predecessor_is_waited_for(self, store: Store, registry: AgentRegistry, start: Join) -> None:
        """An agent that was killed and started anew gets its name back as soon as the old one counts as lost."""
        registry.register("text@a", "killed", about={}, tasks={}, queues=[])
        hasty = AgentRegistry(store, lost_after_seconds=0.3)

        start(hasty, patience_seconds=30.0)

        assert {"host": "box", "pid": 4711} == only(registry).about

    def test_stop_ends_the_wait(self, registry: AgentRegistry, make: Join) -> None:
        """An agent that is stopped while it waits for its name gives up at once."""
        registry.register("text@a", "other", about={}, tasks={}, queues=[])
        waiting = make(patience_seconds=60.0, every_seconds=120.0)
        gave_up = Event()

        def begin() -> None:
            with pytest.raises(AgentNameTakenError):
                waiting.membership.start()
            gave_up.set()

        thread = Thread(target=begin)
        thread.start()
        waiting.membership.stop()

        assert gave_up.wait(timeout=30)
        thread.join(timeout=30)

    def test_unreachable_redis_is_reported(self, make: Join) -> None:
        """An agent can't join without Redis, and whoever starts it decides what to do."""
        with store_at("redis://127.0.0.1:1/0") as nowhere:
            member = make(AgentRegistry(nowhere, lost_after_seconds=60))

            with pytest.raises(BrokerUnavailableError):
                member.membership.start()

            member.membership.stop()


class TestBeat:
    def test_thread_beats(self, registry: AgentRegistry, start: Join) -> None:
        """An agent beats by itself, and tells what it does now."""
        member = start()
        first = only(registry).last_beat_at
        member.serves = ["shop:nlp"]

        until(lambda: only(registry).last_beat_at > first and only(registry).queues == ("shop:nlp",))

    def test_new_queues_are_told_once(self, registry: AgentRegistry, store: Store, start: Join) -> None:
        """A queue that appears while an agent runs is told to it, and only then."""
        member = start()
        publish(store, "1", suffix="gpu", queue="shop:gpu")
        until(lambda: len(member.told) > 1)
        told_at = only(registry).last_beat_at

        until(lambda: only(registry).last_beat_at > told_at)

        assert [{"nlp"}, {"gpu", "nlp"}] == [set(queues) for queues in member.told]

    def test_agent_tidies_up_now_and_then(self, start: Join) -> None:
        """A beat in ten looks after what nobody uses any more."""
        member = start()

        until(lambda: len(member.swept) == 2)

    def test_trouble_of_a_sweep_does_not_end_the_thread(
        self, registry: AgentRegistry, start: Join, caplog: pytest.LogCaptureFixture
    ) -> None:
        """An agent that works doesn't look lost because tidying up failed: that is logged as an error."""
        start(fails=True)
        until(lambda: "beat failed: agent=text@a" in caplog.text)
        seen = only(registry).last_beat_at

        until(lambda: only(registry).last_beat_at > seen)

        assert "ConnectionResetError" in caplog.text

    def test_flushed_registration_heals(self, registry: AgentRegistry, store: Store, start: Join) -> None:
        """An agent that the registry forgot registers again, with what it serves, and hears of the queues anew."""
        member = start()
        member.serves = ["shop:nlp"]
        store.command("FLUSHALL")

        until(lambda: [agent.queues for agent in registry.agents()] == [("shop:nlp",)])

        assert {"shop.index"} == set(registry.catalogue())
        until(lambda: len(member.told) > 1)
        assert {"nlp"} == set(member.told[-1])

    def test_one_beat_heals_all(self, registry: AgentRegistry, store: Store, start: Join) -> None:
        """A flush costs one beat, not two: registration, queues served, and the news of queues come together."""
        member = start(every_seconds=600.0)
        member.serves = ["shop:nlp"]
        store.command("FLUSHALL")
        publish(store, "1", suffix="gpu", queue="shop:gpu")

        member.membership.beat()

        assert ("shop:nlp",) == only(registry).queues
        assert {"gpu", "nlp"} == set(member.told[-1])

    def test_name_that_was_lost_is_won_back(self, store: Store, registry: AgentRegistry, start: Join) -> None:
        """An agent whose name another one took while it was away gets it back when that one is silent."""
        member = start(every_seconds=600.0)
        self.silence(store)
        registry.register("text@a", "other", about={}, tasks={}, queues=[])

        with pytest.raises(AgentNameTakenError):
            member.membership.beat()
        self.silence(store)
        member.membership.beat()

        assert {"host": "box", "pid": 4711} == only(registry).about

    @staticmethod
    def silence(store: Store) -> None:
        """Have the name's holder look as if it hadn't beaten for two minutes."""
        store.command("ZADD", store.keys.agents, store.command("TIME")[0] - 120, "text@a")

    def test_refused_beat_is_told_and_does_not_end_the_thread(
        self, store: Store, registry: AgentRegistry, start: Join, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What Redis says against a beat is logged, and the next beat is tried all the same."""
        start()
        store.command("SET", store.keys.agent("text@a"), "not a hash")
        until(lambda: "beat refused: agent=text@a" in caplog.text)

        store.command("DEL", store.keys.agent("text@a"))

        until(registry.agents)
        assert {"WARNING"} == {record.levelname for record in caplog.records}


class TestLostServer:
    @pytest.fixture
    def server(self) -> Iterator[EmbeddedServer]:
        """Give a server of the test's own, which it may kill."""
        with EmbeddedServer.start() as server:
            yield server

    def test_registration_survives_a_restart(
        self, server: EmbeddedServer, make: Join, caplog: pytest.LogCaptureFixture
    ) -> None:
        """An agent outlives its Redis, says once that it is away and once that it is back, and joins again."""
        caplog.set_level(logging.INFO, logger="orchestra.membership")
        with store_at(server.url, location=f"{server.host}:{server.port}") as store:
            registry = AgentRegistry(store, lost_after_seconds=60)
            member = make(registry)
            member.membership.start()
            server.kill()
            until(lambda: "registry unreachable" in caplog.text)

            server.restart()

            until(lambda: "registry reachable again" in caplog.text)
            until(lambda: self.is_member(registry))
            member.membership.stop()

        levels = [record.levelname for record in caplog.records]
        assert ["WARNING", "INFO"] == levels
        assert server.url.split("@")[0].rpartition(":")[2] not in caplog.text

    @staticmethod
    def is_member(registry: AgentRegistry) -> bool:
        """Tell whether the agent is in the registry."""
        try:
            return [agent.name for agent in registry.agents()] == ["text@a"]
        except AgentOrchestraException:
            return False

    def test_leaving_a_dead_server_is_no_error(
        self, server: EmbeddedServer, make: Join, caplog: pytest.LogCaptureFixture
    ) -> None:
        """An agent stops cleanly when Redis is gone."""
        caplog.set_level(logging.INFO, logger="orchestra.membership")
        with store_at(server.url) as store:
            member = make(AgentRegistry(store, lost_after_seconds=60))
            member.membership.start()
            server.kill()

            member.membership.stop()

        assert "agent not retired: agent=text@a" in caplog.text


class TestStop:
    def test_agent_leaves(self, registry: AgentRegistry, start: Join) -> None:
        """An agent that stops is off the list at once, and stays off."""
        start().membership.stop()

        assert [] == registry.agents()

    def test_twice_does_no_harm(self, registry: AgentRegistry, start: Join) -> None:
        """Celery stops its steps in more than one place."""
        member = start()

        member.membership.stop()
        member.membership.stop()

        assert [] == registry.agents()

    def test_before_the_start_does_no_harm(self, registry: AgentRegistry, make: Join) -> None:
        """An agent that never joined has nothing to leave."""
        make().membership.stop()

        assert [] == registry.agents()

    def test_successor_stays(self, store: Store, registry: AgentRegistry, start: Join) -> None:
        """An agent that stops late doesn't take its successor off the list."""
        member = start(every_seconds=600.0)
        AgentRegistry(store, lost_after_seconds=-1).register("text@a", "2", about={}, tasks={}, queues=[])

        member.membership.stop()

        assert "text@a" == only(registry).name
