"""What agents tidy up: unused queues, and tasks that nobody knows."""

import json
from collections.abc import Iterator

import pytest

from orchestra.queues import QueueNames
from orchestra.registry import AgentRegistry
from orchestra.store import Store
from orchestra.sweep import QUEUE_TTL_SECONDS, Buried, Sweep
from tests.dead import dead_letters_of
from tests.stores import FLEET, publish, register, store_at

STEPS = ("", "\x06\x166")
NAMES = QueueNames(FLEET, "celery")


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
def buried() -> list[Buried]:
    """Collect what is buried."""
    return []


@pytest.fixture
def sweep(registry: AgentRegistry, buried: list[Buried]) -> Sweep:
    """Give a sweep that buries after an hour."""
    return Sweep(registry, NAMES, steps=STEPS, unregistered_after_seconds=3600, on_buried=buried.append)


def registered_ago(store: Store, suffix: str, seconds: float) -> None:
    """Make a queue's registration older."""
    now = float(store.command("TIME")[0])
    store.command("ZADD", store.keys.queues, now - seconds, suffix)


def waiting(store: Store, suffix: str, task: str) -> None:
    """Put a task into a queue of handed-on tasks."""
    publish(store, task, suffix=suffix, queue=f"{FLEET}:{suffix}", message=json.dumps({"headers": {"id": task}}))


class TestUnknownTasks:
    def test_buried_when_nobody_has_known_them_for_too_long(
        self, store: Store, sweep: Sweep, buried: list[Buried], registry: AgentRegistry
    ) -> None:
        """The messages are kept as dead letters with their reason, and their waiters can be told."""
        register(registry)
        waiting(store, "nlp@shop.gone", "1")
        registered_ago(store, "nlp@shop.gone", 3700)

        sweep.run()

        assert [Buried("shop.gone", [b'{"headers": {"id": "1"}}'])] == buried
        letter = dead_letters_of(store).show("1")
        assert ("unregistered", "shop:nlp@shop.gone", "nlp") == (letter.reason, letter.queue, letter.requires)
        assert "No agent has known shop.gone for 3600 s." == letter.error
        assert {"nlp"} == set(registry.queues())

    def test_left_while_an_agent_knows_them(
        self, store: Store, sweep: Sweep, buried: list[Buried], registry: AgentRegistry
    ) -> None:
        """A busy agent that knows the task will come for it."""
        register(registry)
        waiting(store, "nlp@shop.index", "1")
        registered_ago(store, "nlp@shop.index", 3700)

        sweep.run()

        assert [] == buried
        assert [1] == registry.depths(["shop:nlp@shop.index"], steps=STEPS)

    def test_left_while_young(self, store: Store, sweep: Sweep, buried: list[Buried]) -> None:
        """A deploy gets its time."""
        waiting(store, "nlp@shop.gone", "1")
        registered_ago(store, "nlp@shop.gone", 3500)

        sweep.run()

        assert [] == buried

    def test_ordinary_queues_are_never_buried(self, store: Store, sweep: Sweep, buried: list[Buried]) -> None:
        """A task that no agent satisfies waits, however long."""
        waiting(store, "gpu", "1")
        registered_ago(store, "gpu", 10 * QUEUE_TTL_SECONDS)

        sweep.run()

        assert [] == buried
        assert 1 == store.command("LLEN", "shop:gpu")


class TestUnusedQueues:
    @pytest.mark.parametrize(
        ("suffix", "age", "stays"),
        [
            ("gpu", QUEUE_TTL_SECONDS + 60, False),
            ("gpu", QUEUE_TTL_SECONDS - 60, True),
            ("nlp@shop.gone", 120, False),
            ("nlp@shop.gone", 30, True),
        ],
    )
    def test_empty_ones_are_forgotten_in_time(
        self, store: Store, sweep: Sweep, registry: AgentRegistry, suffix: str, age: float, *, stays: bool
    ) -> None:
        """A queue for one caller's wish doesn't stay in every agent's list for ever."""
        registered_ago(store, suffix, age)

        sweep.run()

        assert stays == (suffix in registry.queues())

    def test_one_with_a_delayed_task_stays(self, store: Store, sweep: Sweep, registry: AgentRegistry) -> None:
        """A task that was submitted for next week finds its queue then."""
        registered_ago(store, "gpu", QUEUE_TTL_SECONDS + 60)
        store.command("ZADD", store.keys.delayed("shop:gpu"), 9e9, "one")

        sweep.run()

        assert "gpu" in registry.queues()

    def test_a_name_that_a_newer_version_wrote_is_left_alone(
        self, store: Store, sweep: Sweep, registry: AgentRegistry
    ) -> None:
        """What can't be read isn't judged."""
        registered_ago(store, "??", 10 * QUEUE_TTL_SECONDS)

        sweep.run()

        assert "??" in registry.queues()
