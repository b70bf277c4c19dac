"""kombu's own consumers over our transport, on a real server: who holds a message, and how it's given back."""

from collections.abc import Iterator
from contextlib import suppress
from queue import Empty
from time import monotonic
from typing import Any

import pytest
from celery.exceptions import Reject
from kombu import Queue
from redis import Redis

from tests.fleets import agent_of, app_at
from tests.keys import keys_holding
from tests.processes import until

MARK = "mark of a letter"


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
def connection(app: Any) -> Iterator[Any]:
    """Give a connection of the app's."""
    with app.connection_for_read() as connection:
        yield connection


def _put(connection: Any, *letters: str) -> None:
    with connection.SimpleQueue("letters") as queue:
        for letter in letters:
            queue.put(letter, headers={"mark": MARK})


def _drain(connection: Any, found: list[Any], count: int) -> None:
    """Hand messages to the consumers until `count` are found, and for a moment longer, in which more would be."""
    deadline = monotonic() + 10
    while len(found) < count and monotonic() < deadline:
        with suppress(TimeoutError):
            connection.drain_events(timeout=0.2)
    with suppress(TimeoutError):
        connection.drain_events(timeout=0.3)


def _all_of(app: Any) -> set[str]:
    """Fetch all that waits, over a connection of its own, and acknowledge it."""
    found = set()
    with app.connection_for_read() as connection, connection.SimpleQueue("letters") as letters:
        try:
            while True:
                message = letters.get_nowait()
                message.ack()
                found.add(message.payload)
        except Empty:
            return found


class TestSimpleQueue:
    def test_acknowledged(self, connection: Any, client: Any) -> None:
        """A letter is on the server until it's acknowledged, fetched or not, and nowhere afterwards."""
        _put(connection, "a")
        with connection.SimpleQueue("letters") as letters:
            message = letters.get(timeout=10)

            assert "a" == message.payload
            assert keys_holding(client, MARK)
            message.ack()
            assert set() == keys_holding(client, MARK)

    def test_not_to_be_acknowledged(self, connection: Any, client: Any) -> None:
        """With `no_ack` nothing of a letter is left once it was handed over."""
        _put(connection, "a", "b")
        with connection.SimpleQueue("letters", no_ack=True) as letters:
            read = [letters.get(timeout=10).payload for _ in range(2)]

            assert ["a", "b"] == read
            assert set() == keys_holding(client, MARK)

    def test_nothing_there(self, connection: Any) -> None:
        """An empty queue says so, at once or when the time is up."""
        with connection.SimpleQueue("letters") as letters:
            for fetch in (letters.get_nowait, lambda: letters.get(timeout=0.2)):
                with pytest.raises(letters.Empty):
                    fetch()

    def test_a_letter_that_comes_later(self, app: Any, connection: Any) -> None:
        """Whoever waits gets what is put afterwards, in the order in which it was put."""
        with connection.SimpleQueue("letters") as letters:
            with pytest.raises(letters.Empty):
                letters.get(timeout=0.1)
            with app.connection_for_write() as other:
                _put(other, "a", "b", "c")

            assert ["a", "b", "c"] == [_acknowledged(letters.get(timeout=10)) for _ in range(3)]


def _acknowledged(message: Any) -> Any:
    message.ack()
    return message.payload


class TestConsumer:
    @pytest.mark.parametrize("way", ["consumer", "queue"])
    def test_not_to_be_acknowledged(self, connection: Any, client: Any, way: str) -> None:
        """A consumer without acknowledgements, by its own option or its queue's, leaves nothing behind."""
        _put(connection, "a", "b", "c")
        read: list[str] = []
        queue = Queue("letters", no_ack=way == "queue")
        options = {"no_ack": True} if way == "consumer" else {}
        with connection.Consumer([queue], callbacks=[lambda body, _: read.append(body)], **options):
            _drain(connection, read, 3)

        assert ["a", "b", "c"] == read
        assert set() == keys_holding(client, MARK)

    def test_prefetch(self, connection: Any) -> None:
        """A consumer holds no more than it asked for, and gets the next when it acknowledges one."""
        _put(connection, "a", "b", "c", "d")
        held: list[Any] = []
        with connection.Consumer([Queue("letters")], on_message=held.append) as consumer:
            consumer.qos(prefetch_count=2)
            _drain(connection, held, 2)
            assert ["a", "b"] == [message.payload for message in held]

            held[0].ack()
            _drain(connection, held, 3)

            assert ["a", "b", "c"] == [message.payload for message in held]

    def test_several_consumers_share(self, app: Any, connection: Any) -> None:
        """Each message goes to one consumer."""
        _put(connection, *"abcdef")
        held: list[Any] = []
        with app.connection_for_read() as second:
            for count, each in ((3, connection), (6, second)):
                consumer = each.Consumer([Queue("letters")], on_message=held.append)
                consumer.qos(prefetch_count=3)
                consumer.consume()
                _drain(each, held, count)

            assert list("abcdef") == sorted(message.payload for message in held)
            assert 2 == len({message.channel for message in held})

    def test_a_cancelled_consumer_takes_nothing(self, app: Any, connection: Any) -> None:
        """What comes after a consumer was cancelled stays for others."""
        read: list[str] = []
        consumer = connection.Consumer([Queue("letters")], callbacks=[lambda body, _: read.append(body)], no_ack=True)
        consumer.consume()
        _put(connection, "a")
        _drain(connection, read, 1)
        consumer.cancel()
        _put(connection, "b")
        with connection.Consumer([Queue("others")], on_message=read.append):
            _drain(connection, read, 1)

        assert ["a"] == read
        assert {"b"} == _all_of(app)


class TestGivingBack:
    @pytest.mark.parametrize("how", ["requeue", "reject"])
    def test_requeued(self, connection: Any, client: Any, how: str) -> None:
        """A message that is given back comes again, marked so, and once."""
        _put(connection, "a")
        with connection.SimpleQueue("letters") as letters:
            message = letters.get(timeout=10)
            message.requeue() if how == "requeue" else message.reject(requeue=True)
            again = letters.get(timeout=10)

            assert ("a", True) == (again.payload, again.headers.get("redelivered"))
            again.ack()
            assert set() == keys_holding(client, MARK)

    def test_rejected(self, connection: Any, client: Any) -> None:
        """A message that is rejected for good is nowhere."""
        _put(connection, "a")
        with connection.SimpleQueue("letters") as letters:
            letters.get(timeout=10).reject()

        assert set() == keys_holding(client, MARK)

    def test_a_closed_connection_gives_back(self, app: Any) -> None:
        """What a connection still held when it was closed, others get, all of it and once."""
        with app.connection_for_read() as connection:
            _put(connection, "a", "b", "c", "d")
            letters = connection.SimpleQueue("letters")
            letters.get(timeout=10).ack()
            held = [letters.get(timeout=10).payload for _ in range(2)]
            assert ["b", "c"] == held

        assert {"b", "c", "d"} == _all_of(app)
        assert set() == _all_of(app)

    def test_recovered(self, connection: Any, client: Any) -> None:
        """`recover(requeue=True)` gives back all that a consumer holds."""
        _put(connection, "a", "b")
        with connection.SimpleQueue("letters") as letters:
            for _ in range(2):
                letters.get(timeout=10)
            letters.consumer.recover(requeue=True)

            assert {"a", "b"} == {_acknowledged(letters.get(timeout=10)) for _ in range(2)}
        assert set() == keys_holding(client, MARK)


class TestBasicGet:
    def test_with_an_acknowledgement(self, connection: Any, client: Any) -> None:
        """`basic_get` fetches one message, which is on the server until it's acknowledged."""
        _put(connection, "a")
        channel = connection.default_channel
        message = channel.basic_get("letters")

        assert "a" == message.payload
        assert keys_holding(client, MARK)
        channel.basic_ack(message.delivery_tag)
        assert set() == keys_holding(client, MARK)

    def test_without(self, connection: Any, client: Any) -> None:
        """With `no_ack` nothing of it is left."""
        _put(connection, "a")

        assert "a" == connection.default_channel.basic_get("letters", no_ack=True).payload
        assert set() == keys_holding(client, MARK)

    def test_nothing_there(self, connection: Any) -> None:
        """An empty queue gives None."""
        assert connection.default_channel.basic_get("letters") is None


class TestRejectInATask:
    @pytest.fixture
    def runs(self, app: Any) -> list[Any]:
        """Declare a task that rejects itself when it's first run, and give what tells of its runs."""
        runs: list[Any] = []

        @app.task(name="shop.picky", bind=True, shared=False)
        def picky(self: Any, requeue: bool) -> None:
            runs.append(self.request.delivery_info.get("redelivered"))
            if len(runs) == 1:
                raise Reject("not now", requeue=requeue)

        @app.task(name="shop.next", shared=False)
        def following() -> str:
            return "done"

        return runs

    def test_requeued(self, app: Any, client: Any, runs: list[Any]) -> None:
        """`Reject(requeue=True)` brings the task again, marked so, and once."""
        with agent_of(app):
            result = app.send_task("shop.picky", (True,), headers={"mark": MARK})
            result.get(timeout=10)
            until(lambda: not keys_holding(client, MARK))

        assert [True] == runs[1:]

    def test_dropped(self, app: Any, client: Any, runs: list[Any]) -> None:
        """`Reject(requeue=False)` ends the task as failed; its message is a dead letter, and the agent goes on."""
        with agent_of(app):
            result = app.send_task("shop.picky", (False,), headers={"mark": MARK})
            until(lambda: {app.store.keys.dead_letter(result.id)} == keys_holding(client, MARK))

            assert "done" == app.send_task("shop.next").get(timeout=10)
        assert 1 == len(runs)
        assert "FAILURE" == result.state
