"""The app's own way to the broker's Redis, and what errors say of it."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
from kombu.exceptions import OperationalError
from redis.exceptions import AuthenticationError
from redis.exceptions import ConnectionError as RedisConnectionError

from orchestra.broker import BrokerLink, SubmissionError, is_same_database, location_of, named_broker, within
from orchestra.embedded import EmbeddedServer
from orchestra.exceptions import BrokerUnavailableError, ConfigurationError, RetryableError, ValidationError
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


class TestWithin:
    def test_attempts_end_in_time(self) -> None:
        """The last attempt begins by half-time, since it may last the other half."""
        now = [100.0]
        give_up_late = within(4.0, clock=lambda: now[0])

        give_up_late(OSError("early"), 0.2)
        now[0] = 102.0
        give_up_late(OSError("half-time"), 0.2)
        now[0] = 102.1
        with pytest.raises(OSError, match="late"):
            give_up_late(OSError("late"), 0.2)


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
