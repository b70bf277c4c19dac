"""What goes the short way is what Celery would have sent, and what can't goes Celery's."""

import sys
import threading
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from celery import signals
from kombu import Exchange, Queue
from kombu.common import Broadcast
from kombu.utils.json import loads
from redis import Redis

from orchestra.amqp import OrchestraAMQP
from orchestra.app import OrchestraCelery
from orchestra.orchestra import Orchestra
from orchestra.registry import CatalogueEntry
from orchestra.store import load_script
from tests.fleets import agent_of, app_at, commands_at, quick

SHORT, LONG = load_script("submit").sha, load_script("publish").sha
ARGUMENTS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((), {}),
    ((1, "two"), {}),
    ((), {"x": None, "y": 2.5}),
    (("it's", 'a "quote"', "100 %s %", "日本\n\0"), {"{": "}"}),
    (([1, {"a": [2, [3, [4]]]}],), {"when": datetime(2030, 1, 1, tzinfo=UTC)}),
    (("x" * 3_000,), {"y": "z" * 3_000}),
]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"task_id": "mine"},
    {"requires": {"gpu", "nlp"}},
    {"urgency": "critical"},
    {"priority": 3},
    {"priority": 3.0},
    {"queue": "elsewhere"},
    {"ignore_result": True},
    {"ignore_result": False},
    {"time_limit": 5, "soft_time_limit": 4.0},
    {"on_unroutable": "dead_letter_after:60"},
    {"on_unroutable": "fallback:cpu"},
    {"requires": "gpu", "urgency": "low", "ignore_result": True},
]


@pytest.fixture
def app(redis_url: str) -> Iterator[Any]:
    """Give an app with tasks that declare nothing, something, and what is Celery's."""
    with app_at(redis_url, settings=quick(unroutable_grace_seconds=0.0)) as app:
        app.task(name="shop.plain", shared=False)(_anything)
        app.task(name="shop.nlp", requires={"nlp"}, urgency="high", timeout=30, shared=False)(_anything)
        app.task(name="shop.stock", ignore_result=True, time_limit=9, shared=False)(_anything)
        yield app


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:  # Redis, whose types have every answer awaitable as well
    """Give a client of the test's own."""
    with Redis.from_url(redis_url) as client:
        yield client


def _anything(*args: Any, **kwargs: Any) -> list[Any]:
    return [args, kwargs]


@contextmanager
def _looked_at() -> Iterator[None]:
    """Have somebody look at every message, so that all go Celery's way."""

    def look(**_: Any) -> None:
        pass

    signals.before_task_publish.connect(look)
    try:
        yield
    finally:
        signals.before_task_publish.disconnect(look)


def _scripts(url: str, act: Callable[[], object]) -> list[str]:
    """Return the digests of the scripts that an act has run."""
    with commands_at(url) as commands:
        act()
    return [command.split()[1] for command in commands if command.startswith("EVALSHA")]


def _sent(client: Any, act: Callable[[], Any]) -> tuple[str, dict[str, Any], dict[str, str]]:
    """Return the list that an act's message went to, the message, and its record, without what differs each time."""
    client.flushall()
    task_id = act().id
    (path,) = [key.decode() for key in client.keys("*") if client.type(key) == b"list" and b"{" not in key]
    message: dict[str, Any] = loads(client.lindex(path, 0))
    (record,) = client.keys("*:task:*")
    fields = {name.decode(): value.decode() for name, value in client.hgetall(record).items()}
    assert (
        task_id == message["headers"]["id"] == message["headers"]["root_id"] == message["properties"]["correlation_id"]
    )
    assert fields.pop("published") == message["properties"].pop("delivery_tag")
    assert fields.pop("submitted") == fields["history"].split("\x1f")[1]
    fields["history"] = "|".join(part for at, part in enumerate(fields["history"].split("\x1f")) if at != 1)
    for part, name in (("headers", "id"), ("headers", "root_id"), ("properties", "correlation_id")):
        del message[part][name]
    return path, {**message, "body": loads(b64decode(message["body"]))}, fields


class TestTheMessage:
    @pytest.mark.parametrize("task", ["shop.plain", "shop.nlp", "shop.stock"])
    @pytest.mark.parametrize("options", OPTIONS, ids=str)
    def test_is_celerys(self, app: Any, client: Any, task: str, options: dict[str, Any]) -> None:
        """Whatever the options and the arguments are, list, message and record are the same."""
        for args, kwargs in ARGUMENTS:

            def send(args: Any = args, kwargs: Any = kwargs) -> Any:
                return app.tasks[task].apply_async(args, kwargs, **options)

            short = _sent(client, send)
            with _looked_at():
                celerys = _sent(client, send)

            assert celerys == short

    @pytest.mark.parametrize("options", OPTIONS, ids=str)
    def test_by_name(self, app: Any, client: Any, options: dict[str, Any]) -> None:
        """So it is where a task is sent by its name, known here or not, with its arguments in a list."""
        for name in ("shop.stock", "shop.unknown"):

            def send(name: str = name) -> Any:
                return app.send_task(name, [1, "two"], {"x": 3}, **options)

            short = _sent(client, send)
            with _looked_at():
                celerys = _sent(client, send)

            assert celerys == short

    def test_of_a_batch(self, app: Any, client: Any) -> None:
        """Nor does a batch's differ."""

        def send() -> Any:
            return Orchestra(app).submit_many("shop.nlp", [{"x": [1, "two"]}], urgency="low", timeout=7)[0]

        short = _sent(client, send)
        with _looked_at():
            celerys = _sent(client, send)

        assert celerys == short

    def test_keys_and_types(self, app: Any, client: Any) -> None:
        """The JSON's own order of keys is Celery's, so that whoever compares texts finds no difference either."""
        app.tasks["shop.plain"].delay(1)
        with _looked_at():
            app.tasks["shop.plain"].delay(1)
        celerys, short = (loads(text) for text in client.lrange("celery\x06\x166", 0, -1))

        assert [*celerys, *celerys["headers"], *celerys["properties"]] == [
            *short,
            *short["headers"],
            *short["properties"],
        ]

    def test_a_threads_own_reply_queue(self, app: Any, client: Any) -> None:
        """A sender in another thread has another `reply_to`, as with Celery."""
        task = app.tasks["shop.plain"]
        task.delay()
        thread = threading.Thread(target=task.delay)
        thread.start()
        thread.join()
        second, first = (loads(text)["properties"]["reply_to"] for text in client.lrange("celery\x06\x166", 0, -1))

        assert app.thread_oid == first != second

    def test_of_a_task_by_a_task(self, app: Any) -> None:
        """What a task sends has that as its parent and root, and is its child."""
        plain = app.tasks["shop.plain"]

        @app.task(name="shop.sender", bind=True, shared=False)
        def sender(self: Any) -> list[Any]:
            return [plain.delay().id, self.request.id]

        @app.task(name="shop.told", bind=True, shared=False)
        def told(self: Any) -> list[Any]:
            return [self.request.parent_id, self.request.root_id]

        @app.task(name="shop.asker", shared=False)
        def asker() -> list[Any]:
            told.delay().forget()
            return []

        with agent_of(app):
            result = sender.delay()
            child, parent = result.get(timeout=20)

            assert [child] == [one.id for one in result.children]
            assert parent == result.id
            assert result.children[0].get(timeout=20) == [[], {}]
            outer = asker.delay()
            outer.get(timeout=20)
            assert [outer.id, outer.id] == outer.children[0].get(timeout=20)


class TestWhichWay:
    def test_the_short_one(self, app: Any, redis_url: str) -> None:
        """Nearly all calls take it."""
        calls: list[Callable[[], object]] = [
            lambda: app.tasks["shop.plain"].delay(1),
            lambda: app.tasks["shop.nlp"].apply_async(requires="gpu"),
            lambda: app.tasks["shop.stock"].s(1).apply_async(),
            lambda: app.send_task("shop.unknown"),
            lambda: Orchestra(app).submit("shop.nlp", {}, timeout=5),
            lambda: Orchestra(app).submit_many("shop.nlp", [{}]),
        ]
        for call in calls:
            call()

            assert [SHORT] == _scripts(redis_url, call)

    @pytest.mark.parametrize(
        "options",
        [
            {"countdown": 5},
            {"eta": datetime.now(UTC) + timedelta(hours=1)},
            {"expires": 60},
            {"headers": {"mine": 1}},
            {"compression": "zlib"},
            {"shadow": "other"},
            {"retry": False},
            {"group_id": "g"},
            {"root_id": "r"},
            {"reply_to": "there"},
            {"delivery_mode": 1},
            {"queue": Queue("mine")},
            {"stamped_headers": ["stamp"], "stamp": "1"},
            {"idempotency_key": "k"},
            {"retries": 1},
        ],
        ids=str,
    )
    def test_celerys(self, app: Any, redis_url: str, options: dict[str, Any]) -> None:
        """What a template doesn't express goes by the script that knows all."""
        task = app.tasks["shop.plain"]

        assert SHORT not in _scripts(redis_url, lambda: task.apply_async((1,), **options))

    def test_links(self, app: Any, redis_url: str) -> None:
        """So does what has something behind it."""
        plain = app.tasks["shop.plain"]

        assert SHORT not in _scripts(redis_url, lambda: plain.apply_async(link=plain.s()))
        assert SHORT not in _scripts(redis_url, (plain.s() | plain.s()).apply_async)

    def test_a_task_that_expires(self, app: Any, client: Any) -> None:
        """A time that Celery computes from what a task declares isn't kept in a template."""
        task = app.task(name="shop.expiring", expires=60, shared=False)(_anything)
        app.send_task("shop.expiring")
        app.send_task("shop.expiring")
        second, first = (loads(text)["headers"]["expires"] for text in client.lrange("celery\x06\x166", 0, -1))

        assert first < second
        assert task.delay().id

    def test_signals(self, app: Any, redis_url: str) -> None:
        """A receiver of either signal is called, with what it's always called with, and may change the headers."""
        seen: list[Any] = []

        def before(sender: str, headers: dict[str, Any], **_: Any) -> None:
            headers["seen"] = True
            seen.append(sender)

        def after(sender: str, **_: Any) -> None:
            seen.append(sender)

        app.tasks["shop.plain"].delay()
        signals.before_task_publish.connect(before)
        assert SHORT not in _scripts(redis_url, app.tasks["shop.plain"].delay)
        signals.before_task_publish.disconnect(before)
        signals.after_task_publish.connect(after)
        app.tasks["shop.nlp"].delay()
        signals.after_task_publish.disconnect(after)

        assert ["shop.plain", "shop.nlp"] == seen
        assert [SHORT] == _scripts(redis_url, app.tasks["shop.plain"].delay)

    def test_routes(self, redis_url: str) -> None:
        """A table of routes is followed; a function may route each call elsewhere, so it's asked each time."""

        def by_argument(name: str, args: Any, *_: Any, **__: Any) -> dict[str, str] | None:
            return {"queue": f"q{args[0]}"} if name == "shop.plain" else None

        with app_at(redis_url, changes={"task_routes": {"shop.*": {"queue": "table"}}}) as app:
            task = app.task(name="shop.plain", shared=False)(_anything)
            queues = [app.state.read(task.delay(number).id).queue for number in range(2)]
            assert ["table"] * 2 == queues
            app.conf.update(task_routes=[by_argument])
            queues = [app.state.read(task.delay(number).id).queue for number in range(2)]

        assert ["q0", "q1"] == queues

    def test_exchanges(self, redis_url: str, client: Any) -> None:
        """What goes by an exchange goes by it as ever, once and with its arguments; no sample gets out."""
        left = Queue("left", Exchange("many", type="topic"), routing_key="shop.#")
        changes = {
            "task_queues": [left, Broadcast("all")],
            "task_routes": {"shop.plain": {"queue": "left", "routing_key": "shop.x"}, "shop.told": {"queue": "all"}},
        }
        with app_at(redis_url, changes=changes) as app:
            with app.producer_pool.acquire() as producer:
                for queue in app.amqp.queues.values():
                    queue(producer.channel).declare()
            plain = app.task(name="shop.plain", shared=False)(_anything)
            told = app.task(name="shop.told", shared=False)(_anything)
            with client.pubsub() as listener:
                listener.psubscribe("*all*")
                for number in range(2):
                    plain.delay(number)
                    told.delay(number)
                heard: list[Any] = []
                while len(heard) < 2:
                    message = listener.get_message(timeout=5)
                    assert message is not None
                    heard += [message] if message["type"] == "pmessage" else []
                assert listener.get_message(timeout=0.2) is None

        bodies = [loads(b64decode(loads(text)["body"])) for text in client.lrange("left\x06\x166", 0, -1)]
        assert [[1], [0]] == [body[0] for body in bodies]
        assert [[0], [1]] == [loads(b64decode(loads(one["data"])["body"]))[0] for one in heard]

    def test_messages_of_the_projects_own(self, redis_url: str) -> None:
        """A project that makes messages by a class of its own has them made by that each time."""
        made: list[str] = []

        class Own(OrchestraAMQP):
            def as_task_v2(self, task_id: str, *args: Any, **kwargs: Any) -> Any:
                made.append(task_id)
                return super().as_task_v2(task_id, *args, **kwargs)

        with app_at(redis_url, amqp=Own) as app:
            task = app.task(name="shop.plain", shared=False)(_anything)
            ids = [task.delay().id for _ in range(2)]

        assert ids == made


class TestChanges:
    def test_of_settings(self, app: Any, redis_url: str, client: Any) -> None:
        """A setting that changes counts from the next call on, by whichever way it is set."""
        plain = app.tasks["shop.plain"]
        plain.delay()

        app.conf.task_send_sent_event = True
        assert SHORT not in _scripts(redis_url, plain.delay)
        app.conf.update(task_send_sent_event=False)
        assert [SHORT] == _scripts(redis_url, plain.delay)
        app.conf["task_always_eager"] = True
        assert [[7], {}] == [*map(list, plain.delay(7).result[:1]), plain.delay(7).result[1]]
        app.conf.task_always_eager = False
        app.conf.task_repr_maxlevels = 1
        plain.delay([1])
        assert "([...],)" == loads(client.lindex("celery\x06\x166", 0))["headers"]["argsrepr"]

    def test_of_a_module(self, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Also in the module that the configuration was read from, which Celery reads anew each time."""
        module = ModuleType("settings_of_shop")
        module.broker_url = redis_url  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "settings_of_shop", module)
        _check_eager(lambda app: app.config_from_object("settings_of_shop"), module)

    def test_of_an_object(self, redis_url: str) -> None:
        """Or in any object, such as Django's settings."""
        given = SimpleNamespace(broker_url=redis_url)
        _check_eager(lambda app: app.config_from_object(given), given)

    def test_of_a_task(self, app: Any, client: Any) -> None:
        """What a task says of its results is read at each call, as with Celery."""
        plain = app.tasks["shop.plain"]
        for ignored in (True, False):
            plain.ignore_result = ignored
            plain.delay()

            assert ignored is loads(client.lindex("celery\x06\x166", 0))["headers"]["ignore_result"]

    def test_of_what_the_catalogue_tells(self, redis_url: str) -> None:
        """A task that agents publish with another requirement is sent elsewhere from then on."""
        with app_at(redis_url, settings=quick(catalogue_ttl_seconds=0.0)) as app:
            queues = []
            for requires in ("gpu", "cpu"):
                entry = CatalogueEntry(requires=requires)
                app.registry.register("a@h", "1", about={}, tasks={"shop.far": entry}, queues=[])
                queues.append(app.state.read(app.send_task("shop.far").id).queue)

        assert ["shop:gpu", "shop:cpu"] == queues


def _check_eager(configure: Callable[[Any], object], settings: Any) -> None:
    app: Any = OrchestraCelery("shop", set_as_current=False, settings=quick())
    configure(app)
    try:
        task = app.task(name="shop.plain", shared=False)(_anything)
        assert "PENDING" == task.delay().state
        settings.task_always_eager = True
        assert "SUCCESS" == task.delay().state
        settings.task_always_eager = False
        assert "PENDING" == task.delay().state
    finally:
        app.close()
