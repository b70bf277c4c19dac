"""What is gathered for an explanation: from a real Redis, in a few round trips."""

from collections.abc import Iterator
from typing import Any

import pytest
from celery import chain, chord

from orchestra.capabilities import Requirement
from orchestra.exceptions import BrokerUnavailableError, ValidationError
from orchestra.explanations import CauseKind, Explanation, Subject
from orchestra.orchestra import Orchestra
from orchestra.types import TaskState
from tests.fleets import agent_of, app_at, commands_at, quick
from tests.processes import until
from tests.stores import register

NOBODY = "00000000-0000-0000-0000-000000000000"


@pytest.fixture
def app(redis_url: str) -> Iterator[Any]:
    """Give an app with a task, that takes agents for lost after a minute of silence only."""
    with app_at(redis_url, settings=quick(beat_seconds=12.0)) as app:
        _declare(app)
        yield app


def _declare(app: Any) -> None:
    @app.task(name="shop.index", requires={"nlp"}, shared=False)
    def index(number: int = 0) -> int:
        if number < 0:
            raise KeyError(number)
        return number


@pytest.fixture
def engine(app: Any) -> Orchestra:
    """Give the engine that is asked."""
    return Orchestra(app)


def _agent(
    app: Any, name: str = "text@a", *, can: str = "nlp", queues: tuple[str, ...] = ("shop:nlp",), **doing: Any
) -> None:
    """Have an agent in the registry that runs nowhere."""
    about = {"capabilities": can, "host": "a", "pid": 7, "pool": "solo", "concurrency": 1, "version": "1"}
    register(app.registry, name, name, about=about)
    app.registry.beat(name, name, version="", queues=queues, **{"running": 0, **doing})


def kind(found: Explanation) -> CauseKind:
    """Return the kind of the first cause."""
    return found.causes[0].kind


class TestWhatIsAskedAbout:
    def test_a_task(self, app: Any, engine: Orchestra) -> None:
        """A known id is a task, whatever else it may look like."""
        named = app.tasks["shop.index"].apply_async(task_id="gpu").id

        found = engine.explain(named)

        assert (Subject.TASK, "gpu", "shop.index", "nlp", 1) == (
            found.subject,
            found.about,
            found.task,
            found.requires,
            found.position,
        )

    def test_a_task_type(self, app: Any, engine: Orchestra) -> None:
        """A name that this process or the catalogue knows is a task type, which goes where its tasks go."""
        app.conf.task_routes = {"shop.routed": {"queue": "reports"}}
        app.amqp.flush_routes()

        @app.task(name="shop.routed", shared=False)
        def routed() -> None: ...

        _agent(app, running=1, mean_seconds=2.0)

        own, by_route = engine.explain("shop.index"), engine.explain("shop.routed")

        assert (Subject.TASK_TYPE, "nlp", "shop:nlp", 0) == (own.subject, own.requires, own.queue, own.depth)
        assert own.wait is not None
        assert 2.0 == own.wait.seconds
        assert ("reports", None, CauseKind.FOREIGN_QUEUE) == (by_route.queue, by_route.requires, kind(by_route))

    def test_a_task_type_of_the_catalogue(self, app: Any, redis_url: str) -> None:
        """A sender without the task's code asks about it all the same."""
        _agent(app)
        with app_at(redis_url, settings=quick(beat_seconds=12.0)) as sender:
            found = Orchestra(sender).explain("shop.index")

        assert (Subject.TASK_TYPE, "nlp", CauseKind.ABOUT_TO_START) == (found.subject, found.requires, kind(found))

    @pytest.mark.parametrize(
        "asked", ["gpu,mem_gb>=16", "mem_gb>=16,gpu", {"gpu", "mem_gb>=16"}, Requirement.parse("gpu,mem_gb>=16")]
    )
    def test_a_requirement(self, app: Any, engine: Orchestra, asked: Any) -> None:
        """Whatever reads as a requirement is one, also if nobody has ever asked for it."""
        _agent(app, can="gpu,mem_gb=8")

        found = engine.explain(asked)

        assert (Subject.REQUIREMENT, "gpu,mem_gb>=16", "shop:gpu+mem_gb~ge~16") == (
            found.subject,
            found.about,
            found.queue,
        )
        assert (CauseKind.NO_AGENT_SATISFIES, ("mem_gb>=16",)) == (kind(found), found.agents[0].lacks)

    @pytest.mark.parametrize(
        ("text", "nearest"),
        [(NOBODY, ()), (NOBODY.replace("-", ""), ()), ("shop.indx", ("shop.index",)), ("Billing", ()), ("x.y", ())],
    )
    def test_what_is_unknown(self, engine: Orchestra, text: str, nearest: tuple[str, ...]) -> None:
        """What looks like an id or a name is answered as one that nothing is known of, with the names near it."""
        found = engine.explain(text)

        assert (Subject.UNKNOWN, text, CauseKind.UNKNOWN, nearest) == (
            found.subject,
            found.about,
            kind(found),
            found.nearest,
        )

    @pytest.mark.parametrize("text", ["", "  ", "gpu,,", "mem_gb>=", "gpu,!gpu", "größe"])
    def test_what_can_not_be_read(self, engine: Orchestra, text: str) -> None:
        """Nothing, and what is no requirement either, is refused with a word of why."""
        with pytest.raises(ValidationError):
            engine.explain(text)

    def test_without_redis(self) -> None:
        """That Redis is away is an error, and tells where it was looked for."""
        with (
            app_at("redis://127.0.0.1:1/0", settings=quick(connect_timeout_seconds=0.2)) as app,
            pytest.raises(BrokerUnavailableError, match=r"127\.0\.0\.1:1"),
        ):
            Orchestra(app).explain(NOBODY)


class TestTasks:
    def test_a_breaker(self, app: Any, engine: Orchestra) -> None:
        """A task that waits for a breaker, in its queue or put by, is told so; not after it has closed."""

        @app.task(name="shop.call", requires={"llm"}, breaker="llm-api", shared=False)
        def call() -> int:
            return 1

        app.breakers.open("llm-api", by="ann", seconds=60)
        with agent_of(app, "llm"):
            task_id = call.delay().id
            assert CauseKind.PAUSED_BY_BREAKER is kind(engine.explain(task_id))
            put_by = call.apply_async(requires="llm").id
            until(lambda: app.breakers.states()[0].waiting == 2)

            found = engine.explain(put_by)
            assert CauseKind.PAUSED_BY_BREAKER is kind(found)
            assert found.causes[0].until is not None
            assert CauseKind.PAUSED_BY_BREAKER is kind(engine.explain("shop.call"))

            app.breakers.close("llm-api", by="ann")
            until(lambda: kind(engine.explain(put_by)) is CauseKind.SUCCEEDED)

    def test_urgency_counts(self, engine: Orchestra) -> None:
        """The position is behind what is more urgent."""
        sent = {
            urgency: engine.submit("shop.index", {}, urgency=urgency).id
            for urgency in ("low", "normal", "high", "critical")
        }

        assert [4, 3, 2, 1] == [engine.explain(task_id).position for task_id in sent.values()]

    def test_a_life(self, app: Any, engine: Orchestra) -> None:
        """From the queue to its end."""
        sent = engine.submit("shop.index", {"number": 3})
        failing = engine.submit("shop.index", {"number": -3})
        assert CauseKind.NO_AGENT_ALIVE is kind(engine.explain(sent.id))
        with agent_of(app, "nlp"):
            assert 3 == sent.get(timeout=20)
            failing.result.get(timeout=20, propagate=False)

        assert CauseKind.SUCCEEDED is kind(engine.explain(sent.id))
        failed = engine.explain(failing.id)
        assert (TaskState.FAILED, "KeyError: -3") == (failed.state, failed.causes[0].error)

    def test_purged(self, app: Any, engine: Orchestra) -> None:
        """A record without a message says so, delayed or not."""
        sent = [engine.submit("shop.index", {}).id, engine.submit("shop.index", {}, countdown=60).id]

        with app.connection_for_write() as connection:
            assert 2 == connection.default_channel.queue_purge("shop:nlp")

        assert [CauseKind.MESSAGE_GONE] * 2 == [kind(engine.explain(one)) for one in sent]


class TestFollowers:
    def test_far_back_in_a_chain(self, app: Any, engine: Orchestra) -> None:
        """The one that was sent is found however many steps are between, within reason."""
        index = app.tasks["shop.index"]
        last: Any = chain(*(index.si(number) for number in range(30))).apply_async()
        first = last
        while first.parent is not None:
            first = first.parent

        cause = engine.explain(last.id).causes[0]

        assert (CauseKind.WAITS_FOR_PARENT, (last.parent.id, first.id)) == (cause.kind, cause.tasks)

    def test_a_chord_of_many(self, app: Any, engine: Orchestra) -> None:
        """Each member that isn't done is named, in a few round trips."""
        index = app.tasks["shop.index"]
        body: Any = chord([index.si(number) for number in range(1500)], index.si()).apply_async()

        cause = engine.explain(body.id).causes[0]

        assert (CauseKind.WAITS_FOR_CHORD, {one.id for one in body.parent.results}) == (cause.kind, set(cause.tasks))

    def test_a_parent_that_failed(self, app: Any, engine: Orchestra) -> None:
        """Celery marks what follows as failed with the same error; here it's told that it was never sent."""
        index = app.tasks["shop.index"]
        last: Any = chain(index.si(-1), index.si(1)).apply_async()
        with agent_of(app, "nlp"):
            last.parent.get(timeout=20, propagate=False)

        cause = engine.explain(last.id).causes[0]

        assert (CauseKind.PARENT_ENDED, (last.parent.id,), "KeyError: -1") == (cause.kind, cause.tasks, cause.error)

    def test_a_body_of_which_a_member_failed(self, app: Any, engine: Orchestra) -> None:
        """The same for a chord."""
        index = app.tasks["shop.index"]
        body: Any = chord([index.si(1), index.si(-1)], index.si(2)).apply_async()
        with agent_of(app, "nlp"):
            body.get(timeout=20, propagate=False)

        assert CauseKind.PARENT_ENDED is kind(engine.explain(body.id))


class TestRoundTrips:
    def test_few(self, app: Any, engine: Orchestra, redis_url: str) -> None:
        """A hundred agents and a thousand tasks cost no more calls than one each, but for the pieces of the look."""
        for number in range(100):
            _agent(app, f"a{number}", can="gpu")
        sent = engine.submit_many("shop.index", [{"number": number} for number in range(1000)])
        engine.explain(sent[500].id)

        with commands_at(redis_url) as commands:
            found = engine.explain(sent[500].id)

        assert (501, 1000, 100) == (found.position, found.depth, len(found.agents))
        others = [command for command in commands if not command.startswith(("HGETALL", "LLEN", "ZCARD"))]
        assert len(others) <= 12 + 2 * 10  # for a thousand, ten steps to its place
        assert 100 + 2 == sum(command.startswith("HGETALL") for command in commands)
