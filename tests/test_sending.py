"""What a submission comes to on its way: refused by a full queue, while what is in the fleet already never is."""

from collections.abc import Iterator
from typing import Any

import pytest
from celery import chain
from kombu.exceptions import OperationalError
from redis import Redis

from orchestra.broker import QueueFullError, SubmissionError
from orchestra.exceptions import ConfigurationError
from orchestra.orchestra import Orchestra
from orchestra.registry import CatalogueEntry
from tests.fleets import agent_of, app_at, commands_at, quick

STEPS = ("", "\x06\x163", "\x06\x166", "\x06\x169")


@pytest.fixture
def app(redis_url: str) -> Iterator[Any]:
    """Give an app with a task whose queue takes three."""
    with app_at(redis_url) as app:
        _declare(app)
        yield app


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:  # Redis, whose types have every answer awaitable as well
    """Give a client of the test's own."""
    with Redis.from_url(redis_url) as client:
        yield client


def _declare(app: Any) -> Any:
    @app.task(name="shop.scan", requires={"nlp"}, max_queue_depth=3, shared=False)
    def scan(page: int = 0) -> int:
        return page

    @app.task(name="shop.other", requires={"nlp"}, shared=False)
    def other(page: int = 0) -> int:
        return page

    return scan


def _nothing() -> None:
    """Do nothing."""


def _depth(client: Any, queue: str = "shop:nlp") -> int:
    return sum(client.llen(f"{queue}{step}") for step in STEPS)


class TestFullQueue:
    def test_a_submission_is_refused(self, app: Any, client: Any) -> None:
        """The error says which queue, how deep it is, what is allowed, and what to do; nothing is written."""
        scan = app.tasks["shop.scan"]
        for _ in range(3):
            scan.delay()
        keys = client.dbsize()

        with pytest.raises(
            QueueFullError, match=r"3 tasks wait in the queue shop:nlp, .* allows 3\. Submit"
        ) as refused:
            scan.apply_async(task_id="four")

        error = refused.value
        assert ("shop:nlp", 3, 3, "four", False) == (
            error.queue,
            error.depth,
            error.limit,
            error.task_id,
            error.may_be_enqueued,
        )
        assert isinstance(error, (SubmissionError, OperationalError))
        assert (3, keys) == (_depth(client), client.dbsize())
        assert app.state.read("four") is None

    def test_all_urgencies_count(self, app: Any) -> None:
        """A queue is as deep as its lists together."""
        scan = app.tasks["shop.scan"]
        for urgency in ("critical", "high", "low"):
            scan.apply_async(urgency=urgency)

        with pytest.raises(QueueFullError):
            scan.delay()

    def test_each_task_has_its_bound(self, app: Any) -> None:
        """A task without one may still be submitted to the same queue, and counts for those with one."""
        for _ in range(4):
            app.tasks["shop.other"].delay()

        with pytest.raises(QueueFullError):
            app.tasks["shop.scan"].delay()

    def test_it_costs_no_round_trip(self, app: Any, redis_url: str) -> None:
        """The queue is looked at in the step that pushes, refused or not."""
        scan = app.tasks["shop.scan"]
        scan.delay()

        with commands_at(redis_url) as commands:
            scan.delay()
            scan.delay()
            with pytest.raises(QueueFullError):
                scan.delay()

        assert ["EVALSHA"] * 3 == [command.split()[0] for command in commands]

    def test_the_setting_bounds_every_queue(self, redis_url: str) -> None:
        """Tasks without a bound of their own have the setting's, and 0 of their own is any number."""
        with app_at(redis_url, settings=quick(max_queue_depth=1)) as app:
            plain = app.task(name="shop.plain", shared=False)(_nothing)
            free = app.task(name="shop.free", max_queue_depth=0, shared=False)(_nothing)
            plain.delay()

            with pytest.raises(QueueFullError, match="in the queue celery"):
                plain.delay()
            free.delay()
            with pytest.raises(QueueFullError):
                app.send_task("shop.unknown")
            plain.apply_async(queue="mine")
            plain.apply_async(queue="mine")
            app.send_task("celery.backend_cleanup")

    def test_the_catalogues_bound(self, app: Any) -> None:
        """A sender without the task's code has the bound that agents published."""
        entry = CatalogueEntry(requires="gpu", max_queue_depth=0)
        app.registry.register(
            "a@h", "1", about={}, tasks={"shop.far": entry, "shop.near": CatalogueEntry(max_queue_depth=1)}, queues=[]
        )

        assert (0, 1) == (app.declared("shop.far").max_queue_depth, app.declared("shop.near").max_queue_depth)

    def test_a_delayed_one(self, app: Any, client: Any) -> None:
        """It doesn't count until it's due, and isn't let in where the queue is full."""
        scan = app.tasks["shop.scan"]
        for _ in range(5):
            scan.apply_async(countdown=60)
        for _ in range(3):
            scan.delay()

        with pytest.raises(QueueFullError):
            scan.apply_async(countdown=60)
        assert 5 == client.zcard("orchestra:{shop}:delayed:shop:nlp")

    def test_what_stands_already_is_given(self, app: Any) -> None:
        """A repetition by its key submits nothing, so that it needs no room."""
        orchestra = Orchestra(app)
        first = orchestra.submit("shop.scan", {}, idempotency_key="one")
        for _ in range(2):
            orchestra.submit("shop.scan", {})

        assert first == orchestra.submit("shop.scan", {}, idempotency_key="one")
        with pytest.raises(QueueFullError):
            orchestra.submit("shop.scan", {}, idempotency_key="two")

    def test_retries_and_followers_are_let_in(self, redis_url: str) -> None:
        """What is in the fleet stays in it: nothing is lost to a full queue."""
        with app_at(redis_url) as app:

            @app.task(name="shop.flaky", bind=True, max_queue_depth=1, max_attempts=2, requires={"nlp"}, shared=False)
            def flaky(self: Any) -> str:
                if not self.request.retries:
                    crowd.delay()
                    raise self.retry(countdown=0)
                return "flaky"

            @app.task(name="shop.last", max_queue_depth=1, requires={"nlp"}, shared=False)
            def last(word: str) -> str:
                return f"{word} last"

            crowd = app.task(name="shop.crowd", requires={"jam"}, shared=False)(_nothing)
            fill = app.task(name="shop.fill", requires={"nlp"}, shared=False)(_nothing)
            result = chain(flaky.si(), last.s()).apply_async()
            for _ in range(3):
                fill.delay()

            with agent_of(app, "nlp"):
                assert "flaky last" == result.get(timeout=20)

    @pytest.mark.parametrize("wrong", [-1, 1.5, True, "9"])
    def test_a_wrong_bound(self, app: Any, wrong: Any) -> None:
        """Refused where it's declared."""
        with pytest.raises(ConfigurationError, match="no max_queue_depth"):
            app.task(max_queue_depth=wrong, shared=False)(_nothing)


class TestFullQueueOfABatch:
    def test_as_many_as_there_is_room_for(self, app: Any, client: Any) -> None:
        """The error has the places of those that weren't submitted; the others were, in their order."""
        app.tasks["shop.scan"].delay()
        payloads = [{"page": page} for page in range(5)]

        with pytest.raises(QueueFullError, match="as a whole") as refused:
            Orchestra(app).submit_many("shop.scan", payloads)

        assert ((2, 3, 4), 3) == (refused.value.refused, _depth(client))

    def test_over_several_round_trips(self, redis_url: str, client: Any) -> None:
        """Nothing more is sent once a part of it was refused."""
        with app_at(redis_url, settings=quick(max_queue_depth=700)) as app:
            app.task(name="shop.plain", shared=False)(_nothing)

            with pytest.raises(QueueFullError) as refused:
                Orchestra(app).submit_many("shop.plain", [{}] * 1_600)

            assert (tuple(range(700, 1_600)), 700) == (refused.value.refused, _depth(client, "celery"))

    def test_with_keys(self, app: Any, client: Any) -> None:
        """Those that stand already need no room."""
        orchestra = Orchestra(app)
        (standing,) = orchestra.submit_many("shop.scan", [{}], idempotency_keys=["a"])
        orchestra.submit("shop.scan", {})

        with pytest.raises(QueueFullError) as refused:
            orchestra.submit_many("shop.scan", [{}] * 4, idempotency_keys=["b", "c", "a", "d"])

        assert ((1, 3), 3) == (refused.value.refused, _depth(client))
        assert standing == orchestra.submit("shop.scan", {}, idempotency_key="a")
