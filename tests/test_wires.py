"""Connections for submissions: kept at hand, bounded, looked at after a while, and nobody's twice."""

import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from orchestra.wires import Wires
from tests.processes import until


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:
    """Give the client whose pool is drawn from."""
    with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def wires(client: Any) -> Iterator[Wires]:
    """Give two wires."""
    wires = Wires(lambda: client, most=2)
    yield wires
    wires.close()


def _pinged(connection: Any) -> Any:
    connection.send_command("PING")
    return connection.read_response()


class TestWires:
    def test_the_last_one_is_taken_again(self, wires: Wires) -> None:
        """One that was released is at hand for the next."""
        first, second = wires.get_connection(), wires.get_connection()
        wires.release(first)
        wires.release(second)

        assert first is not second
        assert second is wires.get_connection()
        assert b"PONG" == _pinged(second)

    def test_no_more_than_allowed(self, wires: Wires) -> None:
        """Whoever asks for one too many waits until one is released."""
        taken = [wires.get_connection(), wires.get_connection()]
        got: list[Any] = []
        thread = threading.Thread(target=lambda: got.append(wires.get_connection()))
        thread.start()
        until(lambda: thread.is_alive() and not got)
        wires.release(taken[0])
        thread.join(5)

        assert [taken[0]] == got

    def test_one_that_the_server_closed(self, wires: Wires, client: Any) -> None:
        """It's noticed before anything is written to it."""
        connection = wires.get_connection()
        assert b"PONG" == _pinged(connection)
        wires.release(connection)
        client.client_kill_filter(_type="normal", skipme=True)
        until(lambda: len(client.client_list(_type="normal")) == 1)

        assert b"PONG" == _pinged(wires.get_connection())

    def test_one_that_was_disconnected(self, wires: Wires) -> None:
        """A lost one isn't kept."""
        connection = wires.get_connection()
        connection.disconnect()
        wires.release(connection)

        assert b"PONG" == _pinged(wires.get_connection())

    def test_a_server_that_is_away(self) -> None:
        """A connection that can't be made leaves its place to the next attempt."""
        with Redis(host="127.0.0.1", port=1) as nobody:
            wires = Wires(lambda: nobody, most=1)
            for _ in range(3):
                with pytest.raises(RedisConnectionError, match="refused"):
                    wires.get_connection()

    def test_a_child_has_its_own(self, wires: Wires) -> None:
        """A process that is forked leaves its parent's connections alone."""
        connection = wires.get_connection()
        assert b"PONG" == _pinged(connection)
        wires.release(connection)
        child = os.fork()
        if not child:
            own = wires.get_connection()
            os._exit(0 if own is not connection and _pinged(own) == b"PONG" else 1)

        assert (child, 0) == os.waitpid(child, 0)
        assert connection is wires.get_connection()
        assert b"PONG" == _pinged(connection)
