"""The result backend: results are Celery's, and whatever end a task comes to is recorded."""

from collections.abc import Iterator
from threading import Event
from typing import Any

import pytest
from celery import chord, group, states
from celery.app.task import Context
from celery.backends.cache import CacheBackend
from celery.backends.redis import RedisBackend, SentinelBackend
from celery.exceptions import ChordError, TaskRevokedError
from redis import Redis

from orchestra.backend import recording
from orchestra.types import TaskState
from tests.fleets import agent_of, app_at, commands_at
from tests.processes import until


@pytest.fixture
def app(redis_url: str) -> Iterator[Any]:
    """Give an app whose results go to the broker's database."""
    with app_at(redis_url) as app:
        _declare(app)
        yield app


@pytest.fixture
def client(redis_url: str) -> Iterator[Redis]:
    """Give a client of the test's own."""
    with Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


def _declare(app: Any) -> None:
    @app.task(name="shop.half", shared=False)
    def half(number: int) -> int:
        if number % 2:
            raise ValueError("odd")
        return number // 2

    @app.task(name="shop.total", shared=False)
    def total(numbers: list[int]) -> int:
        return sum(numbers)

    @app.task(name="shop.steps", bind=True, shared=False)
    def steps(self: Any) -> int:
        self.update_state(state="PROGRESS", meta={"done": 1})
        return 2

    @app.task(name="shop.unfit", shared=False)
    def unfit() -> object:
        return object()


def _both_ends(app: Any) -> None:
    """Run a task that succeeds and one that fails, and look at results and records."""
    with agent_of(app):
        good, bad = app.tasks["shop.half"].delay(4), app.tasks["shop.half"].delay(3)
        assert 2 == good.get(timeout=10)
        with pytest.raises(ValueError, match="odd"):
            bad.get(timeout=10)
        # where a result is stored by itself, its record comes a moment later
        until(lambda: app.state.read(good.id).state.finished and app.state.read(bad.id).state.finished, seconds=10)
    assert TaskState.SUCCEEDED is app.state.read(good.id).state
    record = app.state.read(bad.id)
    assert (TaskState.FAILED, "ValueError: odd") == (record.state, record.error)
    assert record.finished_at is not None


class TestStores:
    def test_in_the_brokers_database(self, app: Any) -> None:
        """Results go to the broker's Redis by default, with the record in the same script."""
        assert app.backend.records_ride

        _both_ends(app)

    @pytest.mark.filterwarnings("ignore:Call to deprecated setex")  # Celery's own
    def test_in_another_database(self, redis_url: str) -> None:
        """In another database of the same server a result and its record are stored one after the other."""
        with app_at(redis_url, backend=f"{redis_url.removesuffix('/0')}/1") as app:
            _declare(app)
            assert not app.backend.records_ride

            _both_ends(app)
            with Redis.from_url(f"{redis_url.removesuffix('/0')}/1", decode_responses=True) as results:
                keys: Any = results.keys("*")
                assert 2 == len([key for key in keys if key.startswith("celery-task-meta-")]) == len(keys)

    def test_in_memory(self, redis_url: str) -> None:
        """Any of Celery's backends will do; the record is written beside it."""
        with app_at(redis_url, backend="cache+memory://") as app:
            _declare(app)

            _both_ends(app)

    def test_nowhere(self, redis_url: str) -> None:
        """Without results there still is a record."""
        with app_at(redis_url, backend="disabled://") as app:
            _declare(app)
            with agent_of(app):
                good, bad = app.tasks["shop.half"].delay(4), app.tasks["shop.half"].delay(3)
                until(lambda: app.state.read(bad.id).state is TaskState.FAILED, seconds=10)
        assert TaskState.SUCCEEDED is app.state.read(good.id).state

    @pytest.mark.filterwarnings("ignore:Call to deprecated setex")  # Celery's own
    def test_compressed(self, redis_url: str) -> None:
        """With `result_compression`, which our script doesn't do, Celery stores the result."""
        with app_at(redis_url, changes={"result_compression": "gzip"}) as app:
            _declare(app)
            assert not app.backend.records_ride

            _both_ends(app)

    def test_records_that_cannot_be_written(self, caplog: pytest.LogCaptureFixture) -> None:
        """A result that is stored stays stored; the log says that its record isn't."""
        with app_at("redis://127.0.0.1:1/0", backend="cache+memory://") as app:
            app.backend.mark_as_done("one", 7)

            assert 7 == app.AsyncResult("one").get(timeout=5)
        assert "task state not recorded: task_id=one state=succeeded" in caplog.text

    def test_sentinel(self) -> None:
        """Sentinel's backend is a Redis one, and gets the same additions; the class is made once."""
        mixed = recording(SentinelBackend)

        assert issubclass(mixed, SentinelBackend)
        assert issubclass(mixed, recording(RedisBackend).__mro__[1])
        assert recording(SentinelBackend) is mixed
        assert not issubclass(recording(CacheBackend), RedisBackend)


class TestRedis:
    def test_one_round_trip(self, app: Any, redis_url: str) -> None:
        """Storing a result with its record is one command, and nothing is subscribed to by submitting."""
        request = Context({"id": "one", "hostname": "a@h", "retries": 0})
        app.backend.mark_as_done("zero", 1, request=request)

        with commands_at(redis_url) as commands:
            app.backend.mark_as_done("one", 7, request=request)

        assert ["EVALSHA"] == [command.split()[0] for command in commands]
        record = app.state.read("one")
        assert ("a@h", 1) == (record.agent, record.attempt)

    def test_a_success_stands(self, app: Any) -> None:
        """A copy that was delivered twice doesn't overwrite a success, in the result or in the record."""
        app.backend.mark_as_done("one", 7)
        app.backend.mark_as_failure("one", ValueError("late"))
        app.backend.mark_as_done("one", 8)

        assert 7 == app.AsyncResult("one").get(timeout=5)
        assert TaskState.SUCCEEDED is app.state.read("one").state

    def test_a_failure_can_be_made_good(self, app: Any) -> None:
        """As in Celery, only a success is final for the result."""
        app.backend.mark_as_failure("one", ValueError("first"))
        app.backend.mark_as_done("one", 8)

        assert 8 == app.AsyncResult("one").get(timeout=5)

    @pytest.mark.parametrize(("expires", "ttl"), [(60, 60), (None, -1), (0, -1)])
    def test_results_expire(self, redis_url: str, client: Redis, expires: int | None, ttl: int) -> None:
        """`result_expires` holds, None and 0 for ever."""
        with app_at(redis_url, changes={"result_expires": expires}) as app:
            app.backend.mark_as_done("one", 7)

        assert ttl == client.ttl("celery-task-meta-one")

    def test_stock_readers(self, app: Any, client: Redis) -> None:
        """What is stored is what Celery stores, so that stock readers and Flower understand it."""
        app.backend.mark_as_failure("one", ValueError("odd"), traceback="lines")

        meta = app.backend.decode(client.get("celery-task-meta-one"))
        assert {"status", "result", "traceback", "children", "date_done", "task_id"} == set(meta)
        assert ("FAILURE", "ValueError", "lines", "one") == (
            meta["status"],
            meta["result"]["exc_type"],
            meta["traceback"],
            meta["task_id"],
        )

    def test_extended_results(self, redis_url: str, client: Redis) -> None:
        """`result_extended` adds what it adds in Celery."""
        with app_at(redis_url, changes={"result_extended": True}) as app:
            _declare(app)
            with agent_of(app):
                result = app.tasks["shop.half"].delay(4)
                result.get(timeout=10)
            meta = app.backend.decode(client.get(f"celery-task-meta-{result.id}"))

        assert ("shop.half", [4], "celery") == (meta["name"], meta["args"], meta["queue"])

    def test_states_of_the_users_own(self, app: Any) -> None:
        """`update_state` stores what it stores in Celery, and isn't a step of ours."""
        with pytest.warns(DeprecationWarning, match="setex"):  # Celery's own
            app.backend.store_result("one", {"done": 1}, "PROGRESS")

        assert ("PROGRESS", {"done": 1}) == (app.AsyncResult("one").state, app.AsyncResult("one").info)
        assert app.state.read("one") is None

    def test_started(self, app: Any) -> None:
        """Celery's STARTED comes and goes without a record; RUNNING is the task's own step."""
        with pytest.warns(DeprecationWarning, match="setex"):  # Celery's own
            app.backend.mark_as_started("one", pid=1)

        assert states.STARTED == app.AsyncResult("one").state
        assert app.state.read("one") is None

    def test_revoked(self, app: Any) -> None:
        """A task that is marked as revoked is cancelled, and whoever waits for it hears so."""
        app.backend.mark_as_revoked("one", "by hand")

        assert TaskState.CANCELLED is app.state.read("one").state
        with pytest.raises(TaskRevokedError, match="by hand"):
            app.AsyncResult("one").get(timeout=5)

    def test_results_that_are_no_json(self, app: Any) -> None:
        """A result that can't be stored is the task's failure."""
        with agent_of(app):
            result = app.tasks["shop.unfit"].delay()

            with pytest.raises(Exception, match="serializable"):
                result.get(timeout=10)
        assert TaskState.FAILED is app.state.read(result.id).state

    @pytest.mark.filterwarnings("ignore:Call to deprecated setex")  # Celery's own, for a group's result
    def test_groups_and_chords(self, app: Any) -> None:
        """They work as in Celery; the failure of one part fails the body, which is recorded too."""
        half, total = app.tasks["shop.half"], app.tasks["shop.total"]
        with agent_of(app):
            assert [1, 2] == group(half.s(2), half.s(4)).apply_async().get(timeout=10)
            assert 3 == chord([half.s(2), half.s(4)], total.s()).apply_async().get(timeout=10)
            failed = chord([half.s(2), half.s(3)], total.s()).apply_async()
            until(failed.ready, seconds=10)
        assert isinstance(failed.result, ChordError)
        assert TaskState.FAILED is app.state.read(failed.id).state

    def test_a_thread_has_its_own_connection(self, app: Any) -> None:
        """Disconnecting twice is fine, and the next use connects again."""
        app.backend.mark_as_done("one", 7)
        app.backend.disconnect()
        app.backend.disconnect()

        assert 7 == app.AsyncResult("one").get(timeout=5)


class TestAFullServer:
    def test_results_and_followers_wait(self, app: Any, client: Any) -> None:
        """While Redis takes nothing in, a result is kept and what follows its task isn't given up."""
        begun, go = Event(), Event()

        @app.task(name="shop.held", shared=False)
        def held(number: int) -> int:
            begun.set()
            go.wait(20)
            return number

        with agent_of(app):
            result = (held.s(4) | app.signature("shop.half")).apply_async()
            assert begun.wait(20)
            client.config_set("maxmemory", 1)
            try:
                go.set()
                before = _refused(client)
                until(lambda: _refused(client) > before + 10)
            finally:
                client.config_set("maxmemory", 0)

            assert 2 == result.get(timeout=20)
        assert TaskState.SUCCEEDED is app.state.read(result.parent.id).state


def _refused(client: Any) -> int:
    """Count what the server has refused for want of memory."""
    return int(client.info("errorstats").get("errorstat_OOM", {"count": 0})["count"])
