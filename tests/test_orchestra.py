"""The engine: submit work, follow it, and see the fleet."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery.exceptions import TaskRevokedError
from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.result import AsyncResult

from orchestra.embedded import EmbeddedServer
from orchestra.exceptions import PermanentError, UnknownTaskError, ValidationError
from orchestra.orchestra import Orchestra, TaskHandle
from orchestra.registry import CatalogueEntry
from orchestra.timeouts import GRACE_SECONDS
from orchestra.types import Cancelled, QueueInfo, TaskState, Urgency
from tests.fleets import agent_of, app_at, commands_at
from tests.processes import until


@pytest.fixture
def app(redis_url: str) -> Iterator[Any]:
    """Give an app with tasks."""
    with app_at(redis_url) as app:
        _declare(app)
        yield app


@pytest.fixture
def orchestra(app: Any) -> Orchestra:
    """Give the engine over it."""
    return Orchestra(app)


RUNNING: list[str] = []
HELD: list[bool] = []


def _declare(app: Any) -> None:
    @app.task(name="shop.index", requires={"nlp"}, shared=False)
    def index(number: int, words: list[str] | None = None) -> int:
        RUNNING.append("index")
        return number

    @app.task(name="shop.loose", shared=False)
    def loose(number: int = 0) -> int:
        return number

    @app.task(name="shop.fails", shared=False)
    def fails() -> None:
        raise KeyError("broken")

    @app.task(name="shop.held", bind=True, requires={"nlp"}, shared=False)
    def held(self: Any) -> str:
        RUNNING.append(self.request.id)
        until(lambda: HELD, seconds=10)
        return "done"


def _queue(orchestra: Orchestra, name: str) -> QueueInfo:
    return next(queue for queue in orchestra.queues() if queue.name == name)


class TestSubmit:
    def test_a_handle(self, orchestra: Orchestra) -> None:
        """A submitted task waits, is known by its id, and its record tells what was asked for."""
        handle = orchestra.submit("shop.index", {"number": 3})

        record = handle.record()
        assert record is not None
        assert (handle.id, "shop.index", 1) == (record.task_id, record.name, record.attempt)
        assert ("nlp", "shop:nlp") == (record.requires, record.queue)
        assert TaskState.SUBMITTED is handle.state is record.state
        assert [TaskState.SUBMITTED] == [entry.state for entry in handle.history()]
        assert isinstance(handle.result, AsyncResult)
        assert handle.id == handle.result.id
        assert handle == orchestra.handle(handle.id)

    def test_options(self, app: Any, orchestra: Orchestra) -> None:
        """Each option becomes Celery's word for it, in the message."""
        moment = datetime.now(UTC) + timedelta(hours=1)

        handle = orchestra.submit(
            "shop.index",
            {"number": 3},
            requires={"gpu", "nlp"},
            urgency=Urgency.CRITICAL,
            timeout=7,
            expires=moment,
        )
        by_moment = orchestra.submit("shop.index", {"number": 3}, eta=moment, expires=60)
        by_seconds = orchestra.submit("shop.index", {"number": 3}, countdown=30)

        with app.connection_for_read() as connection, connection.SimpleQueue("shop:gpu+nlp") as queue:
            message = queue.get(timeout=5)
            message.ack()
        assert handle.id == message.headers["id"]
        assert [7 + GRACE_SECONDS, 7] == message.headers["timelimit"]
        assert 0 == message.properties["priority"]
        assert moment == datetime.fromisoformat(message.headers["expires"])
        delayed, soon = by_moment.record(), by_seconds.record()
        assert delayed is not None
        assert soon is not None
        assert moment == delayed.not_before
        assert soon.submitted_at is not None
        assert soon.not_before is not None
        assert timedelta(seconds=20) < soon.not_before - soon.submitted_at < timedelta(seconds=40)

    def test_by_the_catalogue(self, app: Any, orchestra: Orchestra, redis_url: str) -> None:
        """A task whose code this process hasn't is checked and routed by what agents published."""
        entry = CatalogueEntry(requires="gpu", arguments=app.tasks["shop.index"].arguments.to_catalogue())
        app.registry.register("a@h", "1", about={}, tasks={"shop.far": entry}, queues=[])

        handle = orchestra.submit("shop.far", {"number": 3})

        record = handle.record()
        assert record is not None
        assert "shop:gpu" == record.queue
        with pytest.raises(ValidationError, match="number"):  # although agents only remark on it elsewhere
            orchestra.submit("shop.far", {"number": "three"})

    def test_published_a_moment_ago(self, orchestra: Orchestra) -> None:
        """A task is known as soon as its agent has joined, whatever was read of the catalogue before."""
        with pytest.raises(UnknownTaskError):
            orchestra.submit("far.late", {})

        entry = CatalogueEntry(requires="gpu")
        orchestra.app.registry.register("far@test", "1", about={}, tasks={"far.late": entry}, queues=[])

        record = orchestra.submit("far.late", {}).record()
        assert record is not None
        assert "gpu" == record.requires

    def test_unknown_tasks(self, orchestra: Orchestra) -> None:
        """The nearest names are told, or that an agent may be missing."""
        with pytest.raises(UnknownTaskError, match=r"did you mean shop\.index") as caught:
            orchestra.submit("shop.indx", {})
        assert ("shop.indx", "shop.index") == (caught.value.task_type, caught.value.nearest[0])
        with pytest.raises(UnknownTaskError, match="is an agent that knows it running"):
            orchestra.submit("zzz", {})

    def test_every_tasks_hints_are_enforced(self, orchestra: Orchestra) -> None:
        """Through `submit` a mismatch is refused for a task that declares nothing, too."""
        with pytest.raises(ValidationError, match=r"shop\.loose was not submitted: number"):
            orchestra.submit("shop.loose", {"number": "three"})

    @pytest.mark.parametrize(
        "options",
        [
            {"timeout": 0},
            {"countdown": -1},
            {"expires": -1},
            {"urgency": "asap"},
            {"requires": "GPU"},
            {"countdown": 1, "eta": datetime(2030, 1, 1, tzinfo=UTC)},
        ],
    )
    def test_options_that_make_no_sense(self, app: Any, orchestra: Orchestra, options: dict[str, Any]) -> None:
        """They are refused, and nothing is sent."""
        with pytest.raises(ValidationError):
            orchestra.submit("shop.index", {"number": 1}, **options)

        assert [] == app.store.command("KEYS", "*")

    def test_payloads_that_are_no_mapping(self, orchestra: Orchestra) -> None:
        """The payload holds arguments by name."""
        wrong: Any = [3]

        with pytest.raises(ValidationError, match="of type list; a mapping of arguments is needed"):
            orchestra.submit("shop.index", wrong)

    def test_celerys_own_tasks(self, orchestra: Orchestra) -> None:
        """They can be submitted too."""
        assert TaskState.SUBMITTED is orchestra.submit("celery.backend_cleanup", {}).state

    def test_eagerly(self) -> None:
        """With `task_always_eager` a submission runs at once, and its handle has the outcome without any Redis."""
        with app_at("redis://127.0.0.1:1/0", changes={"task_always_eager": True}) as app:
            _declare(app)
            good, bad = Orchestra(app).submit("shop.index", {"number": 3}), Orchestra(app).submit("shop.fails", {})

            assert (3, TaskState.SUCCEEDED) == (good.get(timeout=1), good.state)
            assert TaskState.FAILED is bad.state
            with pytest.raises(KeyError, match="broken"):
                bad.get()
            assert good == TaskHandle(good.id, app)


class TestSubmitMany:
    def test_in_order(self, orchestra: Orchestra) -> None:
        """The handles come in the payloads' order, whatever holds these, and each task is its own."""
        handles = orchestra.submit_many("shop.index", ({"number": number} for number in range(20)))

        with agent_of(orchestra.app, "nlp"):
            assert list(range(20)) == [handle.get(timeout=10) for handle in handles]

    def test_all_or_nothing(self, app: Any, orchestra: Orchestra) -> None:
        """One wrong payload is named by its place, and none is sent."""
        with pytest.raises(ValidationError, match=r"Payload 2 of 3: shop\.index was not submitted") as caught:
            orchestra.submit_many("shop.index", [{"number": 1}, {"number": 2}, {"number": "x", "words": 3}])

        assert {"number", "words"} == {error.field for error in caught.value.errors}
        assert [] == app.store.command("KEYS", "*")

    def test_wrong_options_send_nothing(self, app: Any, orchestra: Orchestra) -> None:
        """An option that makes no sense is found before the first is sent."""
        for options in ({"timeout": -1}, {"requires": "GPU"}, {"urgency": "asap"}):
            with pytest.raises(ValidationError):
                orchestra.submit_many("shop.index", [{"number": 1}], **options)

        assert [] == app.store.command("KEYS", "*")

    def test_options_are_for_all(self, orchestra: Orchestra) -> None:
        """Each task gets the options."""
        handles = orchestra.submit_many("shop.index", [{"number": 1}] * 3, requires="gpu", urgency="low")

        assert {"shop:gpu"} == {record.queue for handle in handles if (record := handle.record())}

    def test_none(self, orchestra: Orchestra) -> None:
        """There may be none to send."""
        assert [] == orchestra.submit_many("shop.index", [])

    def test_one_command_for_all(self, orchestra: Orchestra, redis_url: str) -> None:
        """A warm batch is one command for each 500 tasks."""
        orchestra.submit("shop.index", {"number": 0})
        with commands_at(redis_url) as commands:
            handles = orchestra.submit_many("shop.index", [{"number": 1}] * 501)

        assert ["EVAL"] * 2 == [command.split()[0].removesuffix("SHA") for command in commands]
        assert {TaskState.SUBMITTED} == {handle.state for handle in handles}

    def test_over_another_broker(self) -> None:
        """Where kombu knows no batches, as in `memory://`, they are sent one by one."""
        with app_at("memory://") as app:
            _declare(app)
            assert 3 == len(Orchestra(app).submit_many("shop.index", [{"number": 1}] * 3))

    def test_dropped_connections(self, app: Any, orchestra: Orchestra) -> None:
        """A connection that the server dropped while it was idle is no reason to fail."""
        orchestra.submit("shop.index", {"number": 0})
        app.store.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

        handles = orchestra.submit_many("shop.index", [{"number": 1}] * 3)

        assert {TaskState.SUBMITTED} == {handle.state for handle in handles}


class TestTaskHandle:
    def test_unknown_ids(self, orchestra: Orchestra) -> None:
        """An id that nothing is known of isn't waiting: there is no state, no record, and nothing to cancel."""
        handle = orchestra.handle("never-seen")

        assert handle.state is None
        assert handle.record() is None
        assert () == handle.history()
        assert Cancelled.UNKNOWN is handle.cancel()
        assert handle.state is None

    def test_a_life(self, orchestra: Orchestra) -> None:
        """The history has each state with its time, agent and attempt."""
        with agent_of(orchestra.app, "nlp"):
            handle = orchestra.submit("shop.index", {"number": 3})
            assert 3 == handle.get(timeout=10)

        record = handle.record()
        assert record is not None
        assert [TaskState.SUBMITTED, TaskState.RUNNING, TaskState.SUCCEEDED] == [e.state for e in handle.history()]
        assert record.submitted_at <= record.started_at <= record.finished_at  # type: ignore[operator]
        assert [entry.at for entry in record.history] == sorted(entry.at for entry in record.history)
        assert handle.state is not None
        assert handle.state.finished

    def test_waiting_takes_no_longer_than_asked(self, orchestra: Orchestra) -> None:
        """`get` gives up in time, and raises what the task raised."""
        with pytest.raises(CeleryTimeoutError):
            orchestra.submit("shop.index", {"number": 3}).get(timeout=0.05)
        with agent_of(orchestra.app), pytest.raises(KeyError, match="broken"):
            orchestra.submit("shop.fails", {}).get(timeout=10)

    def test_cancelling_what_waits(self, orchestra: Orchestra) -> None:
        """A task that hasn't started is cancelled: whoever waits for it hears so, and no agent runs it."""
        RUNNING.clear()
        handle = orchestra.submit("shop.index", {"number": 3})

        assert Cancelled.WAITING is handle.cancel()
        assert Cancelled.BEFORE is handle.cancel()
        assert TaskState.CANCELLED is handle.state
        with pytest.raises(TaskRevokedError, match="cancelled"):
            handle.get(timeout=5)
        with agent_of(orchestra.app, "nlp"):
            assert 4 == orchestra.submit("shop.index", {"number": 4}).get(timeout=10)
        assert ["index"] == RUNNING
        assert [TaskState.SUBMITTED, TaskState.CANCELLED] == [entry.state for entry in handle.history()]
        assert "by its submitter" == handle.history()[-1].note

    def test_cancelling_what_is_delayed(self, orchestra: Orchestra) -> None:
        """A delayed task is cancelled even when an agent has it in its hands already."""
        RUNNING.clear()
        with agent_of(orchestra.app, "nlp"):
            handle = orchestra.submit("shop.index", {"number": 3}, countdown=0.5)
            until(lambda: _queue(orchestra, "shop:nlp").depth == 0, seconds=10)

            assert Cancelled.DELAYED is handle.cancel()
            later = orchestra.submit("shop.index", {"number": 4}, countdown=0.7)
            assert 4 == later.get(timeout=10)
        assert ["index"] == RUNNING
        assert TaskState.CANCELLED is handle.state

    def test_expired(self, orchestra: Orchestra) -> None:
        """Who waits for a task that expired before it started hears so, and no agent runs it."""
        RUNNING.clear()
        handle = orchestra.submit("shop.index", {"number": 3}, expires=datetime(2020, 1, 1, tzinfo=UTC))

        with agent_of(orchestra.app, "nlp"), pytest.raises(TaskRevokedError) as caught:
            handle.get(timeout=10)

        assert f"Task {handle.id} expired before it started." == str(caught.value)
        assert [] == RUNNING

    def test_what_is_done(self, orchestra: Orchestra) -> None:
        """A task that is done isn't cancelled."""
        with agent_of(orchestra.app, "nlp"):
            handle = orchestra.submit("shop.index", {"number": 3})
            assert 3 == handle.get(timeout=10)

        assert Cancelled.FINISHED is handle.cancel()
        assert TaskState.SUCCEEDED is handle.state

    def test_what_runs(self, orchestra: Orchestra) -> None:
        """A task that runs where it can't be ended goes on, and what it returns isn't its result."""
        RUNNING.clear()
        HELD.clear()
        with agent_of(orchestra.app, "nlp"):
            handle = orchestra.submit("shop.held", {})
            until(lambda: RUNNING, seconds=10)

            assert Cancelled.RUNNING is handle.cancel()
            assert Cancelled.BEFORE is orchestra.cancel(handle.id)
            HELD.append(True)
            assert 4 == orchestra.submit("shop.index", {"number": 4}).get(timeout=10)
        with pytest.raises(TaskRevokedError, match="cancelled"):
            handle.get(timeout=5)
        assert [TaskState.SUBMITTED, TaskState.RUNNING, TaskState.CANCELLED] == [e.state for e in handle.history()]


class TestFleet:
    def test_queues(self, orchestra: Orchestra) -> None:
        """Each queue with its requirement, what waits in it over all urgencies, and the agents that serve it."""
        assert [QueueInfo(name="celery", requires="general", depth=0)] == orchestra.queues()
        for urgency in Urgency:
            orchestra.submit("shop.index", {"number": 1}, urgency=urgency)
        orchestra.submit("shop.loose", {}, urgency="low")

        assert [
            QueueInfo(name="celery", requires="general", depth=1),
            QueueInfo(name="shop:nlp", requires="nlp", depth=4),
        ] == orchestra.queues()
        with agent_of(orchestra.app, "nlp"):
            until(lambda: _queue(orchestra, "shop:nlp").depth == 0, seconds=10)
            assert ("agent@test",) == _queue(orchestra, "shop:nlp").agents
            assert () == _queue(orchestra, "celery").agents
            assert ["agent@test"] == [agent.name for agent in orchestra.agents()]

    def test_queues_without_waiting_tasks(self, app: Any, orchestra: Orchestra) -> None:
        """A queue whose tasks are delayed or leased is listed with their numbers, and its health is good."""
        app.registry.register("a@h", "1", about={}, tasks={}, queues=["gpu"])
        app.store.command("ZADD", app.store.keys.delayed("shop:gpu"), 1, "a", 2, "b")
        app.store.command("ZADD", app.store.keys.leased("shop:gpu"), "inf", "holder:1")
        app.registry.retire("a@h", "1")

        assert QueueInfo(name="shop:gpu", requires="gpu", depth=0, delayed=2, leased=1) == _queue(orchestra, "shop:gpu")
        assert (0, ()) == (orchestra.health().waiting, orchestra.health().unserved)

    def test_healthy(self, orchestra: Orchestra) -> None:
        """Redis answers, an agent lives, and nothing waits unseen."""
        with agent_of(orchestra.app, "nlp"):
            health = orchestra.health()

        assert (True, 1, 0, (), ()) == (health.ok, health.agents, health.waiting, health.unserved, health.problems)
        assert health.redis_ms is not None
        assert 0 < health.redis_ms < 5000

    def test_nobody_there(self, orchestra: Orchestra) -> None:
        """Without an agent, and with work that nobody serves, the problems are named."""
        assert ("no live agent",) == orchestra.health().problems
        orchestra.submit("shop.index", {"number": 1})

        health = orchestra.health()

        assert (False, 0, 1, ("shop:nlp",)) == (health.ok, health.agents, health.waiting, health.unserved)
        assert ("shop:nlp has waiting tasks and no live agent", "no live agent") == health.problems

    def test_work_that_nobody_serves(self, orchestra: Orchestra) -> None:
        """A live agent is no help to a queue that it doesn't serve."""
        orchestra.submit("shop.index", {"number": 1}, requires="gpu")
        with agent_of(orchestra.app, "nlp"):
            health = orchestra.health()

        assert (False, 1, ("shop:gpu",)) == (health.ok, health.agents, health.unserved)

    def test_no_redis(self, redis_server: EmbeddedServer) -> None:
        """It never raises: an unreachable server, a wrong password and a broker of another kind are findings."""
        refused = f"redis://:hush-hush@{redis_server.host}:{redis_server.port}/0", "refused the user name or password"
        for url, words in (("redis://:hush-hush@127.0.0.1:1/0", "127.0.0.1:1"), refused, ("memory://", "need Redis")):
            with app_at(url) as app:
                health = Orchestra(app).health()
            assert (False, None, 0) == (health.ok, health.redis_ms, health.agents)
            assert words in health.problems[0]
            assert "hush-hush" not in str(health)


class TestDeadLetters:
    @pytest.mark.filterwarnings("ignore:Call to deprecated setex")  # Celery's own
    @pytest.mark.parametrize("database", ["0", "1"])
    def test_the_former_end_is_forgotten(self, redis_url: str, database: str) -> None:
        """Whoever waits for a replayed task waits for its new end, wherever results are, and others' stay."""
        mended: list[bool] = []
        with app_at(redis_url, backend=f"{redis_url.removesuffix('/0')}/{database}") as app:

            @app.task(name="shop.fail", shared=False)
            def fail() -> str:
                if not mended:
                    raise PermanentError
                return "mended"

            orchestra = Orchestra(app)
            with agent_of(app):
                results = [fail.delay() for _ in range(2)]
                for result in results:
                    with pytest.raises(PermanentError):
                        result.get(timeout=10)
                until(lambda: orchestra.dead_letters.count() == 2, seconds=10)
                mended.append(True)
                assert 1 == orchestra.dead_letters.replay(results[0].id)

                assert "mended" == orchestra.handle(results[0].id).get(timeout=10)
                with pytest.raises(PermanentError):
                    orchestra.handle(results[1].id).get(timeout=10)

    def test_without_results(self, redis_url: str) -> None:
        """Where no results are kept there is none to forget."""
        with app_at(redis_url, backend="disabled://") as app:
            app.task(name="shop.fail", shared=False, bind=True)(_fail)
            orchestra = Orchestra(app)
            with agent_of(app):
                sent = app.tasks["shop.fail"].delay()
                until(lambda: orchestra.dead_letters.count() == 1, seconds=10)

                assert 1 == orchestra.dead_letters.replay(sent.id)
                until(lambda: orchestra.dead_letters.count() == 1, seconds=10)
        assert ["replay"] == [one.kind for one in orchestra.dead_letters.show(sent.id).deliveries]


def _fail(_task: Any) -> None:
    raise PermanentError
