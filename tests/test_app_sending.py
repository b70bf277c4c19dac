"""How an app sends: every way is routed, given its urgency, checked, and told plainly when it fails."""

import re
from base64 import b64decode
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import chain, chord, group
from kombu.exceptions import OperationalError
from kombu.utils.json import loads
from redis import Redis

from orchestra.broker import SubmissionError
from orchestra.exceptions import ConfigurationError, ValidationError
from orchestra.registry import CatalogueEntry
from orchestra.submission import Declared
from orchestra.types import TaskState, Urgency
from tests.fleets import agent_of, app_at, stock_at

NOWHERE = "redis://:secret@127.0.0.1:1/0"


@pytest.fixture
def app(redis_url: str) -> Iterator[Any]:
    """Give an app with a task for agents that can do something, and one for any."""
    with app_at(redis_url) as app:
        _declare(app)
        yield app


@pytest.fixture
def client(redis_url: str) -> Iterator[Redis]:
    """Give a client of the test's own."""
    with Redis.from_url(redis_url) as client:
        yield client


def _declare(app: Any) -> None:
    @app.task(name="shop.index", requires={"nlp"}, shared=False)
    def index(number: int = 0) -> int:
        return number

    @app.task(name="shop.plain", shared=False)
    def plain(number: Any = 0, *_more: Any) -> Any:
        return number


def _queue(app: Any, result: Any) -> str:
    """Return the queue that a submitted task is in."""
    return str(app.state.read(result.id).queue)


def _message(client: Redis, queue: str, step: str = "\x06\x166") -> dict[str, Any]:
    """Return the newest message of a queue, with its body decoded."""
    raw: Any = client.lindex(f"{queue}{step}", 0)
    message: dict[str, Any] = loads(raw)
    return {**message, "body": loads(b64decode(message["body"]))}


class TestRouting:
    def test_by_requirement(self, app: Any) -> None:
        """A task goes to the queue of its requirement, and to the default one without."""
        assert "shop:nlp" == _queue(app, app.tasks["shop.index"].delay())
        assert "celery" == _queue(app, app.tasks["shop.plain"].delay())
        assert "shop:nlp" == _queue(app, app.send_task("shop.index"))

    def test_general_is_the_default_queue(self, redis_url: str) -> None:
        """`general` is the app's `task_default_queue`, whatever that is called."""
        with app_at(redis_url, changes={"task_default_queue": "work"}) as app:
            _declare(app)

            assert "work" == _queue(app, app.tasks["shop.plain"].delay())
            assert "work" == _queue(app, app.tasks["shop.index"].apply_async(requires="general"))

    def test_a_call_may_ask_for_more(self, app: Any, client: Redis) -> None:
        """`requires=` of a call takes the place of the task's own, in whatever form it is written."""
        for requires in ({"gpu", "nlp"}, "nlp,gpu", ["nlp", "gpu", "gpu"]):
            result = app.tasks["shop.index"].apply_async(requires=requires)
            assert "shop:gpu+nlp" == _queue(app, result)

        assert "gpu,nlp" == _message(client, "shop:gpu+nlp")["headers"]["requires"]
        assert "shop:gpu" == _queue(app, app.tasks["shop.plain"].s().set(requires={"gpu"}).apply_async())
        assert "shop:gpu" == _queue(app, app.send_task("shop.unknown", requires={"gpu"}))

    def test_an_explicit_queue_wins(self, app: Any) -> None:
        """What a caller routes itself is left alone; both at once can't be."""
        assert "mine" == _queue(app, app.tasks["shop.index"].apply_async(queue="mine"))
        with pytest.raises(ValidationError, match="exclude each other"):
            app.tasks["shop.index"].apply_async(queue="mine", requires="gpu")

    def test_the_projects_routes_win(self, redis_url: str) -> None:
        """`task_routes` come before what a task declares, and behind what a call asks for."""
        routes = [{"shop.index": {"queue": "mine"}}, _route]
        with app_at(redis_url, changes={"task_routes": routes}) as app:
            _declare(app)

            assert "mine" == _queue(app, app.tasks["shop.index"].delay())
            assert "shop:gpu" == _queue(app, app.tasks["shop.index"].apply_async(requires="gpu"))
            assert "by-function" == _queue(app, app.send_task("shop.functional"))

    def test_map_and_starmap_go_by_their_inner_task(self, app: Any) -> None:
        """`celery.map` itself requires nothing; what it maps does."""
        index = app.tasks["shop.index"]

        assert "shop:nlp" == _queue(app, index.map([1, 2]).apply_async())
        assert "shop:nlp" == _queue(app, index.starmap([(1,), (2,)]).apply_async())
        assert "shop:gpu" == _queue(app, index.map([1, 2]).apply_async(requires={"gpu"}))
        assert "celery" == _queue(app, app.tasks["shop.plain"].map([1, 2]).apply_async())

    def test_signatures_inside_carry_canonical_text(self, app: Any, client: Redis) -> None:
        """A set can't travel as JSON: requirements in links, chains, chords and arguments become text."""
        plain, index = app.tasks["shop.plain"], app.tasks["shop.index"]
        demanding = plain.si().set(requires={"nlp", "gpu"})

        index.apply_async(link=demanding.clone(), link_error=[demanding.clone()])
        embedded = _message(client, "shop:nlp")["body"][2]
        assert "gpu,nlp" == embedded["callbacks"][0]["options"]["requires"]
        assert "gpu,nlp" == embedded["errbacks"][0]["options"]["requires"]

        chain(index.si(), demanding.clone(), group(demanding.clone(), plain.si())).apply_async()
        embedded = _message(client, "shop:nlp")["body"][2]
        assert 2 == str(embedded["chain"]).count("'requires': 'gpu,nlp'")

        chord([index.si()], demanding.clone()).apply_async()
        embedded = _message(client, "shop:nlp")["body"][2]
        assert "gpu,nlp" == embedded["chord"]["options"]["requires"]

        plain.delay({"next": [demanding.clone()]})
        arguments = _message(client, "celery")["body"][0]
        assert "gpu,nlp" == arguments[0]["next"][0]["options"]["requires"]

    def test_the_rest_of_a_canvas_by_one_who_does_not_know_it(self, app: Any, redis_url: str, client: Redis) -> None:
        """An agent without a follower's code, before any agent has published it, sends it where it belongs."""
        (app.tasks["shop.plain"].si() | app.tasks["shop.index"].si(7)).apply_async()
        (follower,) = _message(client, "celery")["body"][2]["chain"]

        with app_at(redis_url) as agent:
            sent = agent.signature(follower | {"task": "shop.unpublished"}).apply_async()

            assert "shop:nlp" == _queue(agent, sent)

    def test_declared_by_the_catalogue(self, app: Any) -> None:
        """A sender without a task's code has its requirement, urgency and arguments from what agents published."""
        entry = CatalogueEntry(
            requires="gpu", urgency="high", enforced=True, arguments=app.tasks["shop.index"].arguments.to_catalogue()
        )
        app.registry.register("a@h", "1", about={}, tasks={"shop.far": entry}, queues=[])

        result = app.send_task("shop.far", (3,))

        assert "shop:gpu" == _queue(app, result)
        assert Urgency.HIGH is app.declared("shop.far").urgency
        with pytest.raises(ValidationError, match="number"):
            app.send_task("shop.far", ("three",))

    def test_unknown_tasks_go_to_the_default_queue(self, app: Any) -> None:
        """Neither code nor catalogue knows the task: Celery's default holds."""
        assert "celery" == _queue(app, app.send_task("shop.unknown"))
        assert app.declared("shop.unknown") == app.declared("celery.ping") == Declared()

    def test_a_broker_that_is_no_redis_still_sends(self) -> None:
        """An app over `memory://`, as projects test with, sends known and unknown tasks by requirement."""
        with app_at("memory://") as app:
            _declare(app)

            for result in (app.tasks["shop.index"].delay(1), app.send_task("shop.unknown")):
                assert result.id
            with app.connection_for_read() as connection:
                message: Any = connection.SimpleQueue("shop:nlp").get(block=False)
                assert "shop.index" == message.headers["task"]

    def test_before_the_app_is_finalized(self, redis_url: str) -> None:
        """With `autofinalize=False`, a name is sent without finalizing the app, as Celery's own look-up does."""
        with app_at(redis_url, autofinalize=False) as app:
            app.task(name="shop.index", requires="gpu", shared=False)(_number)
            app.finalize()

            assert "shop:gpu" == _queue(app, app.send_task("shop.index"))


class TestUrgency:
    @pytest.mark.parametrize(("urgency", "priority"), [("critical", 0), ("High", 3), (Urgency.NORMAL, 6), ("low", 9)])
    def test_names_stand_for_kombus_steps(self, app: Any, urgency: Any, priority: int) -> None:
        """An urgency is one of the four priorities that kombu keeps lists for."""
        assert priority == _priority(app, urgency=urgency)

    def test_priority_keeps_celerys_meaning(self, app: Any) -> None:
        """`priority=n` is handed through, and normal is what a call without either gets."""
        assert 4 == _priority(app, priority=4)
        assert 6 == _priority(app)

    def test_both_at_once(self, app: Any) -> None:
        """Two words for one thing contradict each other."""
        with pytest.raises(ValidationError, match="urgency= or priority=, not both"):
            app.tasks["shop.index"].apply_async(urgency="high", priority=3)

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"urgency": "asap"}, "'asap' is no urgency; give one of: critical, high, normal, low"),
            ({"urgency": 3}, "3 is no urgency"),
            ({"priority": "high"}, "'high' is no priority: give a number from 0"),
            ({"priority": "3"}, "'3' is no priority"),
            ({"priority": True}, "True is no priority"),
            ({"priority": float("nan")}, "nan is no priority"),
            ({"priority": [3]}, "urgency=: critical, high, normal, low"),
        ],
    )
    def test_nonsense_is_refused_by_every_way(
        self, app: Any, client: Redis, options: dict[str, Any], words: str
    ) -> None:
        """An unknown name, and a priority that is no number, raise where the call is made, and Redis isn't touched."""
        index = app.tasks["shop.index"]
        for send in (
            lambda: index.apply_async(**options),
            lambda: index.s().set(**options).apply_async(),
            lambda: index.signature(options=options).delay(),
            lambda: index.map([1]).set(**options).apply_async(),
            lambda: group(index.s()).apply_async(**options),
            lambda: chain(index.si(), index.si()).apply_async(**options),
            lambda: index.apply(**options),
            lambda: app.send_task("shop.index", **options),
            lambda: app.send_task("shop.unknown", **options),
        ):
            with pytest.raises(ValidationError, match=re.escape(words)) as caught:
                send()
            assert " was not submitted" in str(caught.value)

        assert [] == client.keys("*")

    def test_a_priority_beyond_the_scale(self, app: Any) -> None:
        """What stock Celery takes for the nearest end of its scale is handed through."""
        assert [-3, 12] == [_priority(app, priority=priority) for priority in (-3, 12)]

    @pytest.mark.parametrize("priority", ["high", True])
    def test_a_class_that_declares_nonsense(self, redis_url: str, priority: Any) -> None:
        """A task's own priority, in Celery's words, is a number too."""
        with app_at(redis_url) as app, pytest.raises(ConfigurationError, match=r"Task shop\.bad: .* is no priority"):
            app.task(name="shop.bad", priority=priority, shared=False)(_number)

    def test_declared_by_the_task(self, redis_url: str) -> None:
        """A task's own urgency holds until a call says something else, the project's default priority or not."""
        for changes in ({}, {"task_default_priority": 5}):
            with app_at(redis_url, changes=changes) as app:
                app.task(name="shop.index", urgency="high", shared=False)(_number)
                app.task(name="shop.plain", shared=False)(_number)

                assert 3 == _priority(app)
                assert 9 == _priority(app, urgency="low")
                assert 1 == _priority(app, priority=1)
                assert 0 == _priority(app, "shop.plain", urgency="critical")
                assert changes.get("task_default_priority", 6) == _priority(app, "shop.plain")

    def test_a_parents_priority(self, redis_url: str) -> None:
        """With `task_inherit_parent_priority` a parent's priority comes before our default, and behind what is said."""
        with app_at(redis_url, changes={"task_inherit_parent_priority": True}) as app:

            @app.task(name="shop.child", bind=True, shared=False)
            def child(self: Any) -> Any:
                return self.request.delivery_info["priority"]

            @app.task(name="shop.hurry", bind=True, urgency="critical", shared=False)
            def hurry(self: Any) -> Any:
                return self.request.delivery_info["priority"]

            @app.task(name="shop.parent", shared=False)
            def parent() -> list[str]:
                return [child.delay().id, child.apply_async(urgency="high").id, hurry.delay().id]

            with agent_of(app):
                ids = parent.apply_async(priority=9).get(timeout=10)
                chained = chain(parent.si().set(priority=9), child.si().set(urgency="high")).apply_async()

                assert [9, 3, 0] == [app.AsyncResult(one).get(timeout=10) for one in ids]
                assert 3 == chained.get(timeout=10)


class TestSending:
    def test_arguments_by_place(self, app: Any) -> None:
        """`send_task` keeps Celery's positional parameters: countdown, eta, task id."""
        app.send_task("shop.index", (1,), {}, None, None, "my-own-id")

        assert TaskState.SUBMITTED is app.state.read("my-own-id").state

    def test_enforced_arguments(self, app: Any, client: Redis) -> None:
        """A call that doesn't fit a task with an option of ours is refused, and Redis isn't touched."""
        for send in (
            lambda: app.tasks["shop.index"].delay("one"),
            lambda: app.send_task("shop.index", ("one",)),
            lambda: app.tasks["shop.index"].s("one").apply_async(),
            lambda: app.signature("shop.index", ("one",)).delay(),
        ):
            with pytest.raises(ValidationError, match=r"shop\.index was not submitted: number:"):
                send()

        assert [] == client.keys("*")

    def test_other_tasks_warn_once(self, app: Any, caplog: pytest.LogCaptureFixture) -> None:
        """A task that declares nothing is sent all the same; the log says so once."""

        @app.task(name="shop.loose", shared=False)
        def loose(number: int) -> None: ...

        for _ in range(3):
            loose.delay("one")

        remarks = [record for record in caplog.records if "arguments don't fit type hints" in record.getMessage()]
        assert 1 == len(remarks)
        assert "shop.loose" in remarks[0].getMessage()
        assert 3 == sum(app.registry.depths(["celery"], steps=app.priority_steps))

    def test_the_message_is_celerys(self, app: Any, client: Redis) -> None:
        """Protocol 2 as ever, sent straight to its queue: stock tools and workers read it."""
        app.tasks["shop.index"].apply_async((3,), headers={"mine": 1}, shadow="shown")

        message = _message(client, "shop:nlp")
        assert [[3], {}] == message["body"][:2]
        assert {"lang", "task", "id", "root_id", "argsrepr", "retries", "origin"} <= set(message["headers"])
        assert (1, "shown") == (message["headers"]["mine"], message["headers"]["shadow"])
        assert {"exchange": "", "routing_key": "shop:nlp"} == message["properties"]["delivery_info"]

    def test_an_unreachable_broker(self) -> None:
        """The error names host and port, not the password, and is what Celery's users catch."""
        with app_at(NOWHERE) as app:
            _declare(app)
            for send in (app.tasks["shop.index"].delay, lambda: app.send_task("shop.unknown")):
                with pytest.raises(SubmissionError, match=r"was not submitted: Redis at 127\.0\.0\.1:1") as caught:
                    send()
                assert isinstance(caught.value, OperationalError)
                assert "secret" not in str(caught.value)

    def test_a_retry_policy_of_the_callers(self) -> None:
        """`retry=False` and `retry_policy=` mean what they mean in Celery."""
        seen: list[Exception] = []
        policy = {"max_retries": 1, "interval_start": 0, "errback": lambda error, _interval: seen.append(error)}
        with app_at(NOWHERE) as app:
            _declare(app)
            with pytest.raises(SubmissionError):
                app.tasks["shop.index"].apply_async(retry=False, retry_policy=policy)
            assert [] == seen
            with pytest.raises(SubmissionError):
                app.tasks["shop.index"].apply_async(retry_policy=policy)
            assert seen

    def test_beside_a_stock_app(self, redis_url: str, client: Redis) -> None:
        """A project goes back by changing one line: both apps send the same to the default queue."""
        with app_at(redis_url) as app, stock_at(redis_url) as stock:
            for one in (stock, app):
                one.send_task("shop.unknown", (1,))

        assert 1 == client.llen("celery") == client.llen("celery\x06\x166")

    def test_expiry_and_eta(self, app: Any, client: Redis) -> None:
        """Celery's times travel as ever."""
        moment = datetime.now(UTC) + timedelta(hours=1)

        app.tasks["shop.index"].apply_async(eta=moment, expires=moment + timedelta(hours=1))

        delayed: Any = client.zrange(app.store.keys.delayed("shop:nlp"), 0, 0)
        headers = loads(delayed[0].split(b"\n", 2)[2])["headers"]
        assert moment.isoformat()[:19] == headers["eta"][:19]
        assert headers["expires"] > headers["eta"]


def _priority(app: Any, task: str = "shop.index", **options: Any) -> int:
    """Return the priority that a call is sent with."""
    result = app.tasks[task].apply_async(**options)
    with app.connection_for_read() as connection, connection.SimpleQueue(_queue(app, result)) as queue:
        message = queue.get(timeout=5)
        message.ack()
    assert result.id == message.headers["id"]
    return int(message.properties["priority"])


def _route(name: str, *_: Any, **__: Any) -> dict[str, str] | None:
    return {"queue": "by-function"} if name == "shop.functional" else None


def _nothing() -> None: ...


def _number(number: int = 0) -> int:
    return number


class TestSerializers:
    def test_other_serializers_are_refused(self, app: Any) -> None:
        """An agent would discard the message, and whoever waits for it would wait for ever."""
        with pytest.raises(ValidationError, match="serializer='yaml'"):
            app.send_task("shop.index", (3,), serializer="yaml")

        @app.task(name="shop.pickled", serializer="pickle", shared=False)
        def pickled() -> None: ...

        with pytest.raises(ConfigurationError, match=r"Task shop\.pickled: serializer='pickle'"):
            pickled.delay()

    def test_a_queue_of_others_may_take_what_it_likes(self, app: Any) -> None:
        """Where the caller names the queue, other workers may serve it."""
        assert app.send_task("other.task", serializer="json", queue="theirs").id
        assert app.send_task("other.task", (1,), serializer="yaml", queue="theirs").id
