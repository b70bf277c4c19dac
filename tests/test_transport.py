"""The kombu transport: what is written with a message, which connections are ours, and the order of queues."""

import os
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
from kombu import Connection
from kombu.transport import TRANSPORT_ALIASES
from redis import Redis

from orchestra.embedded import EmbeddedServer
from orchestra.store import text_of
from orchestra.transport import (
    FleetConnection,
    SentinelChannel,
    SentinelTransport,
    Transport,
)
from orchestra.types import TaskState
from tests.fleets import agent_of, app_at, stock_at


@pytest.fixture
def app(redis_url: str) -> Iterator[Any]:
    """Give an app with one task."""
    with app_at(redis_url) as app:
        _declare(app)
        yield app


@pytest.fixture
def client(redis_url: str) -> Iterator[Redis]:
    """Give a client of the test's own."""
    with Redis.from_url(redis_url) as client:
        yield client


def _declare(app: Any) -> Any:
    @app.task(name="shop.add", requires={"nlp"}, shared=False)
    def add(x: int, y: int) -> int:
        return x + y

    return add


def _keys(client: Redis) -> set[str]:
    keys: Any = client.keys("*")
    return {text_of(key) for key in keys}


class TestConnection:
    @pytest.mark.parametrize(
        ("url", "transport"),
        [
            ("redis://:secret@127.0.0.1:6379/3", Transport),
            ("rediss://:secret@redis.example:6380/0?ssl_cert_reqs=required", Transport),
            ("redis+socket://:secret@/run/redis.sock", Transport),
            ("sentinel://:secret@127.0.0.1:26379/0;sentinel://127.0.0.2:26379/0", SentinelTransport),
            ("redis://127.0.0.1:1/0;redis://127.0.0.1:2/0", Transport),
        ],
    )
    def test_redis_schemes_get_our_transport(self, url: str, transport: type) -> None:
        """Every scheme of Redis is served by our transport, a list of servers too, and the URL stays what it was."""
        connection = FleetConnection(url)

        assert connection.get_transport_cls() is transport
        assert connection.as_uri().startswith(url.partition(":")[0])
        assert "secret" not in connection.as_uri()
        assert "orchestra" not in connection.as_uri()

    @pytest.mark.parametrize(
        "url",
        [
            "redis+socket://:hush-hush@/run/redis.sock",
            "sentinel://:hush-hush@127.0.0.1:26379/0;sentinel://:hush-hush@127.0.0.2:26379/0",
            "redis://:hush-hush@127.0.0.1:1/0;redis://:hush-hush@127.0.0.1:2/0",
        ],
    )
    def test_statistics_hold_no_secret(self, url: str) -> None:
        """Whoever asks agents for statistics, Flower too, reads no secret in them; a copy still connects with it."""
        connection = FleetConnection(url, transport_options={"sentinel_kwargs": {"password": "hush-hush"}})
        info = {name: value for name, value in connection.info().items() if name != "password"}  # as Celery tells it

        assert "hush-hush" not in repr(info)
        assert {"sentinel_kwargs": {"password": "***"}} == info["transport_options"]
        copy: Any = pickle.loads(pickle.dumps(connection))
        assert (connection.hostname, connection.password, connection.alt) == (copy.hostname, copy.password, copy.alt)
        assert {"sentinel_kwargs": {"password": "hush-hush"}} == copy.transport_options

    def test_uri_is_the_plain_one(self) -> None:
        """Flower's broker page reads a plain Redis URL off the connection."""
        with app_at("redis://:secret@127.0.0.1:6379/3") as app:
            assert "redis://:secret@127.0.0.1:6379/3" == app.connection_for_read().as_uri(include_password=True)
            assert "redis://:**@127.0.0.1:6379/3" == app.connection_for_write().as_uri()

    def test_other_schemes_stay_kombus(self) -> None:
        """A broker that isn't Redis is left alone."""
        assert Connection("memory://").get_transport_cls() is FleetConnection("memory://").get_transport_cls()

    def test_sentinel_has_our_channel(self) -> None:
        """The channel behind Sentinel writes records as well, and knows kombu's Sentinel options and ours."""
        assert SentinelTransport.Channel is SentinelChannel
        assert {"master_name", "orchestra_fleet"} <= set(SentinelChannel.from_transport_options)

    def test_kombus_table_is_untouched(self) -> None:
        """Stock apps find the stock transport in kombu's table."""
        assert "kombu.transport.redis:Transport" == TRANSPORT_ALIASES["redis"]
        assert Connection("redis://").get_transport_cls().__module__ == "kombu.transport.redis"

    def test_a_stock_app_beside_ours(self, app: Any, redis_url: str, client: Redis) -> None:
        """A stock app in the same process to the same URL keeps the stock transport, and shares no pool with ours."""
        with stock_at(redis_url) as stock:
            stock.send_task("stock.ping")
            app.send_task("shop.add", (1, 2))

            assert stock.pool is not app.pool
            assert "kombu.transport.redis" == type(stock.connection_for_write().transport).__module__
            assert isinstance(app.connection_for_write().transport, Transport)
            assert 1 == client.llen("celery")

    def test_pooled_connections_are_ours(self, app: Any) -> None:
        """A pool makes connections of its own kind."""
        with app.pool.acquire() as connection:
            assert isinstance(connection, FleetConnection)
            assert isinstance(connection.transport, Transport)


class TestPrefix:
    def test_round_trip(self, redis_url: str, client: Redis) -> None:
        """With `global_keyprefix`, every key of the queues and of ours carries it, and everything still works."""
        options = {"broker_transport_options": {"global_keyprefix": "pre:"}}
        with app_at(redis_url, changes=options) as app:
            add = _declare(app)
            with agent_of(app, "nlp"):
                result = add.delay(1, 2)

                assert 3 == result.get(timeout=10)
                assert TaskState.SUCCEEDED is app.state.read(result.id).state
                assert ["agent@test"] == [agent.name for agent in app.registry.agents()]
            waiting = add.delay(1, 2)

            assert [0, 1] == app.registry.depths(["celery", "shop:nlp"], steps=app.priority_steps)
            assert TaskState.SUBMITTED is app.state.read(waiting.id).state
        results = {f"celery-task-meta-{result.id}"}
        assert all(key.startswith("pre:") for key in _keys(client) - results)


class TestSockets:
    @pytest.mark.filterwarnings("ignore:Call to deprecated setex")  # Celery's own, in its backend
    def test_round_trip(self, redis_server: EmbeddedServer, redis_url: str, client: Redis) -> None:
        """`redis+socket://` is a broker and a result backend like any other."""
        path: Any = client.config_get("unixsocket")
        password = redis_url.partition("@")[0].rpartition(":")[2]
        with app_at(f"redis+socket://:{password}@{path['unixsocket']}") as app:
            add = _declare(app)
            with agent_of(app, "nlp"):
                result = add.delay(1, 2)

                assert 3 == result.get(timeout=10)
            assert TaskState.SUCCEEDED is app.state.read(result.id).state
            assert app.broker_location().startswith("socket:/")
            assert password not in app.broker_location()


class TestFailover:
    def test_a_dead_first_server(self, redis_url: str) -> None:
        """Of a list of brokers the next one is taken, for the message and for the records."""
        with app_at("redis://127.0.0.1:1/0") as alone, app_at(f"redis://127.0.0.1:1/0;{redis_url}") as app:
            assert alone.pool is not app.pool  # kombu would tell them apart by the first server only

            result = _declare(app).delay(1, 2)

            assert TaskState.SUBMITTED is app.state.read(result.id).state


class TestQueueOrder:
    def test_a_project_may_choose_another_order(self) -> None:
        """`queue_order_strategy` in the transport's options stays the project's."""
        options = {"broker_transport_options": {"queue_order_strategy": "sorted"}}
        with app_at("redis://127.0.0.1:1/0", changes=options) as app:
            assert "sorted" == app.connection_for_read().transport_options["queue_order_strategy"]

    def test_an_agent_takes_scarce_work_first(self, app: Any) -> None:
        """Within one urgency, what asks for more is delivered before what anyone could do."""
        order = []

        @app.task(name="shop.note", shared=False)
        def note(word: str) -> None:
            order.append(word)

        @app.task(name="shop.rare", requires="gpu,nlp", shared=False)
        def rare() -> None:
            order.append("scarce")

        for _ in range(3):
            note.delay("general")
            rare.delay()
        note.apply_async(("now",), urgency="critical")
        with agent_of(app, "general,gpu,nlp", prefetch_multiplier=1):
            note.apply_async(("last",), urgency="low").get(timeout=10)

        assert ["now", "scarce", "scarce", "scarce"] == order[:4]
        assert "last" == order[-1]


class TestForks:
    def test_a_child_connects_for_itself(self, app: Any) -> None:
        """After a fork the child has connections of its own: both sides go on, and no reply is mixed up."""
        result = app.tasks["shop.add"].delay(1, 2)
        assert TaskState.SUBMITTED is app.state.read(result.id).state

        child = os.fork()
        if child == 0:  # a child that raised would run the rest of the tests
            code = 1
            try:
                known = all(app.state.read(result.id).queue == "shop:nlp" for _ in range(50))
                app.tasks["shop.add"].delay(3, 4)
                code = 0 if known else 2
            finally:
                os._exit(code)
        names = {app.state.read(result.id).name for _ in range(50)}
        _, status = os.waitpid(child, 0)

        assert {"shop.add"} == names
        assert 0 == os.waitstatus_to_exitcode(status)
        assert [2] == app.registry.depths(["shop:nlp"], steps=app.priority_steps)
