"""What a sender sees of the fleet: alive, lost and stopped agents, through a cache."""

from collections.abc import Iterator
from typing import Any

import pytest
from redis import Redis

from orchestra.capabilities import Requirement
from orchestra.exceptions import BrokerUnavailableError, NoCapableAgentError
from orchestra.fleet_view import Routability, view_of
from orchestra.patience import Patience
from orchestra.queues import QueueNames
from orchestra.registry import AgentRegistry, CatalogueEntry
from orchestra.store import Store
from orchestra.unroutable import WAIT, DeadLetterAfter, Fallback, Raise
from tests.fleets import commands_at
from tests.stores import FLEET, register, store_at

GPU, CPU = Requirement.parse("gpu"), Requirement.parse("cpu")
LOST_AFTER = 5.0


@pytest.fixture
def store(redis_url: str) -> Iterator[Store]:
    """Give the shop's part of an empty Redis."""
    with store_at(redis_url) as store:
        yield store


@pytest.fixture
def registry(store: Store) -> AgentRegistry:
    """Give the shop's registry."""
    return AgentRegistry(store, lost_after_seconds=LOST_AFTER)


def join(registry: AgentRegistry, name: str, capabilities: str, *tasks: str) -> None:
    """Register an agent that can and knows this."""
    about = {"capabilities": capabilities, "host": "box", "pid": 1}
    register(registry, name, about=about, tasks={task: CatalogueEntry() for task in tasks or ("shop.train",)})


def seen_ago(store: Store, name: str, seconds: float) -> None:
    """Have an agent beaten last so long ago."""
    now = store.command("TIME")
    store.command("ZADD", store.keys.agents, int(now[0]) - seconds, name)


def routability(registry: AgentRegistry, *, grace: float = 60, ttl: float = 60) -> Routability:
    """Give a sender's view."""
    return Routability(registry, QueueNames(FLEET, "celery"), grace_seconds=grace, ttl_seconds=ttl)


def fallback(found: Routability, policy: Any, task: str = "shop.train") -> Requirement | None:
    """Ask where a task that requires a gpu goes."""
    return found.fallback_for(task, GPU, policy, Patience(1))


class TestView:
    def test_who_is_seen(self, store: Store, registry: AgentRegistry) -> None:
        """Live agents, and those that were lost or stopped within the time; older ones aren't read."""
        for name in ("lives@a", "lost@a", "old@a", "stopped@a"):
            join(registry, name, "gpu")
        registry.retire("stopped@a", "1")
        seen_ago(store, "lost@a", 30)
        seen_ago(store, "old@a", 90)

        view = view_of(registry, within_seconds=60)

        assert {"lives@a": True, "lost@a": False, "stopped@a": False} == {one.name: one.alive for one in view.agents}
        assert 29 < view.at - next(one.seen_at for one in view.agents if one.name == "lost@a") < 40

    def test_one_that_came_back_is_alive(self, registry: AgentRegistry) -> None:
        """An agent that stopped and joined again is seen once, alive."""
        join(registry, "a@a", "gpu")
        registry.retire("a@a", "1")
        join(registry, "a@a", "cpu")

        (agent,) = view_of(registry, within_seconds=60).agents

        assert (True, "cpu") == (agent.alive, str(agent.capabilities))

    @pytest.mark.parametrize("text", ["", "NOT READABLE"])
    def test_capabilities_that_say_nothing(self, registry: AgentRegistry, text: str) -> None:
        """A worker with -Q alone, and one whose words can't be read, counts by its queues."""
        join(registry, "a@a", text)
        registry.beat("a@a", "1", version="", queues=["shop:gpu"], running=0)

        view = view_of(registry, within_seconds=60)

        assert view.can_run(GPU, "shop:gpu", "shop.train")
        assert not view.can_run(CPU, "shop:cpu", "shop.train")

    def test_two_round_trips(self, registry: AgentRegistry, redis_url: str) -> None:
        """However many agents there are, two pipelines read them."""
        for number in range(5):
            join(registry, f"a{number}@a", "gpu")

        with commands_at(redis_url) as seen:
            view_of(registry, within_seconds=60)

        assert ["ZRANGE", "ZRANGE", "TIME", *["HGETALL"] * 5] == [command.split()[0] for command in seen]


class TestDecisions:
    @pytest.mark.parametrize("policy", [WAIT, DeadLetterAfter(5)])
    def test_waiting_asks_nobody(self, registry: AgentRegistry, redis_url: str, policy: Any) -> None:
        """A task that waits in any case isn't judged."""
        with commands_at(redis_url) as seen:
            assert fallback(routability(registry), policy) is None

        assert [] == seen

    def test_raise(self, registry: AgentRegistry) -> None:
        """Nobody can: an error with what everybody lacks. Somebody can: nothing."""
        join(registry, "text@a", "nlp")
        found = routability(registry)
        with pytest.raises(
            NoCapableAgentError, match=r"^shop\.train was not submitted: .*text@a lacks gpu\. "
        ) as caught:
            fallback(found, Raise())
        assert {"text@a": ("gpu",)} == caught.value.missing

        join(registry, "big@a", "gpu")
        assert fallback(found, Raise()) is None

    def test_an_error_is_raised_of_what_is_so_now(self, registry: AgentRegistry) -> None:
        """Before it raises, the cache is read again: an agent that has just joined counts."""
        found = routability(registry, ttl=3600)
        for _ in range(2):
            with pytest.raises(NoCapableAgentError, match="no agent is known"):
                fallback(found, Raise())

        join(registry, "big@a", "gpu")

        assert fallback(found, Raise()) is None

    def test_a_task_that_no_capable_agent_knows(self, registry: AgentRegistry) -> None:
        """An agent that satisfies the requirement and doesn't know the task can't run it."""
        join(registry, "big@a", "gpu", "shop.index")

        with pytest.raises(NoCapableAgentError) as caught:
            fallback(routability(registry), Raise())

        assert ("big@a",) == caught.value.unknown_to

    def test_fallback(self, registry: AgentRegistry, caplog: pytest.LogCaptureFixture) -> None:
        """While nobody can, the other requirement takes the place of the first; that is logged once for each task."""
        found = routability(registry, ttl=0)

        for task in ("shop.train", "shop.train", "shop.score", "shop.train"):
            assert CPU == fallback(found, Fallback(CPU), task)
        assert 2 == caplog.text.count("no capable agent")
        assert "task=shop.train requires=gpu fallback=cpu" in caplog.text

        join(registry, "big@a", "gpu")
        assert fallback(found, Fallback(CPU)) is None

    @pytest.mark.parametrize(("ago", "able"), [(30, True), (90, False)])
    def test_grace(self, store: Store, registry: AgentRegistry, ago: float, able: bool) -> None:
        """An agent that is gone counts as able for the grace time, lost or stopped."""
        join(registry, "lost@a", "gpu")
        seen_ago(store, "lost@a", ago)

        assert able == (fallback(routability(registry), Fallback(CPU)) is None)

    def test_one_reading_for_many_calls(self, registry: AgentRegistry, redis_url: str) -> None:
        """While the cache is fresh, no call asks Redis, whatever the answer."""
        join(registry, "big@a", "gpu")
        found = routability(registry)
        fallback(found, Raise())

        with commands_at(redis_url) as seen:
            for _ in range(50):
                fallback(found, Raise())
                fallback(found, Fallback(CPU))
                fallback(found, Fallback(CPU), "shop.unknown")

        assert [] == seen

    def test_redis_that_is_away(self) -> None:
        """The submission's own patience counts."""
        with store_at("redis://127.0.0.1:1/0") as store:
            found = routability(AgentRegistry(store, lost_after_seconds=LOST_AFTER))
            with pytest.raises(BrokerUnavailableError):
                found.fallback_for("shop.train", GPU, Raise(), Patience(0.2))


def test_the_registry_is_only_read(registry: AgentRegistry, redis_url: str) -> None:
    """A decision leaves nothing in Redis."""
    with pytest.raises(NoCapableAgentError):
        fallback(routability(registry), Raise())

    with Redis.from_url(redis_url) as client:
        assert [] == client.keys("*")
