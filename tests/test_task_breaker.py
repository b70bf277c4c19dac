"""OrchestraTask under a breaker, on an agent: what trips it, what waits, what fails, and what is declared."""

from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import pytest
from celery.exceptions import Ignore
from celery.exceptions import Retry as CeleryRetry
from celery.worker import state as worker_state

from orchestra import Breaker, Orchestra, OrchestraCelery
from orchestra.breaker import BreakerPhase, BreakerState
from orchestra.exceptions import CircuitOpenError, ConfigurationError, PermanentError
from orchestra.store import load_script
from orchestra.task import OrchestraTask
from orchestra.types import TaskState
from tests.fleets import agent_of, app_at, commands_at
from tests.processes import until
from tests.sample_tasks import AT_ONCE, FAILURES

API = Breaker("api", failures=2, window=60, cooldown=60)
HOSTS = Breaker("host", failures=1, window=60, cooldown=60, key=lambda url: urlsplit(url).netloc)
HASTY = Breaker("hasty", failures=1, window=60, cooldown=0.5)


def _declare(app: Any) -> None:
    @app.task(name="b.call", breaker=API, shared=False)
    def call() -> int:
        return FAILURES.next()

    @app.task(name="b.again", breaker=API, max_attempts=3, backoff=AT_ONCE, shared=False)
    def again() -> int:
        return FAILURES.next()

    @app.task(name="b.hand", bind=True, breaker=API, shared=False)
    def hand(self: Any) -> int:
        try:
            return FAILURES.next()
        except ConnectionError as error:
            raise self.retry(exc=error, countdown=0) from error

    @app.task(name="b.auto", breaker=API, autoretry_for=(KeyError,), max_retries=3, retry_backoff=False, shared=False)
    def auto() -> int:
        return FAILURES.next()

    @app.task(name="b.fail", breaker=API, on_open="fail", max_attempts=3, shared=False)
    def fail() -> int:
        return FAILURES.next()

    @app.task(name="b.fetch", breaker=HOSTS, shared=False)
    def fetch(url: str, seconds: float = 1.0) -> int:
        return FAILURES.next()

    @app.task(name="b.hasty", breaker=HASTY, max_attempts=2, backoff=AT_ONCE, shared=False)
    def hasty() -> int:
        return FAILURES.next()

    @app.task(name="b.once", breaker=HASTY, acks_late=False, shared=False)
    def once() -> int:
        return FAILURES.next()


@pytest.fixture
def served(redis_url: str) -> Iterator[Any]:
    """Give an app with an agent that serves it, on an empty server."""
    FAILURES.set()
    with app_at(redis_url) as app:
        _declare(app)
        with agent_of(app):
            yield app


def _state(app: Any, name: str = "api") -> BreakerState | None:
    return next((state for state in app.breakers.states() if state.name == name), None)


def _phase(app: Any, name: str = "api") -> BreakerPhase:
    state = _state(app, name)
    return BreakerPhase.CLOSED if state is None else state.state


def _waits(app: Any, name: str = "api") -> int:
    state = _state(app, name)
    return 0 if state is None else state.waiting


def _has_ended(app: Any, task_id: str) -> bool:
    return app.state.read(task_id).state in {TaskState.FAILED, TaskState.RETRYING}


class TestWhatTrips:
    @pytest.mark.parametrize("task", ["b.call", "b.again"])
    def test_errors_that_may_pass(self, served: Any, task: str) -> None:
        """Failures of the service open it, whether the task is tried again or not."""
        FAILURES.set(ConnectionError("away"), TimeoutError("late"))
        for _ in range(2):
            served.tasks[task].delay()

        until(lambda: _phase(served) is BreakerPhase.OPEN)

    def test_what_celery_tries_again(self, served: Any) -> None:
        """The errors of `autoretry_for` are errors that may pass."""
        FAILURES.set(KeyError("busy"), KeyError("busy"))
        for _ in range(2):
            served.tasks["b.auto"].delay()

        until(lambda: _phase(served) is BreakerPhase.OPEN)

    def test_a_retry_by_hand(self, served: Any) -> None:
        """A task that asks for its retry itself tells by the reason that it gives."""
        FAILURES.set(ConnectionError("away"), ConnectionError("away"))
        served.tasks["b.hand"].delay()

        until(lambda: _phase(served) is BreakerPhase.OPEN)

    @pytest.mark.parametrize("error", [KeyError("no"), PermanentError("no"), MemoryError("no"), CeleryRetry("later")])
    def test_a_tasks_own(self, served: Any, error: Exception) -> None:
        """A task's own mistakes, and control flow without a reason, say nothing of the service."""
        for _ in range(4):
            FAILURES.set(error)
            result = served.tasks["b.call"].delay()
            until(partial(_has_ended, served, result.id))
            assert 1 == FAILURES.attempts

        state = _state(served)
        assert state is not None
        assert (BreakerPhase.CLOSED, 0, 4) == (state.state, state.failures, state.calls)


class TestWaiting:
    def test_no_attempt_is_burned(self, served: Any) -> None:
        """A task waits as long as the breaker is open, on the attempt that it was on, and runs when it closes."""
        served.breakers.open("api", by="ann")
        results = [served.tasks["b.again"].delay() for _ in range(5)]
        until(lambda: 5 == _waits(served))
        assert [TaskState.SUBMITTED] * 5 == [served.state.read(result.id).state for result in results]
        assert 0 == FAILURES.attempts

        served.breakers.close("api", by="ann")

        assert [1, 2, 3, 4, 5] == sorted(result.get(timeout=20) for result in results)
        assert {1} == {served.state.read(result.id).attempt for result in results}

    def test_one_that_is_cancelled(self, served: Any) -> None:
        """A task that waits can be cancelled, and doesn't run when its breaker closes."""
        served.breakers.open("api", by="ann")
        result = served.tasks["b.call"].delay()
        until(lambda: 1 == _waits(served))

        assert Orchestra(served).handle(result.id).cancel()
        served.breakers.close("api", by="ann")
        assert 1 == served.tasks["b.call"].delay().get(timeout=20)
        assert TaskState.CANCELLED is served.state.read(result.id).state

    @pytest.mark.parametrize("way", ["revoke", "expires"])
    def test_one_that_is_revoked_or_expires(self, served: Any, way: str) -> None:
        """What is revoked or expires while it waits doesn't run, and holds nobody up."""
        served.breakers.open("api", by="ann")
        result = served.tasks["b.call"].apply_async(expires=1 if way == "expires" else None)
        until(lambda: 1 == _waits(served))
        after = served.tasks["b.call"].delay()
        until(lambda: 2 == _waits(served))
        if way == "revoke":
            served.control.revoke(result.id)
            until(lambda: result.id in worker_state.revoked)
        else:
            until(lambda: served.state.read(result.id).submitted_at.timestamp() + 1.2 < _now(served))

        served.breakers.close("api", by="ann")

        assert 1 == after.get(timeout=20)
        expected = TaskState.CANCELLED if way == "revoke" else TaskState.EXPIRED
        until(lambda: served.state.read(result.id).state is expected)

    def test_purge(self, served: Any) -> None:
        """`celery purge` drops what waits for a breaker too, and no other queue's."""
        served.breakers.open("api", by="ann")
        for _ in range(3):
            served.tasks["b.call"].delay()
        until(lambda: 3 == _waits(served))
        assert [3] == [queue.parked for queue in _queues(served) if queue.name == "celery"]

        assert 3 == served.control.purge()
        assert 0 == _waits(served)
        assert 0 == served.store.command("EXISTS", served.store.keys.parked_counts)


def _queues(app: Any) -> Any:
    return Orchestra(app).queues()


def _now(app: Any) -> float:
    seconds, micros = app.store.command("TIME")
    return float(seconds + micros / 1e6)


class TestFailing:
    def test_at_once(self, served: Any) -> None:
        """A task that doesn't wait fails without being begun or tried again, with an error that tells until when."""
        served.breakers.open("api", by="ann", seconds=60)

        result = served.tasks["b.fail"].delay()

        with pytest.raises(
            CircuitOpenError, match=r"b\.fail was not begun: its breaker api is open; .* in [56]\d\.\d s"
        ):
            result.get(timeout=20)
        record = served.state.read(result.id)
        assert (TaskState.FAILED, 1, 0) == (record.state, record.attempt, FAILURES.attempts)
        assert [TaskState.SUBMITTED, TaskState.FAILED] == [entry.state for entry in record.history]

    def test_until_somebody_closes_it(self, served: Any) -> None:
        """Where nobody knows until when, it says so."""
        served.breakers.open("api", by="ann")

        with pytest.raises(CircuitOpenError, match="somebody has to close it"):
            served.tasks["b.fail"].delay().get(timeout=20)


class TestRecovery:
    @pytest.mark.parametrize("task", ["b.hasty", "b.once"])
    def test_by_a_probe(self, served: Any, task: str) -> None:
        """After the cooldown one task that waits probes; when it succeeds all go on."""
        FAILURES.set(ConnectionError("away"))
        served.tasks["b.hasty"].delay()
        until(lambda: _phase(served, "hasty") is not BreakerPhase.CLOSED)
        results = [served.tasks[task].delay() for _ in range(5)]

        for result in results:
            result.get(timeout=20)

        state = _state(served, "hasty")
        assert state is not None
        assert BreakerPhase.CLOSED is state.state
        assert ["open", "half_open", "closed"] == [change.state.value for change in reversed(state.changes)]
        assert {"agent@test"} == {change.by for change in state.changes}

    def test_probes_burn_no_attempt(self, served: Any) -> None:
        """A task that probes in vain, as often as may be, stays on the attempt that it was on."""
        FAILURES.set(*(ConnectionError("away") for _ in range(4)))
        result = served.tasks["b.hasty"].delay()

        assert 5 == result.get(timeout=30)

        record = served.state.read(result.id)
        assert 2 == record.attempt
        assert 3 == [entry.note for entry in record.history].count("was a probe of breaker hasty")

    def test_a_probe_of_a_task_without_a_policy(self, served: Any) -> None:
        """One that is never to run twice fails by its own call, probe or not."""
        FAILURES.set(ConnectionError("first"), ConnectionError("second"))
        results = [served.tasks["b.once"].delay() for _ in range(2)]

        assert ["first", "second"] == sorted(str(one.get(timeout=20, propagate=False)) for one in results)

    def test_a_probe_that_says_nothing(self, served: Any) -> None:
        """A probe that fails by its own mistake, or is ignored, leaves its place to the next."""
        FAILURES.set(ConnectionError("away"), KeyError("mine"), Ignore())
        served.tasks["b.hasty"].apply_async(retry=False)
        until(lambda: _phase(served, "hasty") is not BreakerPhase.CLOSED)
        results = [served.tasks["b.once"].delay() for _ in range(4)]

        until(lambda: _phase(served, "hasty") is BreakerPhase.CLOSED)

        until(lambda: 6 == FAILURES.attempts)
        assert 4 == len(results)

    def test_told_to_celery_too(self, served: Any) -> None:
        """A change is an event of Celery's stream as well, for monitors that listen there."""
        heard: list[Any] = []
        with served.connection_for_read() as connection:
            receiver = served.events.Receiver(connection, handlers={"breaker-changed": heard.append})
            with receiver.consumer_context() as (consuming, *_):
                until(lambda: _drained(consuming) and 1 <= served.store.command("PUBSUB", "NUMPAT"))
                FAILURES.set(ConnectionError("away"))
                served.tasks["b.hasty"].delay()
                until(lambda: _drained(consuming) and len(heard) >= 3)

        assert ["open", "half_open", "closed"] == [event["state"] for event in heard]
        assert {("hasty", "agent@test")} == {(event["breaker"], event["hostname"]) for event in heard}


def _drained(connection: Any) -> bool:
    with suppress(TimeoutError):
        connection.drain_events(timeout=0.1)
    return True


class TestKeys:
    def test_each_key_has_its_own(self, served: Any) -> None:
        """A host that is away holds up its own tasks alone, however their arguments were given."""
        FAILURES.set(ConnectionError("away"))
        served.tasks["b.fetch"].delay("http://down/1")
        until(lambda: _phase(served, "host:down") is BreakerPhase.OPEN)
        served.tasks["b.fetch"].delay(seconds=2.0, url="http://down/2")

        assert served.tasks["b.fetch"].delay("http://up/1", 3.0).get(timeout=20)
        until(lambda: 1 == _waits(served, "host:down"))
        assert 2 == FAILURES.attempts

    def test_a_key_that_cannot_be_computed(self, served: Any) -> None:
        """It's the task's own error, which names task and breaker."""
        with pytest.raises(PermanentError, match=r"b\.fetch can't run: the key of its breaker host is ''"):
            served.tasks["b.fetch"].delay("nowhere").get(timeout=20)
        with pytest.raises(PermanentError, match="raised ValueError"):
            served.tasks["b.fetch"].delay("http://[/").get(timeout=20)
        assert 0 == FAILURES.attempts


class TestCost:
    def test_a_closed_breaker(self, served: Any, redis_url: str) -> None:
        """A task asks its breaker in the call by which every task starts, and tells it nothing of a success."""
        served.tasks["b.call"].delay().get(timeout=20)
        with commands_at(redis_url) as seen:
            served.tasks["b.call"].delay().get(timeout=20)

        report, start = load_script("report"), load_script("start")
        assert [] == [one for one in seen if report.sha in one]
        assert [True] == ["api" in one.split() for one in seen if start.sha in one]

    def test_nothing_guards_a_plain_call(self, served: Any) -> None:
        """A task that is called as a function, or runs eagerly, asks no breaker."""
        served.breakers.open("api", by="ann")

        assert 1 == served.tasks["b.call"]()
        assert 2 == served.tasks["b.call"].apply().get()


class TestDeclarations:
    @pytest.fixture
    def app(self) -> Iterator[Any]:
        """Give an app that sends nowhere."""
        with app_at("memory://") as app:
            yield app

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"breaker": 3}, "Task t: breaker=3; a name or an orchestra.Breaker is allowed."),
            (
                {"breaker": "a b"},
                r"Task t: breaker='a b': Breaker\(name='a b'\) makes no sense: give up to 100 letters",
            ),
            ({"on_open": "fail"}, "Task t declares on_open and no breaker: name one with breaker=."),
            ({"breaker": "api", "on_open": "run"}, "Task t: on_open='run'; 'wait' or 'fail' is allowed."),
            (
                {"breaker": Breaker("host", key=lambda ulr: ulr)},
                "Task t: the key of breaker host asks for ulr, which the task lacks: did you mean url?",
            ),
        ],
    )
    def test_refused(self, app: OrchestraCelery, options: dict[str, Any], message: str) -> None:
        """What makes no sense is refused where the task is declared, with task, option and what is allowed."""
        with pytest.raises(ConfigurationError, match=message):

            @app.task(name="t", shared=False, **options)
            def t(url: str) -> None: ...

    def test_of_a_class(self, app: Any) -> None:
        """A class-based task's breaker is checked when it's registered."""

        class Fetch(OrchestraTask):
            name = "t.class"
            breaker = Breaker("host", key=lambda host: host)

            def run(self, url: str) -> None: ...

        with pytest.raises(ConfigurationError, match="asks for host, which the task lacks"):
            app.register_task(Fetch())

    def test_a_bound_task(self, app: Any) -> None:
        """The task itself isn't one of its arguments; what it takes as `**more` may be asked for."""

        @app.task(name="t.bound", bind=True, shared=False, breaker=Breaker("tenant", key=lambda tenant: tenant))
        def bound(self: Any, **more: Any) -> None: ...

        assert "tenant:acme" == bound.guard.call((), {"tenant": "acme"}).name
