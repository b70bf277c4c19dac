"""What the scripts do in one step, which the modules that run them can't show by themselves."""

from collections.abc import Iterator

import pytest

from orchestra.leases import Lease
from orchestra.store import Store
from tests.stores import client_at, publish, store_at
from tests.transit import Transit, holder_named, transit_at


@pytest.fixture
def store(redis_url: str) -> Iterator[Store]:
    """Give the shop's store over an empty Redis."""
    with store_at(redis_url) as store:
        yield store


class TestPublish:
    def test_pushes_records_and_registers(self, store: Store) -> None:
        """One call pushes the message, writes the task down and puts its queue on the table."""
        publish(store, "1", message='{"body": 1}', suffix="nlp", queue="shop:nlp")

        assert [b'{"body": 1}'] == store.command("LRANGE", "shop:nlp", 0, -1)
        assert b"submitted" == store.command("HGET", store.keys.task("1"), "state")
        assert [b"nlp"] == store.command("ZRANGE", store.keys.queues, 0, -1)
        assert b"1" == store.command("GET", store.keys.queues_version)

    def test_known_queue_keeps_the_version(self, store: Store) -> None:
        """A queue that is on the table is renewed there, without calling every agent to read it."""
        publish(store, "1", suffix="nlp")
        first = float(store.command("ZSCORE", store.keys.queues, "nlp"))

        publish(store, "2", suffix="nlp")

        assert b"1" == store.command("GET", store.keys.queues_version)
        assert first < float(store.command("ZSCORE", store.keys.queues, "nlp"))

    def test_new_queue_raises_the_version(self, store: Store) -> None:
        """A queue that appears is news for the agents."""
        publish(store, "1", suffix="nlp")

        publish(store, "2", suffix="gpu")

        assert b"2" == store.command("GET", store.keys.queues_version)

    def test_foreign_queue_is_not_registered(self, store: Store) -> None:
        """A task that its project routed itself is recorded, and its queue stays off the table."""
        publish(store, "1", suffix="", queue="billing")

        assert b"billing" == store.command("HGET", store.keys.task("1"), "queue")
        assert 0 == store.command("EXISTS", store.keys.queues)
        assert 0 == store.command("EXISTS", store.keys.queues_version)


class TestHandOn:
    TARGET = "shop:nlp@shop.index"

    @pytest.fixture
    def transit(self, redis_url: str) -> Iterator[Transit]:
        """Give the shop's messages."""
        with transit_at(redis_url) as transit:
            yield transit

    def hand_on(self, transit: Transit, lease: Lease) -> int:
        """Hand a leased message on as the transport does, to the queue of those who know `shop.index`."""
        keys = transit.keys
        moved: int = transit.store.run(
            "hand_on",
            [self.TARGET, keys.queues, keys.queues_version],
            [keys.base, lease.holder, lease.number, lease.queue, self.TARGET, "nlp@shop.index"],
        )
        return moved

    def test_moves_our_delivery(self, transit: Transit) -> None:
        """The lease is given up, the message waits in its new queue as it was, and the agents hear of that."""
        lease = transit.lease(holder_named("a"), '{"body": [1.0, []]}')

        assert 1 == self.hand_on(transit, lease)

        assert {self.TARGET} == transit.places('{"body": [1.0, []]}')
        assert transit.score(lease) is None
        assert [b"nlp@shop.index"] == transit.store.command("ZRANGE", transit.keys.queues, 0, -1)
        assert b"1" == transit.store.command("GET", transit.keys.queues_version)
        assert 1 == transit.store.command("LLEN", transit.keys.wake(self.TARGET))

    @pytest.mark.parametrize("gone", ["settle", "return", "delay"])
    def test_moves_nothing_that_is_no_longer_ours(self, transit: Transit, gone: str) -> None:
        """A message that went elsewhere in the meantime stays there, so it's never in two queues."""
        holder = holder_named("a")
        lease = transit.lease(holder, "letter")
        transit.say(holder, gone, lease, transit.now() + 60 if gone == "delay" else "")
        places = transit.places("letter")

        assert 0 == self.hand_on(transit, lease)

        assert places == transit.places("letter")
        assert self.TARGET not in places
        assert 0 == transit.store.command("EXISTS", transit.keys.queues)

    def test_twice_moves_once(self, transit: Transit) -> None:
        """A move that is repeated after a lost answer doesn't double the message."""
        lease = transit.lease(holder_named("a"), "letter")

        moved = [self.hand_on(transit, lease), self.hand_on(transit, lease)]

        assert [1, 0] == moved
        assert ["letter"] == transit.waiting(self.TARGET)

    def test_first_come_first_served(self, transit: Transit) -> None:
        """Messages that are handed on wait behind those that were handed on before them."""
        holder = holder_named("a")
        for letter in ("first", "second"):
            self.hand_on(transit, transit.lease(holder, letter))

        assert ["first", "second"] == transit.waiting(self.TARGET)

    def registered_after(self, transit: Transit, letter: str) -> float:
        """Hand one more message on, and return the time of the queue's registration then."""
        self.hand_on(transit, transit.lease(holder_named("a"), letter))
        return float(transit.store.command("ZSCORE", transit.keys.queues, "nlp@shop.index"))

    def test_known_queue_is_no_news(self, transit: Transit) -> None:
        """Further messages of the same task don't call every agent to read the table."""
        self.registered_after(transit, "first")
        self.registered_after(transit, "second")

        assert b"1" == transit.store.command("GET", transit.keys.queues_version)

    def test_registration_tells_since_when_something_waits(self, transit: Transit) -> None:
        """The first message of a row renews the queue's registration, and those that join it don't."""
        first, second = self.registered_after(transit, "first"), self.registered_after(transit, "second")
        transit.store.command("DEL", self.TARGET)
        third = self.registered_after(transit, "third")

        assert first == second < third


class TestStoreResult:
    @staticmethod
    def store_result(store: Store, result: str, *, ttl: int = 0, state: str = "succeeded") -> int:
        """Store a result as the backend does."""
        record = [state, " - submitted running retrying ", "text@a", 1, "", 60_000, ""] if state else [""] * 7
        stored: int = store.run("store_result", ["result", store.keys.task("1")], [result, ttl, '{"ok', *record])
        return stored

    def test_result_and_record_are_one_step(self, store: Store) -> None:
        """Who sees the result sees the record that goes with it."""
        publish(store, "1")

        assert 1 == self.store_result(store, '{"ok": 1}')

        assert b'{"ok": 1}' == store.command("GET", "result")
        assert b"succeeded" == store.command("HGET", store.keys.task("1"), "state")

    def test_success_stands(self, store: Store) -> None:
        """A copy that was delivered twice doesn't overwrite the success of the first."""
        self.store_result(store, '{"ok": 1}')

        assert 0 == self.store_result(store, '{"failed": 2}', state="failed")

        assert b'{"ok": 1}' == store.command("GET", "result")
        assert b"succeeded" == store.command("HGET", store.keys.task("1"), "state")

    def test_failure_gives_way(self, store: Store) -> None:
        """A result that isn't a success may be followed by another."""
        self.store_result(store, '{"retrying": 1}', state="retrying")

        assert 1 == self.store_result(store, '{"ok": 2}')

        assert b'{"ok": 2}' == store.command("GET", "result")

    def test_expiry_is_set_where_it_is_wanted(self, store: Store) -> None:
        """A result lives as long as Celery's setting says, for ever with 0."""
        self.store_result(store, '{"failed": 1}', ttl=100, state="failed")
        assert 0 < store.command("TTL", "result") <= 100

        self.store_result(store, '{"failed": 1}', ttl=0, state="failed")
        assert -1 == store.command("TTL", "result")

    def test_waiting_callers_are_told(self, store: Store, redis_url: str) -> None:
        """Whoever subscribed to the result gets it at once."""
        with client_at(redis_url) as client, client.pubsub() as listener:
            listener.subscribe("result")
            assert listener.get_message(timeout=5) is not None

            self.store_result(store, '{"ok": 1}')

            message = listener.get_message(timeout=5)
        assert message is not None
        assert b'{"ok": 1}' == message["data"]

    def test_without_a_state_leaves_the_record(self, store: Store) -> None:
        """A state that the record doesn't know, such as a project's own, is stored as a result alone."""
        publish(store, "1")

        self.store_result(store, '{"progress": 40}', state="")

        assert b"submitted" == store.command("HGET", store.keys.task("1"), "state")
