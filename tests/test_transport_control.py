"""What steers and watches agents over our transport, on a real server: remote control, events, revokes, rate limits."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from time import monotonic
from typing import Any

import pytest
from celery import chain, chord, group
from celery.exceptions import TaskRevokedError
from redis import Redis

from tests.fleets import agent_of, app_at
from tests.keys import keys_holding
from tests.processes import until

MARK = "mark of a message"
ANSWERED: dict[str, Any] = {"reply": True, "limit": 1, "timeout": 10}


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:
    """Give a client of the test's own."""
    with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def app(redis_url: str) -> Iterator[Any]:
    """Give an app with the tasks below."""
    with app_at(redis_url) as app:
        app.ran = []

        @app.task(name="shop.add", requires={"nlp"}, shared=False)
        def add(x: int, y: int) -> int:
            app.ran.append((x, y))
            return x + y

        @app.task(name="shop.total", shared=False)
        def total(numbers: list[int]) -> int:
            return sum(numbers)

        @app.task(name="shop.paced", rate_limit="10/s", shared=False)
        def paced(number: int) -> None:
            app.ran.append((number, monotonic()))

        yield app


def _inspect(app: Any) -> Any:
    return app.control.inspect(limit=1, timeout=10)


class TestInspect:
    def test_an_idle_agent_answers(self, app: Any) -> None:
        """An agent that waits for work tells who it is, what it knows and serves, and that it has nothing to do."""
        with agent_of(app, "general,nlp"):
            inspect = _inspect(app)

            assert {"agent@test": {"ok": "pong"}} == inspect.ping()
            assert {"agent@test": []} == inspect.active() == inspect.reserved()
            assert {"celery", "shop:nlp"} == {queue["name"] for queue in inspect.active_queues()["agent@test"]}
            assert {"shop.add", "shop.total"} < set(inspect.registered()["agent@test"])

    def test_nobody_there(self, app: Any) -> None:
        """Without an agent there's no answer, and no wait for longer than was asked."""
        assert app.control.inspect(timeout=0.2).ping() is None

    def test_replies_leave_nothing(self, app: Any, client: Any) -> None:
        """Replies are fetched without acknowledgements: none is left on the server."""
        with agent_of(app):
            for _ in range(3):
                _inspect(app).ping()

            assert set() == keys_holding(client, "pong")


class TestConsumers:
    def test_add_and_cancel(self, app: Any) -> None:
        """An idle agent takes a further queue when told, and leaves it when told; what comes then waits."""
        with agent_of(app):
            assert "add consumer extra" in str(app.control.add_consumer("extra", **ANSWERED))
            assert 3 == app.send_task("shop.add", (1, 2), queue="extra").get(timeout=10)

            assert "no longer consuming from extra" in str(app.control.cancel_consumer("extra", **ANSWERED))
            waits = app.send_task("shop.add", (3, 4), queue="extra")
            assert 5 == app.send_task("shop.add", (1, 4), queue="celery").get(timeout=10)
            assert not waits.ready()

            app.control.add_consumer("extra", **ANSWERED)
            assert 7 == waits.get(timeout=10)

    def test_cancelling_the_only_queue(self, app: Any) -> None:
        """An agent without any queue takes nothing, answers, and works again with its queue."""
        with agent_of(app):
            app.control.cancel_consumer("celery", **ANSWERED)
            waits = app.send_task("shop.add", (3, 4), queue="celery")

            assert {"agent@test": []} == _inspect(app).active_queues()
            assert not waits.ready()
            app.control.add_consumer("celery", **ANSWERED)
            assert 7 == waits.get(timeout=10)


class TestRevokes:
    def test_before_it_is_sent(self, app: Any, client: Any) -> None:
        """A task whose id is revoked beforehand ends as revoked, isn't run, and its message goes."""
        with agent_of(app, "nlp"):
            app.control.revoke("revoked early", **ANSWERED)
            result = app.send_task("shop.add", (1, 2), task_id="revoked early", headers={"mark": MARK})

            with pytest.raises(TaskRevokedError):
                result.get(timeout=10)
            until(lambda: not keys_holding(client, MARK))
        assert "REVOKED" == result.state
        assert [] == app.ran

    def test_while_it_waits(self, app: Any, client: Any) -> None:
        """Of tasks that wait in a queue those that are revoked aren't run; the others are."""
        with agent_of(app):
            app.control.cancel_consumer("celery", **ANSWERED)
            results = [app.send_task("shop.add", (n, 0), queue="celery", headers={"mark": MARK}) for n in range(4)]
            app.control.revoke([results[1].id, results[2].id], **ANSWERED)
            app.control.add_consumer("celery", **ANSWERED)

            assert [0, 3] == [results[n].get(timeout=10) for n in (0, 3)]
            until(lambda: not keys_holding(client, MARK))
        assert [(0, 0), (3, 0)] == sorted(app.ran)
        assert ["SUCCESS", "REVOKED", "REVOKED", "SUCCESS"] == [result.state for result in results]


class TestRateLimits:
    def test_declared(self, app: Any, client: Any) -> None:
        """Tasks with a rate limit run at its pace, each once, in their order, and none is left."""
        with agent_of(app):
            for number in range(8):
                app.send_task("shop.paced", (number,), headers={"mark": MARK})
            until(lambda: len(app.ran) == 8)
            until(lambda: not keys_holding(client, MARK))

        numbers, times = zip(*app.ran, strict=True)
        assert tuple(range(8)) == numbers
        assert 0.6 < times[-1] - times[0] < 5.0  # seven gaps of 0.1 s; a clock's tick may shorten each

    def test_set_while_running(self, app: Any) -> None:
        """A rate limit that is set by remote control holds from then on."""
        with agent_of(app, "general,nlp"):
            assert "new rate limit set" in str(app.control.rate_limit("shop.paced", "5/s", **ANSWERED))
            (known,) = _inspect(app).registered("rate_limit").values()
            for number in range(3):
                app.send_task("shop.paced", (number,))
            until(lambda: len(app.ran) == 3)

        assert "shop.paced [rate_limit=5/s]" in known
        assert 0.35 < app.ran[-1][1] - app.ran[0][1]  # two gaps of 0.2 s

    def test_others_are_not_held_up(self, app: Any) -> None:
        """Tasks without a limit don't wait for those that have one."""
        with agent_of(app, "general,nlp"):
            app.control.rate_limit("shop.paced", "1/h", **ANSWERED)
            for number in range(2):
                app.send_task("shop.paced", (number,))

            assert 3 == app.send_task("shop.add", (1, 2)).get(timeout=10)
        assert 2 == len(app.ran)


@contextmanager
def _listening(app: Any) -> Iterator[list[dict[str, Any]]]:
    """Give a list into which a receiver of events writes what agents tell."""
    heard: list[dict[str, Any]] = []
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": heard.append})
        thread = Thread(target=receiver.capture, kwargs={"limit": None, "timeout": None, "wakeup": False})
        thread.start()
        try:
            until(lambda: heard or app.control.broadcast("heartbeat"))  # until its subscription holds
            yield heard
        finally:
            receiver.should_stop = True
            app.control.broadcast("heartbeat")
            thread.join(10)


class TestEvents:
    def test_of_a_task(self, app: Any) -> None:
        """A receiver hears that a task was received, started and has succeeded, in this order."""
        with agent_of(app, "nlp", task_events=True), _listening(app) as heard:
            result = app.send_task("shop.add", (1, 2))
            until(lambda: any(event["type"] == "task-succeeded" for event in heard))

        events = [event for event in heard if event.get("uuid") == result.id]
        assert ["task-received", "task-started", "task-succeeded"] == [event["type"] for event in events]
        assert {"agent@test"} == {event["hostname"] for event in events}

    def test_switched_on_while_running(self, app: Any) -> None:
        """An agent without `-E` tells nothing of its tasks until it's asked to."""
        with agent_of(app, "nlp", without_heartbeat=False), _listening(app) as heard:
            app.send_task("shop.add", (1, 2)).get(timeout=10)
            assert "task events enabled" in str(app.control.enable_events(**ANSWERED))
            results = [app.send_task("shop.add", (number, 0)) for number in range(20)]
            until(lambda: 20 <= sum(event["type"] == "task-succeeded" for event in heard))

        assert {result.id for result in results} == {event["uuid"] for event in heard if "uuid" in event}


class TestCanvas:
    def test_chains_groups_and_chords(self, app: Any) -> None:
        """What follows is sent by the agent, and found by it at once, whatever queue it goes to."""
        add, total = (app.tasks[name].s for name in ("shop.add", "shop.total"))
        with agent_of(app, "general,nlp"):
            results = [
                chain(add(1, 2), add(3), add(4)).apply_async(),
                group(add(number, 1) for number in range(10)).apply_async(),
                chord([add(number, 1) for number in range(10)], total()).apply_async(),
                chain(group(add(number, 1) for number in range(3)), total(), add(100)).apply_async(),
            ]
            outcomes = [result.get(timeout=20) for result in results]

        assert [10, list(range(1, 11)), 55, 106] == outcomes
