"""Celery's message layer with our connection, our router behind the project's own, and anonymous queues."""

from collections.abc import Iterator
from typing import Any

import pytest
from celery.exceptions import QueueNotFound
from kombu import Exchange, Queue

from orchestra.amqp import OrchestraAMQP, OrchestraQueues
from orchestra.transport import FleetConnection
from tests.fleets import app_at

NOWHERE = "redis://:secret@127.0.0.1:1/0"


@pytest.fixture
def app() -> Iterator[Any]:
    """Give an app whose broker nobody needs."""
    with app_at(NOWHERE) as app:
        yield app


class TestConnection:
    def test_it_knows_its_fleet(self, app: Any) -> None:
        """Every connection that Celery makes is ours, and told the fleet, the default queue and the prefix."""
        connection = app.connection_for_read()

        assert isinstance(connection, FleetConnection)
        options: Any = connection.transport_options
        assert ("shop", "celery", "orchestra") == tuple(
            options[name] for name in ("orchestra_fleet", "orchestra_default_queue", "orchestra_prefix")
        )

    def test_the_projects_transport_options_stay(self) -> None:
        """What a project says in `broker_transport_options` comes before our defaults."""
        options = {"broker_transport_options": {"socket_timeout": 17, "visibility_timeout": 99}}
        with app_at(NOWHERE, changes=options) as app:
            given = app.connection_for_write().transport_options

        assert (17, 99, 1.0) == (given["socket_timeout"], given["visibility_timeout"], given["socket_connect_timeout"])

    def test_options_of_one_connection(self, app: Any) -> None:
        """What is asked for one connection comes before both."""
        assert 3 == app.connection(transport_options={"socket_timeout": 3}).transport_options["socket_timeout"]

    def test_a_project_without_our_settings_elsewhere(self, app: Any) -> None:
        """The layer is ours by the app's class, with nothing to configure."""
        assert isinstance(app.amqp, OrchestraAMQP)
        assert isinstance(app.amqp.queues, OrchestraQueues)


class TestMessages:
    def test_nothing_is_its_own_parent(self, app: Any) -> None:
        """A retry is sent from within its own task, which isn't its parent; another one's is."""
        alone, child = (
            app.amqp.create_task_message("1", "t", create_sent_event=True, parent_id=parent) for parent in ("1", "2")
        )

        assert (None, None) == (alone.headers["parent_id"], alone.sent_event["parent_id"])
        assert ("2", "2") == (child.headers["parent_id"], child.sent_event["parent_id"])


class TestQueues:
    def test_a_fleets_queue_has_no_exchange(self, app: Any) -> None:
        """A message goes through the default exchange straight to its queue."""
        queue = app.amqp.queues["shop:gpu"]

        assert ("shop:gpu", "", "shop:gpu") == (queue.name, queue.exchange.name, queue.routing_key)
        assert app.amqp.queues["shop:gpu"] is queue

    def test_other_queues_are_celerys(self, app: Any) -> None:
        """Other queues get an exchange of Celery's making."""
        queue = app.amqp.queues["letters"]

        assert "letters" == queue.name
        assert queue.exchange.name != ""

    def test_a_missing_queue_stays_missing(self) -> None:
        """Where a project lets no queue be made on the way, that holds for its own queues."""
        with app_at(NOWHERE, changes={"task_create_missing_queues": False}) as app:
            with pytest.raises(KeyError):
                app.amqp.queues["letters"]
            with pytest.raises(QueueNotFound):
                app.send_task("celery.any", queue="letters")
            assert "shop:gpu" == app.amqp.queues["shop:gpu"].name

    def test_a_project_may_declare_a_fleets_queue(self) -> None:
        """A queue that a project lists itself keeps its own exchange and arguments."""
        mine = Queue("shop:gpu", Exchange("mine"), routing_key="gpu", max_priority=3)
        plain = Queue("shop:nlp")
        with app_at(NOWHERE, changes={"task_queues": [mine, plain]}) as app:
            assert "mine" == app.amqp.queues["shop:gpu"].exchange.name
            assert "" == app.amqp.queues["shop:nlp"].exchange.name

    def test_selected(self, app: Any) -> None:
        """Queues that `-Q` named are remembered as such; Celery calls `select` with None where it wasn't given."""
        app.amqp.queues.select(None)
        assert not app.amqp.queues.selected

        app.amqp.queues.select(["alpha", "beta"])
        assert app.amqp.queues.selected
        assert {"alpha", "beta"} == set(app.amqp.queues.consume_from)

    def test_names_of_all(self, redis_url: str) -> None:
        """`celery purge` asks for the names of all queues, and gets those that only the fleet's table knows as well."""
        with app_at(redis_url) as app:
            app.registry.register("a@test", "1", about={}, tasks={}, queues=["gpu+mem_gb~ge~40", "general"])

            assert {"celery", "shop:gpu+mem_gb~ge~40"} == set(app.amqp.queues.keys())

    def test_names_of_all_elsewhere(self) -> None:
        """Where the broker isn't Redis there are the app's own."""
        with app_at("memory://") as app:
            assert {"celery"} == set(app.amqp.queues.keys())


class TestRoutes:
    def test_ours_is_asked_last(self) -> None:
        """The project's own `task_routes` win, and where they say nothing the requirement decides."""
        with app_at(NOWHERE, changes={"task_routes": {"shop.a": {"queue": "mine"}}}) as app:
            for name in ("shop.a", "shop.b"):
                app.task(name=name, requires="gpu", shared=False)(_nothing)

            assert "mine" == app.amqp.router.route({}, "shop.a")["queue"].name
            assert "shop:gpu" == app.amqp.router.route({}, "shop.b")["queue"].name
            assert "celery" == app.amqp.router.route({}, "celery.ping")["queue"].name

    def test_routes_that_are_set_later(self, app: Any) -> None:
        """A project that changes its routes and flushes them still has ours behind them."""
        app.task(name="shop.b", requires="gpu", shared=False)(_nothing)
        app.conf.task_routes = {"shop.b": {"queue": "mine"}}
        app.amqp.flush_routes()

        assert "mine" == app.amqp.router.route({}, "shop.b")["queue"].name


def _nothing() -> None: ...
