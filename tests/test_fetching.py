"""How messages are fetched, on a real server: waiting, batches, consumers that come and go, and whose turn it is."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from time import monotonic
from typing import Any

import pytest
from kombu import Exchange, Queue
from redis import Redis

from orchestra.capabilities import GENERAL
from orchestra.fetching import WAIT_SECONDS
from orchestra.queues import CapabilityQueue
from orchestra.store import Keys
from tests.dead import letters_in
from tests.fleets import app_at, quick
from tests.keys import keys_holding
from tests.readers import LETTERS, Reader, put, reader_at

BEFORE_THE_POLL = (
    WAIT_SECONDS / 2
)  # a message, on the mean of many: without a word of it, it'd be found after twice that


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:
    """Give a client of the test's own."""
    with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture(params=["", "pre:"])
def app(redis_url: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    """Give an app, once with and once without a key prefix."""
    with app_at(redis_url, changes={"broker_transport_options": {"global_keyprefix": request.param}}) as app:
        yield app


@pytest.fixture
def keys(app: Any) -> Keys:
    """Give the names of the fleet's keys."""
    with app.connection_for_read() as connection:
        keys: Keys = connection.default_channel.fleet_keys
    return keys


@pytest.fixture
def reader(app: Any) -> Iterator[Reader]:
    """Give an agent's reader, with four processes."""
    with reader_at(app, slots=4) as reader:
        yield reader


def _now(client: Any) -> float:
    seconds, micros = client.time()
    return float(seconds + micros / 1e6)


def _put_due(client: Any, keys: Keys, due: float) -> None:
    """Push a message with an eta as a stock producer does, which knows nothing of delayed messages."""
    properties = {"delivery_tag": str(due), "delivery_info": {"exchange": "", "routing_key": LETTERS}, "priority": 0}
    headers = {"eta": datetime.fromtimestamp(due, UTC).isoformat()}
    client.lpush(
        f"{keys.global_prefix}{LETTERS}", json.dumps({"body": "", "headers": headers, "properties": properties})
    )


def _all_of(app: Any, queue: str = LETTERS) -> list[str]:
    """Fetch all that waits, over a connection of its own."""
    found = []
    with app.connection_for_read() as connection:
        while (message := connection.default_channel.basic_get(queue)) is not None:
            found.append(message.payload)
            message.ack()
    return found


class TestWaiting:
    def test_a_task_wakes_who_waits(self, app: Any, reader: Reader) -> None:
        """A task that is sent while an idle agent waits comes at once, not with its next look."""
        reader.consume()
        reader.turn()
        began = monotonic()

        for count in range(1, 11):
            app.send_task("shop.any", queue=LETTERS)
            reader.until(lambda count=count: len(reader.messages) == count)  # type: ignore[misc]
            reader.messages[-1].ack()

        assert monotonic() - began < 10 * BEFORE_THE_POLL

    def test_what_a_stock_producer_sent(self, app: Any, reader: Reader, client: Any, keys: Keys) -> None:
        """What was pushed without a word is found by the next look, which comes without being asked for."""
        reader.consume()
        reader.until(lambda: reader.channel.fetches and not reader.channel.carries_news)
        put(app, "a")
        assert 0 == client.exists(keys.wake(LETTERS))

        assert ["a"] == reader.read(1)

    def test_one_look_after_another_while_there_is_more(self, app: Any, reader: Reader) -> None:
        """As long as a queue has messages nothing waits: the next fetch goes off as soon as there's room."""
        put(app, *(str(number) for number in range(40)))
        began = monotonic()
        reader.consume(on_message=reader.take_and_settle)

        assert [str(number) for number in range(40)] == reader.read(40)
        assert monotonic() - began < 40 / 4 * BEFORE_THE_POLL

    def test_delayed_messages(self, redis_url: str, client: Any) -> None:
        """What isn't due waits on the server, and comes when it is: an idle agent looks then, not at its usual pace."""
        keys, first = Keys("orchestra", "shop"), _now(client) + 0.7
        with app_at(redis_url, settings=quick(beat_seconds=60)) as app, reader_at(app, slots=4) as reader:
            for due in (
                first,
                first + 0.2,
            ):  # by looks at their usual pace, one of them would be late by more than half
                _put_due(client, keys, due)
            reader.consume()
            reader.until(lambda: client.zcard(keys.delayed(LETTERS)) == 2)
            assert [] == reader.messages

            for count, due in ((1, first), (2, first + 0.2)):
                reader.read(count)
                assert due <= _now(client) < due + WAIT_SECONDS / 2
            assert 0 == client.exists(keys.delayed(LETTERS), keys.due)

    def test_no_room(self, app: Any, reader: Reader, client: Any) -> None:
        """An agent with a message for each process fetches no more until one of them has ended."""
        put(app, *"abcdef")
        reader.consume()
        reader.read(4)
        for _ in range(3):
            reader.turn()
        assert list("abcd") == reader.texts

        reader.messages[1].ack()

        assert list("abcde") == reader.read(5)


class TestWhoseTurn:
    def test_queues_take_turns(self, app: Any) -> None:
        """Of queues that ask for equally much, none waits for another to be empty."""
        queues = ("one", "two", "three")
        for queue in queues:
            put(app, *[queue] * 6, queue=queue)
        with reader_at(app, slots=1) as reader:
            for queue in queues:
                reader.consume(queue, on_message=reader.take_and_settle)

            read = reader.read(9)

        assert [3, 3, 3] == [read[:9].count(queue) for queue in queues]

    def test_a_batch_is_delivered_in_its_order(self, app: Any) -> None:
        """Messages that came with one fetch are handed over one after the other, as they were sent."""
        put(app, *"abcdef")
        with reader_at(app, slots=6) as reader:
            reader.consume()
            reader.send()
            reader.until(lambda: reader.messages)

            assert list("abcdef") == reader.texts


class TestConsumers:
    def test_plain_ones_beside_others(self, app: Any, reader: Reader, client: Any, keys: Keys) -> None:
        """On one channel, messages that need no acknowledgement and those that do come each in their way."""
        put(app, "plain", queue="notes")
        put(app, "leased")
        reader.consume("notes", no_ack=True)
        reader.consume()

        assert {"plain", "leased"} == set(reader.read(2))
        assert {f"{keys.leases(reader.holder.name)}"} == keys_holding(client, "letters\n")
        assert set() == keys_holding(client, "notes\n")

    def test_plain_ones_alone(self, app: Any, reader: Reader) -> None:
        """When the last consumer that acknowledges goes, the others read on."""
        reader.consume("notes", no_ack=True)
        reader.consume()
        reader.turn()
        reader.cancel()
        put(app, "plain", queue="notes")

        assert ["plain"] == reader.read(1)

    def test_one_that_comes_later(self, app: Any, reader: Reader) -> None:
        """A consumer that joins an idle channel gets what has waited for it."""
        reader.consume("notes")
        reader.turn()
        put(app, "a")
        reader.consume()

        assert ["a"] == reader.read(1)

    def test_cancelled_while_a_fetch_is_under_way(self, app: Any, reader: Reader) -> None:
        """What a fetch brings for a consumer that is gone by then goes back."""
        put(app, "a")
        reader.consume("notes")
        reader.consume()
        reader.send()
        reader.cancel()
        reader.turn()
        reader.settle()

        assert [] == reader.texts
        assert ["a"] == _all_of(app)

    def test_cancelled_with_several_under_way(self, app: Any, reader: Reader) -> None:
        """Several messages for a consumer that is gone go back in their order."""
        put(app, *"abc")
        reader.consume("notes")
        reader.consume()
        reader.send()
        reader.cancel()
        reader.turn()
        reader.settle()

        assert list("abc") == _all_of(app)

    def test_replaced_by_a_plain_one(self, app: Any, reader: Reader, client: Any) -> None:
        """What was leased for a consumer and goes to one that doesn't acknowledge is done with."""
        put(app, "a")
        reader.consume()
        reader.send()
        reader.cancel()
        reader.consume(no_ack=True)
        reader.read(1)
        reader.settle()

        assert set() == keys_holding(client, "letters\n")

    def test_a_plain_one_cancelled_while_it_reads(self, app: Any, reader: Reader, client: Any) -> None:
        """What a plain read brings for a consumer that is gone by then goes back to the front of its list."""
        reader.consume("notes", no_ack=True)
        reader.consume("others", no_ack=True)
        put(app, "a", "b", queue="notes")
        reader.send()
        reader.cancel("notes")
        reader.turn()
        reader.settle()

        assert ["a", "b"] == _all_of(app, "notes")


class TestBatches:
    def test_an_error_of_the_consumer(self, app: Any, reader: Reader) -> None:
        """When a consumer's callback raises, what it had not got yet goes back, in its order."""
        put(app, *"abcd")
        got = []

        def take(message: Any) -> None:
            got.append(message.payload)
            if message.payload == "b":
                raise LookupError(message.payload)
            message.ack()

        reader.consume(on_message=take)
        with pytest.raises(LookupError):
            reader.read(4)
        reader.cancel()
        reader.settle()

        assert list("ab") == got
        assert 1 == reader.channel.qos.in_hand
        assert list("cd") == _all_of(app)

    def test_an_agent_that_is_told_to_stop(self, app: Any) -> None:
        """An agent that stops while a batch is handed over begins nothing more of it."""
        put(app, *"abcd")
        with reader_at(app, slots=4) as reader:
            reader.holder.stopping = lambda: len(reader.messages) == 2
            reader.consume(on_message=reader.take_and_settle)
            assert list("ab") == reader.read(2)
            reader.cancel()
            reader.settle()

            assert list("ab") == reader.texts
        assert list("cd") == _all_of(app)


class TestUnreadable:
    @pytest.mark.parametrize(
        "raw", [b"", b"no json", b"[]", b"{}", b'{"properties": 1}', b'{"properties": {}, "headers": 1}']
    )
    def test_dead_letters(self, app: Any, reader: Reader, client: Any, keys: Keys, raw: bytes) -> None:
        """What is no message goes to the dead letters as it was, and those behind it come."""
        client.lpush(f"{keys.global_prefix}{LETTERS}", raw)
        put(app, "a")
        reader.consume()

        assert ["a"] == reader.read(1)
        reader.settle()
        (letter,) = letters_in(client, keys)
        assert (LETTERS, "undecodable", raw) == (letter.queue, letter.reason, letter.message)

    def test_fetched_one_by_one(self, app: Any, client: Any, keys: Keys) -> None:
        """`basic_get` passes what is no message by, and that is in the dead letters at once."""
        client.lpush(f"{keys.global_prefix}{LETTERS}", b"no json")
        with app.connection_for_read() as connection:
            assert connection.default_channel.basic_get(LETTERS) is None

            assert 1 == client.zcard(keys.dead_letters)

    def test_one_by_one_without_acknowledgement(self, app: Any, reader: Reader, client: Any) -> None:
        """A message that was popped plainly is nowhere any more, so it can't be handed on."""
        put(app, "a")

        message = reader.channel.basic_get(LETTERS, no_ack=True)

        assert "a" == message.payload
        assert not reader.channel.hand_on(message, CapabilityQueue(GENERAL, "shop.any"))
        assert 0 == client.llen("celery")


class TestQueues:
    def test_there_or_not(self, app: Any, reader: Reader) -> None:
        """A queue that holds something, at whatever priority, is found; one that holds nothing isn't there."""
        app.send_task("shop.any", queue=LETTERS, priority=9)

        assert reader.channel._has_queue(LETTERS)
        assert not reader.channel._has_queue("nothing")


class TestPurge:
    @pytest.mark.parametrize(("act", "told"), [("purge", 2), ("delete", None)])
    def test_what_is_delayed_goes_too(
        self, app: Any, reader: Reader, client: Any, keys: Keys, act: str, told: int | None
    ) -> None:
        """Who purges or deletes a queue drops what is delayed for it as well, and counts it."""
        queue = Queue(LETTERS, Exchange(LETTERS), routing_key=LETTERS)(reader.channel)
        queue.declare()
        app.send_task("shop.any", queue=LETTERS)
        app.send_task("shop.any", queue=LETTERS, countdown=60)
        assert 2 == len(keys_holding(client, "shop.any") - _records(client))

        assert told == getattr(queue, act)()

        assert set() == keys_holding(client, "shop.any") - _records(client)
        assert 0 == client.exists(keys.due)


def _records(client: Any) -> set[str]:
    return {key.decode() for key in client.scan_iter("*:task:*")}
