"""What projects know of Celery's queues on Redis, on a real server: priorities, prefixes, purging, counting, expiry."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from celery.exceptions import TimeoutError as CeleryTimeoutError
from kombu import Exchange, Queue
from redis import Redis

from orchestra.exceptions import PermanentError
from orchestra.orchestra import Orchestra
from tests.command_line import invoke, shop_at
from tests.fleets import agent_of, app_at, stock_at
from tests.keys import keys_holding, keys_of, lengths_of_lists
from tests.processes import until


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:
    """Give a client of the test's own."""
    with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def app(redis_url: str) -> Iterator[Any]:
    """Give an app with the tasks below."""
    with noting_app(redis_url) as app:
        yield app


@contextmanager
def noting_app(url: str, **options: Any) -> Iterator[Any]:
    """Give an app whose task notes its words in `app.noted`; `options` are the broker's."""
    with app_at(url, changes={"broker_transport_options": options}) as app:
        _declare(app)
        yield app


def _declare(app: Any) -> None:
    app.noted = []

    @app.task(name="shop.note", shared=False)
    def note(word: str) -> str:
        app.noted.append(word)
        return word

    @app.task(name="shop.spread", shared=False)
    def spread(word: str, urgent: str) -> None:
        app.noted.append(word)
        note.apply_async((urgent,), priority=0)

    @app.task(name="shop.fail", shared=False)
    def fail() -> None:
        raise PermanentError("no")

    @app.task(name="shop.index", requires={"nlp"}, shared=False)
    def index(word: str) -> None:
        app.noted.append(word)


def _send(app: Any, *words: str, **options: Any) -> None:
    for word in words:
        app.send_task("shop.note", (word,), **options)


def _has_noted(app: Any, count: int) -> bool:
    return len(app.noted) == count


def _waiting(app: Any, queue: str) -> int:
    """Count what waits in a queue, as monitoring scripts do."""
    with app.connection_for_read() as connection:
        return int(connection.default_channel.queue_declare(queue, passive=True).message_count)


def _size(app: Any, queue: str) -> int:
    """Count it where a passive declaration finds no queue: kombu's looks for one without the key prefix."""
    with app.connection_for_read() as connection:
        return int(connection.default_channel._size(queue))


class TestPriorities:
    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({}, ["0a", "1a", "0b", "2a", "4a", "3a", "5a", "8a", "6a", "9a", "9b"]),
            (
                {"priority_steps": list(range(10)), "sep": ":", "queue_order_strategy": "priority"},
                ["0a", "0b", "1a", "2a", "3a", "4a", "5a", "6a", "8a", "9a", "9b"],
            ),
        ],
    )
    def test_order(self, redis_url: str, options: dict[str, Any], expected: list[str]) -> None:
        """Step 0 comes first, then 3, 6 and 9, or the project's own steps; within one, the first sent is first."""
        with noting_app(redis_url, **options) as app:
            for word in ("9a", "4a", "0a", "8a", "3a", "1a", "9b", "6a", "0b", "2a", "5a"):
                _send(app, word, priority=int(word[0]))

            with agent_of(app):
                until(lambda: len(app.noted) == len(expected))

        assert expected == app.noted

    def test_steps_come_before_queues(self, app: Any) -> None:
        """What is urgent in any of an agent's queues comes before what is less urgent in all of them."""
        for queue in ("first", "second"):
            for priority in (9, 3, 0):
                _send(app, f"{priority} {queue}", queue=queue, priority=priority)

        with agent_of(app, queues=["first", "second"]):
            until(lambda: len(app.noted) == 6)

        assert ["0", "0", "3", "3", "9", "9"] == [word[0] for word in app.noted]

    def test_an_urgent_latecomer_overtakes(self, app: Any) -> None:
        """What is sent while an agent works is run before all that waits less urgently."""
        app.send_task("shop.spread", ("first", "urgent"), priority=3)
        _send(app, "second", "third", priority=3)

        with agent_of(app, prefetch_multiplier=1):
            until(lambda: len(app.noted) == 4)

        assert ["first", "urgent", "second", "third"] == app.noted


class TestKeyPrefix:
    @pytest.fixture
    def pair(self, redis_url: str) -> Iterator[tuple[Any, Any]]:
        """Give two apps of one name on one server, behind two prefixes, results included."""
        with ExitStack() as stack:
            yield tuple(stack.enter_context(_prefixed(redis_url, prefix)) for prefix in ("one:", "two:"))

    def test_every_key_is_behind_it(self, pair: tuple[Any, Any], client: Any) -> None:
        """Publishing, waiting at each priority, running, failing, replying and a letter in hand touch no other key."""
        app, _ = pair
        app.amqp.queues.add(Queue("brief", expires=60))
        with agent_of(app), app.connection_for_read() as connection, connection.SimpleQueue("letters") as letters:
            assert "a" == app.send_task("shop.note", ("a",)).get(timeout=10)
            with pytest.raises(PermanentError):
                app.send_task("shop.fail").get(timeout=10)
            assert [{"agent@test": {"ok": "pong"}}] == app.control.broadcast("ping", reply=True, limit=1, timeout=10)
            letters.put("hello")
            letter = letters.get(timeout=10)
            for priority in (0, 3, 6, 9):
                _send(app, "b", queue="brief", priority=priority)

            assert {"one"} == {key.partition(":")[0] for key in keys_of(client)}
            letter.ack()

    def test_two_prefixes_do_not_see_each_other(self, pair: tuple[Any, Any]) -> None:
        """An agent behind one prefix gets, answers, counts and lists nothing of the other."""
        app, other = pair
        with agent_of(app):
            foreign = other.send_task("shop.note", ("theirs",))
            _send(app, "ours")
            until(lambda: app.noted)

            assert [{"agent@test": {"ok": "pong"}}] == app.control.broadcast("ping", reply=True, limit=1, timeout=10)
            assert [] == other.control.broadcast("ping", reply=True, timeout=0.5)
            assert [] == Orchestra(other).agents()
            with pytest.raises(CeleryTimeoutError):
                foreign.get(timeout=0.5)
        assert (["ours"], []) == (app.noted, other.noted)
        assert 1 == _size(other, "celery")

    def test_purge_stays_behind_it(self, pair: tuple[Any, Any]) -> None:
        """`purge` counts and removes what is behind its own prefix alone."""
        app, other = pair
        for priority in (0, 3, 6, 9):
            _send(other, "theirs", priority=priority)
        _send(app, "ours")

        assert 1 == app.control.purge()
        assert 0 == app.control.purge()
        assert 4 == _size(other, "celery")
        assert 4 == other.control.purge()


@contextmanager
def _prefixed(url: str, prefix: str) -> Iterator[Any]:
    options = {"global_keyprefix": prefix}
    changes = {"broker_transport_options": options, "result_backend_transport_options": options}
    with app_at(url, changes=changes) as app:
        _declare(app)
        yield app


class TestPurge:
    def test_every_priority(self, app: Any, client: Any) -> None:
        """`app.control.purge()` empties what the app consumes from, tells how much that was, and leaves nothing."""
        for priority in (0, 3, 6, 9):
            _send(app, "a", priority=priority, headers={"mark": "the message"})

        assert 4 == app.control.purge()
        assert 0 == app.control.purge()
        assert set() == keys_holding(client, "the message")

    def test_one_queue(self, app: Any) -> None:
        """`queue_purge`, which `celery purge` calls for each queue, empties one, at every priority."""
        for priority in (0, 9):
            _send(app, "a", priority=priority)
        app.send_task("shop.index", ("b",))

        with app.connection_for_write() as connection:
            assert 2 == connection.default_channel.queue_purge("celery")

        assert 1 == _waiting(app, "shop:nlp")

    def test_what_is_in_hand_stays(self, app: Any) -> None:
        """A message that somebody has fetched isn't purged: it can be given back."""
        with app.connection_for_read() as connection, connection.SimpleQueue("celery") as letters:
            _send(app, "a", "b", "c")
            held = letters.get(timeout=10)

            assert 2 == letters.clear()
            held.requeue()

            assert held.headers["id"] == letters.get(timeout=10).headers["id"]

    def test_what_is_sent_afterwards_runs(self, app: Any) -> None:
        """An agent that was there, idle, when its queue was purged takes what comes next."""
        with agent_of(app):
            _send(app, "before")
            until(lambda: app.noted == ["before"])
            app.control.purge()
            _send(app, "after")

            until(lambda: app.noted == ["before", "after"])

    def test_a_deleted_queue(self, app: Any, client: Any) -> None:
        """A queue that is deleted goes with what waits in it."""
        app.amqp.queues.add(Queue("old", Exchange("old"), routing_key="old"))
        _send(app, "a", "b", queue="old", headers={"mark": "the message"})
        assert keys_holding(client, "the message")

        with app.connection_for_write() as connection:
            old = app.amqp.queues["old"](connection.default_channel)
            old.declare()
            old.delete()

        assert set() == keys_holding(client, "the message")


class TestCounts:
    def test_every_priority_counts_and_what_is_in_hand_does_not(self, app: Any) -> None:
        """`queue_declare(passive=True)`, a queue's size, and ours all count what waits, and that alone."""
        for priority in (0, 3, 6, 9, 9):
            _send(app, "a", priority=priority)
        with app.connection_for_read() as connection, connection.SimpleQueue("celery") as letters:
            held = letters.get(timeout=10)

            assert 4 == _waiting(app, "celery")
            assert 4 == letters.qsize()
            assert {"celery": 4} == {queue.name: queue.depth for queue in Orchestra(app).queues()}
            held.ack()

    def test_an_unknown_queue(self, app: Any) -> None:
        """Asking for a queue in which nothing ever waited raises kombu's error."""
        with app.connection_for_read() as connection, pytest.raises(connection.channel_errors, match="NOT_FOUND"):
            connection.default_channel.queue_declare("nothing", passive=True)

    def test_the_command(self, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """`orchestra queues` shows how many tasks wait in each queue, at all priorities together."""
        with shop_at(redis_url, tmp_path, monkeypatch) as shop:
            for priority in (0, 3, 6, 9):
                _send(shop.app, "a", priority=priority)
            shop.app.send_task("shop.index", ("b",))

            shown = json.loads(invoke("queues", "--json").output)

        assert {"celery": 4, "shop:nlp": 1} == {queue["name"]: queue["depth"] for queue in shown}


class TestExpiringQueues:
    def test_delivers(self, app: Any, client: Any) -> None:
        """Every list of a queue with `x-expires` has its time to live, and an agent gets what waits in it."""
        app.amqp.queues.add(Queue("brief", expires=60))
        for priority in (9, 0):
            _send(app, f"{priority}", queue="brief", priority=priority, headers={"mark": "the message"})

        lives = [client.pttl(key) for key in keys_holding(client, "the message")]
        with agent_of(app, queues=["brief"]):
            until(lambda: app.noted == ["0", "9"])

        assert 2 == len(lives)
        assert all(0 < life <= 60_000 for life in lives)

    def test_expires(self, app: Any, client: Any) -> None:
        """A queue that nobody uses goes at its time, with what waits in it."""
        app.amqp.queues.add(Queue("brief", expires=0.2))
        _send(app, "a", queue="brief", headers={"mark": "the message"})

        assert keys_holding(client, "the message")
        until(lambda: not keys_holding(client, "the message"), seconds=5)


class TestStockNeighbours:
    @pytest.fixture
    def stock(self, redis_url: str) -> Iterator[Any]:
        """Give a plain Celery app on the same server."""
        with stock_at(redis_url) as stock:
            yield stock

    def test_a_stock_producers_task_is_found_at_once(self, app: Any, stock: Any) -> None:
        """An idle agent starts what a stock producer pushes to its queues within a second, time after time."""
        took = []
        with agent_of(app, "general,nlp"):
            for number in range(4):
                sent = monotonic()
                stock.send_task("shop.index", (f"{number}",), queue="shop:nlp" if number % 2 else "celery")
                until(partial(_has_noted, app, number + 1))
                took.append(monotonic() - sent)

        assert ["0", "1", "2", "3"] == app.noted
        assert 1.0 > max(took)

    def test_a_stock_consumer_gets_our_tasks(self, app: Any, stock: Any, client: Any) -> None:
        """A stock consumer reads what our app sends, in order, and nothing of it piles up on the server."""
        words = [f"{number}" for number in range(40)]
        _send(app, *words, headers={"mark": "the message"})

        read = []
        with stock.connection_for_read() as connection, connection.SimpleQueue("celery") as letters:
            for _ in words:
                message = letters.get(timeout=10)
                read.append((message.headers["task"], message.payload[0][0]))
                message.ack()

        assert [("shop.note", word) for word in words] == read
        assert set() == keys_holding(client, "the message")
        assert max(lengths_of_lists(client).values(), default=0) < 5

    def test_counting_and_purging_are_mutual(self, app: Any, stock: Any) -> None:
        """A stock app counts and purges what ours sent, and ours what a stock app sent."""
        _send(app, "a", "b")
        stock.send_task("shop.note", ("c",))

        assert 3 == _waiting(stock, "celery") == _waiting(app, "celery")
        assert 3 == stock.control.purge()
        stock.send_task("shop.note", ("d",))
        assert 1 == app.control.purge()

    def test_remote_control_is_mutual(self, app: Any, stock: Any) -> None:
        """A stock app gets answers from our agents, as Flower and monitoring scripts do."""
        with agent_of(app):
            answer = stock.control.broadcast("ping", reply=True, limit=1, timeout=10)

        assert [{"agent@test": {"ok": "pong"}}] == answer
