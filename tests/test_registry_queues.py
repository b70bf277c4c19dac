"""The table of queues: what waits in them, and what becomes of those that nobody uses."""

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from orchestra.registry import AgentRegistry, Backlog
from orchestra.store import Keys, Store
from tests.dead import dead_letters_of
from tests.stores import FLEET, beat_of, client_at, publish, register, store_at

STEPS = ("", "\x06\x163", "\x06\x166", "\x06\x169")  # as kombu ends the names of a queue's lists


@pytest.fixture
def store(redis_url: str) -> Iterator[Store]:
    """Give the shop's store over an empty Redis."""
    with store_at(redis_url) as store:
        yield store


@pytest.fixture
def registry(store: Store) -> AgentRegistry:
    """Give the shop's registry, which is patient enough for a slow machine."""
    return AgentRegistry(store, lost_after_seconds=60)


class TestQueues:
    def test_publish_renews_a_registration(self, store: Store, registry: AgentRegistry) -> None:
        """The table tells when a queue was last asked for."""
        register(registry)
        first = registry.queues()["nlp"]

        publish(store, "1", suffix="nlp")

        assert first < registry.queues()["nlp"]

    def test_flush_heals(self, store: Store, registry: AgentRegistry) -> None:
        """After a flush, the next publish and the agent's next registration bring the table back."""
        register(registry, queues=["nlp", "gpu"])
        store.command("FLUSHALL")

        publish(store, "1", suffix="cpu")
        assert {"cpu"} == set(registry.queues())
        register(registry, queues=["nlp", "gpu"])

        assert {"cpu", "gpu", "nlp"} == set(registry.queues())
        assert {"shop.index"} == set(registry.catalogue())


class TestRegistered:
    def test_tells_ages_by_one_clock(self, store: Store, registry: AgentRegistry) -> None:
        """Registrations come with Redis's own time, so that an age can be told whatever the local clock says."""
        assert {} == registry.registered()[1]
        publish(store, "1", suffix="nlp")

        now, queues = registry.registered()

        assert ["nlp"] == list(queues)
        assert 0 <= now - queues["nlp"] < 60
        assert datetime.fromtimestamp(queues["nlp"], UTC) == registry.queues()["nlp"]


class TestPrune:
    @staticmethod
    def prune(registry: AgentRegistry, *, registered_before: float | None = None) -> bool:
        """Prune the queue `nlp`, by default whenever it was registered."""
        now, _ = registry.registered()
        before = now if registered_before is None else registered_before
        return registry.prune("nlp", "shop:nlp", steps=STEPS, registered_before=before)

    def test_unused_queue_leaves_the_table(self, registry: AgentRegistry) -> None:
        """A queue in which nothing waits is forgotten, and the agents hear of it."""
        version = register(registry, queues=["nlp", "gpu"])

        assert self.prune(registry)

        assert {"gpu"} == set(registry.queues())
        assert (True, False, "2", ("gpu",)) == beat_of(registry, version=version)

    @pytest.mark.parametrize("step", STEPS)
    def test_queue_with_messages_stays(self, store: Store, registry: AgentRegistry, step: str) -> None:
        """A message of whatever priority keeps its queue on the table."""
        register(registry)
        store.command("LPUSH", f"shop:nlp{step}", "{}")

        assert not self.prune(registry)

        assert {"nlp"} == set(registry.queues())

    def test_queue_stays_while_messages_are_out(self, store: Store, registry: AgentRegistry) -> None:
        """A delivery that isn't acknowledged may come back to its queue."""
        register(registry)
        store.command("HSET", "unacked", "tag-1", "{}")

        assert not self.prune(registry)

    @pytest.mark.parametrize("kind", ["delayed", "leased"])
    def test_queue_with_messages_in_transit_stays(self, store: Store, registry: AgentRegistry, kind: str) -> None:
        """What isn't due yet or in an agent's hands comes back to its queue; another queue's doesn't."""
        register(registry)
        key, other = getattr(store.keys, kind)("shop:nlp"), getattr(store.keys, kind)("shop:gpu")
        store.command("ZADD", key, "inf", "one")
        store.command("ZADD", other, 1, "two")

        assert not self.prune(registry)

        assert {"nlp"} == set(registry.queues())
        store.command("ZREM", key, "one")
        assert self.prune(registry)

    def test_queue_that_was_asked_for_again_stays(self, store: Store, registry: AgentRegistry) -> None:
        """A publish between the look and the act keeps its queue on the table."""
        register(registry)
        looked_at, _ = registry.registered()
        publish(store, "1", suffix="nlp")
        store.command("DEL", "shop:nlp")

        assert not self.prune(registry, registered_before=looked_at)

    def test_twice_is_no_news(self, registry: AgentRegistry) -> None:
        """Two agents that tidy up at the same moment count as one."""
        register(registry)

        assert [True, False] == [self.prune(registry), self.prune(registry)]

        assert (True, False, "2", ()) == beat_of(registry)

    def test_prefix_of_queues_is_added(self, store: Store) -> None:
        """Where kombu puts a prefix before every key, queues and deliveries have it too."""
        registry = AgentRegistry(store, lost_after_seconds=60, prefix_queues="tenant1:")
        register(registry)
        for words in (("LPUSH", "tenant1:shop:nlp", "{}"), ("HSET", "tenant1:unacked", "tag-1", "{}")):
            store.command(*words)
            assert not self.prune(registry)
            store.command("DEL", words[1])

        assert self.prune(registry)


class TestDepths:
    def test_all_priorities_count(self, store: Store, registry: AgentRegistry) -> None:
        """A queue's depth is that of all its lists, one a priority step."""
        for at, step in enumerate(STEPS):
            store.command("RPUSH", f"shop:nlp{step}", *["{}"] * (at + 1))
        store.command("RPUSH", "shop:gpu", "{}")

        assert [1, 10, 0] == registry.depths(["shop:gpu", "shop:nlp", "shop:cpu"], steps=STEPS)

    def test_no_queues_no_depths(self, registry: AgentRegistry) -> None:
        """Who asks for no queue gets no depth."""
        assert [] == registry.depths([], steps=STEPS)

    def test_prefix_of_queues_is_added(self, store: Store) -> None:
        """Where kombu puts a prefix before every key, the queues have it too."""
        store.command("RPUSH", "tenant1:shop:nlp", "{}")
        registry = AgentRegistry(store, lost_after_seconds=60, prefix_queues="tenant1:")

        assert [1] == registry.depths(["shop:nlp"], steps=STEPS)


class TestBacklogs:
    def test_each_place_is_counted(self, store: Store, registry: AgentRegistry) -> None:
        """What waits, what isn't due yet and what agents hold are counted apart, started or not."""
        store.command("RPUSH", "shop:nlp", "{}")
        store.command("RPUSH", f"shop:nlp{STEPS[3]}", "{}", "{}")
        store.command("ZADD", store.keys.delayed("shop:nlp"), 1, "a", 2, "b")
        store.command("ZADD", store.keys.leased("shop:nlp"), 1, "holder:1", "inf", "holder:2", "inf", "holder:3")
        store.command("ZADD", store.keys.delayed("shop:gpu"), 1, "a")

        assert [
            Backlog(waiting=0, delayed=1, leased=0),
            Backlog(waiting=3, delayed=2, leased=3),
            Backlog(waiting=0, delayed=0, leased=0),
        ] == registry.backlogs(["shop:gpu", "shop:nlp", "shop:cpu"], steps=STEPS)

    def test_prefix_of_all_keys_is_added(self, redis_url: str) -> None:
        """Where kombu puts a prefix before every key, it stands before our keys and not within them."""
        with client_at(redis_url) as client:
            client.zadd("tenant1:orchestra:{shop}:delayed:shop:nlp", {"a": 1})
            client.zadd("tenant1:orchestra:{shop}:leased:shop:nlp", {"b": 1, "c": 2})
            store = Store(lambda: client, Keys("orchestra", FLEET, "tenant1:"), location="")
            registry = AgentRegistry(store, lost_after_seconds=60, prefix_queues="tenant1:")

            assert [Backlog(waiting=0, delayed=1, leased=2)] == registry.backlogs(["shop:nlp"], steps=STEPS)


class TestBury:
    def test_messages_become_dead_letters(self, store: Store, registry: AgentRegistry) -> None:
        """A queue's messages of every priority move to the dead letters, as they were, with queue, time and reason."""
        register(registry)
        raw = '{"body": "é\\u0000\\" \\\\ 1.0", "empty": []}'
        store.command("LPUSH", "shop:nlp", raw)
        store.command("LPUSH", "shop:nlp\x06\x169", '{"body": 2}')

        moved = registry.bury("nlp", "shop:nlp", steps=STEPS, reason="unregistered")

        assert [raw.encode(), b'{"body": 2}'] == moved
        letters = [dead_letters_of(store).show(letter.id) for letter in dead_letters_of(store).list().letters]
        assert [b'{"body": 2}', raw.encode()] == [letter.message for letter in letters]
        assert {("shop:nlp", "unregistered")} == {(letter.queue, letter.reason) for letter in letters}
        assert abs(store.command("TIME")[0] - letters[0].died_at.timestamp()) < 60
        assert [0] == registry.depths(["shop:nlp"], steps=STEPS)

    def test_oldest_comes_first(self, store: Store, registry: AgentRegistry) -> None:
        """Messages are buried in the order in which they would have been delivered."""
        for number in range(3):
            publish(store, str(number), message=str(number))

        assert [b"0", b"1", b"2"] == registry.bury("nlp", "shop:nlp", steps=STEPS, reason="unregistered")

    def test_empty_queue_leaves_the_table(self, store: Store, registry: AgentRegistry) -> None:
        """A queue that was emptied is off the table, and the agents hear of it."""
        version = register(registry, queues=["nlp", "gpu"])

        assert [] == registry.bury("nlp", "shop:nlp", steps=STEPS, reason="unregistered")

        assert {"gpu"} == set(registry.queues())
        assert (True, False, "2", ("gpu",)) == beat_of(registry, version=version)

    @pytest.mark.parametrize("kind", ["delayed", "leased"])
    def test_messages_in_transit_are_left(self, store: Store, registry: AgentRegistry, kind: str) -> None:
        """What isn't due yet or in an agent's hands isn't buried, and its queue stays on the table for it."""
        register(registry)
        store.command("LPUSH", "shop:nlp", "{}")
        key = getattr(store.keys, kind)("shop:nlp")
        store.command("ZADD", key, 1, "one")

        assert [b"{}"] == registry.bury("nlp", "shop:nlp", steps=STEPS, reason="unregistered")

        assert ({"nlp"}, 1) == (set(registry.queues()), store.command("ZCARD", key))

    def test_unknown_queue_changes_nothing(self, store: Store, registry: AgentRegistry) -> None:
        """A queue that isn't on the table is no news."""
        version = register(registry)

        registry.bury("gpu", "shop:gpu", steps=STEPS, reason="unregistered")

        assert (True, False, version, None) == beat_of(registry, version=version)

    def test_long_queue_is_buried_bit_by_bit(self, store: Store, registry: AgentRegistry) -> None:
        """One call holds the server for a bounded time; a queue that isn't empty stays on the table."""
        register(registry)
        store.command("RPUSH", "shop:nlp", *["{}"] * 700)
        store.command("RPUSH", "shop:nlp\x06\x163", *["{}"] * 700)

        moved = [len(registry.bury("nlp", "shop:nlp", steps=STEPS, reason="unregistered"))]
        assert {"nlp"} == set(registry.queues())
        moved.append(len(registry.bury("nlp", "shop:nlp", steps=STEPS, reason="unregistered")))

        assert [1000, 400] == moved
        assert {} == registry.queues()
        assert 1400 == store.command("ZCARD", store.keys.dead_letters)

    def test_prefix_of_queues_is_added(self, store: Store) -> None:
        """Where kombu puts a prefix before every key, the queues have it too."""
        store.command("RPUSH", "tenant1:shop:nlp", "{}")
        registry = AgentRegistry(store, lost_after_seconds=60, prefix_queues="tenant1:")

        assert [b"{}"] == registry.bury("nlp", "shop:nlp", steps=STEPS, reason="unregistered")
