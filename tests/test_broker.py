"""The app's own way to the broker's Redis, and what errors say of it."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
from kombu.exceptions import OperationalError
from redis.exceptions import AuthenticationError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from orchestra.broker import (
    BrokerLink,
    SubmissionError,
    is_same_database,
    location_of,
    named_broker,
    patience_of,
    publish_policy,
)
from orchestra.embedded import EmbeddedServer
from orchestra.exceptions import BrokerUnavailableError, ConfigurationError, RetryableError, ValidationError
from orchestra.patience import Patience
from orchestra.publishing import LostBatchError, PublishId
from orchestra.transport import FleetConnection
from tests.fleets import app_at


class TestBrokerLink:
    @pytest.fixture
    def app(self, redis_url: str) -> Iterator[Any]:
        """Give an app, whose connections the link makes."""
        with app_at(redis_url) as app:
            yield app

    def test_the_client_is_kept(self, app: Any) -> None:
        """The first use connects, and later ones have the same client."""
        link = BrokerLink(app.connection_for_write, patience_seconds=1)

        client = link.client()

        assert client.ping()
        assert link.client() is client
        link.forget()

    def test_forgetting_connects_anew(self, app: Any) -> None:
        """After a loss the next use connects again; to forget twice does nothing."""
        link = BrokerLink(app.connection_for_write, patience_seconds=1)
        client = link.client()

        link.forget()
        link.forget()

        assert link.client() is not client
        assert link.client().ping()
        link.forget()

    def test_leaving_a_client(self, app: Any) -> None:
        """After a loss the next use connects again; who works on the old one is let be."""
        link = BrokerLink(app.connection_for_write, patience_seconds=1)
        client = link.client()
        busy, idle = client.connection_pool.get_connection(), client.connection_pool.get_connection()
        client.connection_pool.release(idle)

        link.leave(client)
        link.leave(None)

        busy.send_command("PING")
        assert b"PONG" == busy.read_response()
        assert not idle.is_connected
        other = link.client()
        assert other is not client
        link.leave(client)
        assert link.client() is other
        client.connection_pool.release(busy)
        client.connection_pool.disconnect()
        link.forget()

    def test_a_fork_connects_anew(self, app: Any) -> None:
        """A child never speaks on its parent's connection, and doesn't close it either."""
        link = BrokerLink(app.connection_for_write, patience_seconds=1)
        client = link.client()
        number = client.client_id()

        child = os.fork()
        if child == 0:
            code = 1
            try:
                mine = link.client()
                code = 0 if mine is not client and mine.client_id() != number else 2
                link.forget()
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)

        assert 0 == os.waitstatus_to_exitcode(status)
        assert number == link.client().client_id()
        link.forget()

    def test_a_child_that_forgets_leaves_the_parents_connection(self, app: Any) -> None:
        """What a child forgets first is its parent's: that connection isn't closed."""
        link = BrokerLink(app.connection_for_write, patience_seconds=1)
        held = link.client()
        assert link._held is not None
        link._held = (os.getpid() + 1, *link._held[1:])  # as a fork's child finds it

        link.forget()

        assert held.ping()
        held.connection_pool.disconnect()

    def test_a_server_that_comes_back(self) -> None:
        """A store that lost its server says so, and finds it again without being made anew."""
        with EmbeddedServer.start() as server, app_at(server.url) as app:
            app.store.command("PING")
            server.kill()
            with pytest.raises(BrokerUnavailableError, match=str(server.port)):
                app.store.command("PING")

            server.restart()

            assert app.store.command("PING")

    def test_an_unreachable_server(self) -> None:
        """It is given up at once where nothing listens, named by host and port."""
        with (
            app_at("redis://:hush-hush@127.0.0.1:1/0") as app,
            pytest.raises(BrokerUnavailableError, match=r"127\.0\.0\.1:1") as caught,
        ):
            app.store.command("PING")

        assert "hush-hush" not in str(caught.value)

    def test_a_broker_that_is_no_redis(self) -> None:
        """Registry and records need Redis, and an error says so."""
        with app_at("memory://") as app, pytest.raises(ConfigurationError, match="'memory'; agents and records need"):
            app.state.read("1")


class TestLocationOf:
    @pytest.mark.parametrize(
        ("url", "location"),
        [
            ("redis://:secret@redis.example:6380/2", "redis.example:6380"),
            ("redis://", "127.0.0.1:6379"),
            ("rediss://user:secret@redis.example", "redis.example:6379"),
            ("redis+socket://:secret@/run/redis.sock?virtual_host=2", "socket:/run/redis.sock"),
            ("redis://one.example:1/0;redis://:secret@two.example:2/0", "one.example:1"),
            ("sentinel://:secret@one.example:26379", "one.example:26379"),
        ],
    )
    def test_no_password(self, url: str, location: str) -> None:
        """Errors name a server by host and port, or by its socket's path, and never show a password."""
        assert location == location_of(FleetConnection(url))


class TestIsSameDatabase:
    @pytest.mark.parametrize(
        ("broker", "same"),
        [
            ("redis://redis.example:6379/2", True),
            ("redis://redis.example/2", True),
            ("redis://:other@redis.example:6379/2", True),
            ("redis://redis.example:6379/3", False),
            ("redis://redis.example:6380/2", False),
            ("redis://localhost:6379/2", False),
            ("sentinel://redis.example:6379/2", False),
            ("redis+socket:///run/redis.sock?virtual_host=2", False),
        ],
    )
    def test_host_port_and_number(self, broker: str, same: bool) -> None:
        """Two URLs name one database when host, port and number are the same; in doubt they don't."""
        parameters = {"host": "redis.example", "port": 6379, "db": "2", "password": "x"}

        assert is_same_database(FleetConnection(broker), parameters) is same

    def test_a_socket_as_backend(self) -> None:
        """A backend on a socket is never taken for the broker's database."""
        assert not is_same_database(FleetConnection("redis://"), {"path": "/run/redis.sock", "db": 0})


class TestPublishPolicy:
    @pytest.fixture
    def patience(self) -> Patience:
        """Give a patience to be named."""
        return Patience(1)

    def test_the_patience_decides(self, patience: Patience) -> None:
        """Where nobody chose otherwise, attempts aren't counted: the patience ends them, and waits between them."""
        with app_at("redis://") as app:
            policy = publish_policy(app.conf, {"retry_policy": {"interval_max": 2}}, patience)

        assert (None, patience, 2, 0) == tuple(
            policy[name] for name in ("max_retries", "errback", "interval_max", "interval_start")
        )

    @pytest.mark.parametrize(
        ("changes", "options"),
        [
            ({}, {"retry": False}),
            ({}, {"retry_policy": {"max_retries": 7}}),
            ({}, {"retry_policy": {"max_retries": None}}),
            ({"task_publish_retry": False}, {}),
            ({"task_publish_retry_policy": {"max_retries": 1}}, {}),
        ],
    )
    def test_a_choice_stands(self, changes: dict[str, Any], options: dict[str, Any], patience: Patience) -> None:
        """A caller's or a project's `retry` and number of attempts are kept, without a bound of ours."""
        with app_at("redis://", changes=changes) as app:
            policy = publish_policy(app.conf, options, patience)

        assert {"errback": None, **options.get("retry_policy", {})} == policy


class TestPatienceOf:
    @pytest.mark.parametrize(("timeout", "seconds"), [(None, 2.0), (0.5, 0.5), (60, 2.0)])
    def test_the_shorter_bound(self, timeout: float | None, seconds: float) -> None:
        """A `timeout` of the caller's that is shorter than the setting counts."""
        patience = patience_of({"timeout": timeout}, 2.0)

        assert seconds == pytest.approx(patience._end - patience._began)

    def test_a_callers_errback(self) -> None:
        """It is told of each attempt that failed."""
        seen: list[Exception] = []
        policy = {"errback": lambda error, _interval: seen.append(error)}
        error = OSError("down")

        patience_of({"retry_policy": policy}, 2.0)(error)

        assert [error] == seen


class TestBoundResults:
    def test_default(self) -> None:
        """A result backend that says nothing is left in the time that the setting gives."""
        with app_at("redis://") as app:
            assert 2.0 == app.conf.redis_socket_timeout == app.backend.connparams["socket_timeout"]

    def test_a_projects_choice(self) -> None:
        """What the project's configuration says stands."""
        with app_at("redis://", changes={"redis_socket_timeout": 60}) as app:
            assert (60, 2.0) == (app.conf.redis_socket_timeout, app.conf.redis_socket_connect_timeout)


class TestTransportOptions:
    def test_the_projects_own_win(self) -> None:
        """What the project tells the transport stands, but for whose fleet it is."""
        mine = {"health_check_interval": 60, "socket_timeout": 9, "orchestra_fleet": "other"}
        with app_at("redis://", changes={"broker_transport_options": mine}) as app:
            options = app.transport_options

        assert (60, 9, 1.0, "shop") == tuple(
            options[name]
            for name in ("health_check_interval", "socket_timeout", "socket_connect_timeout", "orchestra_fleet")
        )

    def test_dead_connections_are_noticed(self) -> None:
        """By default a connection is asked every three seconds, which reaches the connections themselves."""
        with app_at("redis://") as app:
            assert 3 == app.transport_options["health_check_interval"]


class TestNamedBroker:
    @pytest.mark.parametrize(
        "error",
        [
            OperationalError("down"),
            RedisConnectionError("down"),
            BrokerUnavailableError("down"),
            ConnectionResetError("down"),
        ],
    )
    def test_one_error_for_all(self, error: Exception) -> None:
        """However the loss shows, the submitter gets one error, which kombu's OperationalError catches too."""
        words = r"shop\.add was not submitted: Redis at h:1 cannot be reached: down"
        with pytest.raises(SubmissionError, match=words), named_broker("shop.add", lambda: "h:1"):
            raise error

        assert issubclass(SubmissionError, OperationalError)
        assert issubclass(SubmissionError, RetryableError)

    def test_what_became_of_the_task(self) -> None:
        """The error says whether the task may be enqueued, and by which id to look it up."""
        publish_id = PublishId.new()
        for unanswered, words in (
            (False, r"down; it was not enqueued\.$"),
            (True, r"not confirmed: .*; it may have been enqueued: look it up by its id 7 before sending it again\.$"),
        ):
            publish_id.unanswered = unanswered
            with (
                pytest.raises(SubmissionError, match=words) as caught,
                named_broker("shop.add", lambda: "h:1", task_id="7", publish_id=publish_id),
            ):
                raise OSError("down")
            assert ("7", unanswered) == (caught.value.task_id, caught.value.may_be_enqueued)

    @pytest.mark.parametrize("may_be", [False, True])
    def test_a_batch(self, may_be: bool) -> None:
        """A batch has no single id; whether a part of it may be enqueued is told all the same."""
        lost = LostBatchError("down")
        lost.may_be_enqueued = may_be
        words = "some may have been enqueued" if may_be else "none was enqueued"
        with (
            pytest.raises(SubmissionError, match=words) as caught,
            named_broker("shop.add", lambda: "h:1", task_id="7"),
        ):
            raise lost

        assert (None, may_be) == (caught.value.task_id, caught.value.may_be_enqueued)

    def test_a_refusal_is_no_loss(self) -> None:
        """A server that answers with an error was reached, and the words say so."""

        def fail() -> None:
            raise OperationalError("outer") from ResponseError("out of memory")

        words = "h:1 refused the message: out of memory; it was not enqueued"
        with pytest.raises(SubmissionError, match=words), named_broker("shop.add", lambda: "h:1"):
            fail()

    def test_the_cause_is_told(self) -> None:
        """What went wrong is wrapped by kombu; the message has the inner words."""

        def fail() -> None:
            raise OperationalError("outer") from OSError("inner words")

        with pytest.raises(SubmissionError, match="inner words"), named_broker("shop.add", lambda: "h:1"):
            fail()

    def test_a_refused_password_is_for_a_person(self) -> None:
        """Trying again doesn't help there."""

        def fail() -> None:
            raise OperationalError("outer") from AuthenticationError("WRONGPASS")

        words = "h:1 refused the user name or password"
        with pytest.raises(ConfigurationError, match=words), named_broker("shop.add", lambda: "h:1"):
            fail()

    def test_other_errors_pass(self) -> None:
        """What isn't about the broker stays what it is, and is named once."""
        for error in (ValidationError("x"), SubmissionError("said already")):
            with pytest.raises(type(error), match=str(error)), named_broker("shop.add", lambda: "h:1"):
                raise error

    def test_through_an_app(self, redis_url: str) -> None:
        """A refused password shows at the first submission, without either password."""
        with (
            app_at(f"redis://:hush-hush@{redis_url.rpartition('@')[2]}") as app,
            pytest.raises(ConfigurationError, match="refused the user name or password") as caught,
        ):
            app.send_task("celery.any")

        assert "hush-hush" not in str(caught.value)
