"""Where a message is, found by its id alone, in pieces that hold the server for a moment each."""

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from orchestra.facts import Buried, Delayed, Queued
from orchestra.locating import Locator
from orchestra.store import Argument, Store
from tests.fleets import app_at, commands_at
from tests.readers import reader_at
from tests.stores import publish, store_at

STEPS = ("", "\x06\x163", "\x06\x166", "\x06\x169")
QUEUE = "shop:nlp"


@pytest.fixture
def store(redis_url: str) -> Iterator[Store]:
    """Give the shop's store over an empty Redis."""
    with store_at(redis_url) as store:
        yield store


@pytest.fixture
def locator(store: Store) -> Locator:
    """Give what looks for messages there."""
    return Locator(store, steps=STEPS)


@pytest.fixture
def app(redis_url: str) -> Iterator[Any]:
    """Give an app with one task."""
    with app_at(redis_url) as app:

        @app.task(name="shop.index", requires={"nlp"}, shared=False)
        def index(text: str = "") -> None: ...

        yield app


def put(store: Store, *task_ids: str, step: int = 0, size: int = 10) -> None:
    """Publish messages as a producer does, one after the other."""
    for task_id in task_ids:
        message = json.dumps({"body": "x" * size, "headers": {"task": "t", "id": task_id, "root_id": "0"}})
        publish(store, task_id, message=message, queue=QUEUE)
        if step:
            store.command("RPOPLPUSH", QUEUE, f"{QUEUE}{STEPS[step]}")


class TestQueued:
    def test_the_place(self, store: Store, locator: Locator) -> None:
        """What was sent before and what is more urgent is ahead of it."""
        put(store, "1", "2", "3", step=2)
        put(store, "5", step=3)
        put(store, "4")

        found = [locator.queued(task_id, QUEUE) for task_id in "12345"]

        assert [Queued(QUEUE, ahead) for ahead in (1, 2, 3, 0, 4)] == found
        assert locator.queued("6", QUEUE) is None
        assert locator.queued("1", "shop:gpu") is None

    def test_another_id_in_it(self, store: Store, locator: Locator) -> None:
        """Neither a message that names the id as its parent's or root's is it, nor one with a longer id."""
        put(store, "11", "0")

        assert locator.queued("1", QUEUE) is None
        assert Queued(QUEUE, 1) == locator.queued("0", QUEUE)

    @pytest.mark.parametrize("task_id", ['a"b', "a\\b", "ä:%1", "[x]", "-- '1'"])
    def test_odd_ids(self, app: Any, task_id: str) -> None:
        """An id may hold whatever JSON escapes and Lua's patterns know."""
        app.tasks["shop.index"].apply_async(task_id=task_id)

        assert Queued(QUEUE, 0) == Locator(app.store, steps=STEPS).queued(task_id, QUEUE)

    def test_compact_producers(self, store: Store, locator: Locator) -> None:
        """A producer may write its JSON without spaces."""
        store.command("LPUSH", QUEUE, '{"headers":{"id":"1","task":"t"}}')

        assert Queued(QUEUE, 0) == locator.queued("1", QUEUE)

    def test_expiry(self, app: Any) -> None:
        """Until when it's wanted stands in the message."""
        until = datetime(2030, 1, 2, tzinfo=UTC)
        sent = app.tasks["shop.index"].apply_async(expires=until)

        assert Queued(QUEUE, 0, until) == Locator(app.store, steps=STEPS).queued(sent.id, QUEUE)

    @pytest.mark.parametrize("size", [10, 5_000, 600_000])
    def test_in_pieces(self, store: Store, locator: Locator, redis_url: str, size: int) -> None:
        """However large messages are, one call looks into a megabyte or so, and each message is found."""
        count = max(8, min(2_000, 3_000_000 // size))
        with_pipeline = [
            ("LPUSH", QUEUE, json.dumps({"body": "x" * size, "headers": {"id": str(number)}}))
            for number in range(count)
        ]
        store.pipeline(with_pipeline)

        for number in (0, 1, count // 3, count // 2, count - 2, count - 1):
            with commands_at(redis_url) as commands:
                assert Queued(QUEUE, number) == locator.queued(str(number), QUEUE)
            calls = [command for command in commands if command.startswith("EVAL")]
            assert len(calls) <= 2 + 2 * count * size / 250_000

    def test_by_the_time_of_submission(self, app: Any, redis_url: str) -> None:
        """Most messages are in the order of their submission, and found with little reading; all others too."""
        task, locator = app.tasks["shop.index"], Locator(app.store, steps=STEPS)
        sent = [task.apply_async(("x" * 20_000,)).id for _ in range(200)]
        records = app.state.read_many(sent)
        app.store.command("RPOPLPUSH", f"{QUEUE}{STEPS[2]}", f"{QUEUE}{STEPS[2]}")  # the oldest is the newest now
        app.store.command("DEL", app.store.keys.task(sent[20]))

        for number in (1, 50, 100, 150, 199):
            with commands_at(redis_url) as commands:
                assert Queued(QUEUE, number - 1) == locator.queued(sent[number], QUEUE, records[number].submitted_at)
            assert sum(command.startswith("EVAL") for command in commands) <= 1 + 2
            assert len(commands) <= 4 + 2 + 1 + 2 * 8
        assert Queued(QUEUE, 199) == locator.queued(sent[0], QUEUE, records[0].submitted_at)
        assert Queued(QUEUE, 19) == locator.queued(sent[20], QUEUE, records[20].submitted_at)

    def test_a_key_prefix(self, store: Store) -> None:
        """The names of lists may have a prefix, by an option of kombu's."""
        store.command("LPUSH", f"pre-{QUEUE}", '{"headers":{"id":"1"}}')

        assert Queued(QUEUE, 0) == Locator(store, steps=STEPS, prefix_queues="pre-").queued("1", QUEUE)

    def test_what_moves(self, store: Store) -> None:
        """While others are taken and pushed in between the calls, nothing that stays is passed over."""
        put(store, *(str(number) for number in range(40)), size=100_000)

        found = Locator(Busy(store._connect, store.keys, location=""), steps=STEPS).queued("35", QUEUE)

        assert found is not None
        assert found.ahead < 35


class Busy(Store):
    """A server at which others work: between two calls a message is taken and another one comes."""

    def run(self, script: str, keys: Sequence[str], args: Sequence[Argument] = ()) -> Any:
        """Run a script, and then what the others do."""
        reply = super().run(script, keys, args)
        if script == "locate":
            self.command("RPOP", QUEUE)
            put(self, "new", size=100_000)
        return reply


class TestElsewhere:
    def test_leased(self, app: Any) -> None:
        """Who fetched it, and whether it has started or is kept for its rate limit."""
        locator = Locator(app.store, steps=STEPS)
        sent = [app.tasks["shop.index"].delay().id for _ in range(3)]
        with reader_at(app, slots=3) as reader:
            reader.consume(QUEUE)
            reader.read(3)
            holder = reader.holder.name
            for kind, message in zip(("keep", "claim"), reader.messages[1:], strict=False):
                message.channel.qos._say(kind, message.delivery_tag)
            reader.channel.flush_news()
            found = [locator.leased(task_id, QUEUE) for task_id in sent]
            held = [locator.held(task_id, holder) for task_id in sent]

        assert [(holder, False, False), (holder, False, True), (holder, True, False)] == [
            (one.holder, one.started, one.kept) for one in found if one is not None
        ]
        assert [True, False, False] == [one is not None and one.fetched_at is not None for one in found]
        assert found == held
        assert locator.leased("x", QUEUE) is None
        assert locator.held("x", holder) is None

    def test_delayed(self, app: Any) -> None:
        """A message that was put by is found with its time."""
        locator = Locator(app.store, steps=STEPS)
        until = datetime(2040, 1, 2, 3, 4, 5, tzinfo=UTC)
        sent = [app.tasks["shop.index"].apply_async(eta=until).id for _ in range(20)]

        assert [Delayed(until)] * 20 == [locator.delayed(task_id, QUEUE) for task_id in sent]
        assert locator.delayed("x", QUEUE) is None
        assert locator.queued(sent[0], QUEUE) is None

    def test_buried(self, app: Any) -> None:
        """A dead letter is found with its reason."""
        app.tasks["shop.index"].apply_async(task_id="1")
        app.registry.bury("nlp", QUEUE, steps=STEPS, reason='un"registered')

        assert Buried('un"registered') == Locator(app.store, steps=STEPS).buried("1")
        assert Locator(app.store, steps=STEPS).buried("x") is None
