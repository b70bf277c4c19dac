"""The connections that submissions go through: kept open and at hand, where a pool would look at each one first."""

import os
import time
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Final

from redis import Redis

__all__ = ["Wires"]

_FRESH_SECONDS: Final = 0.1  # for so long a connection that worked is taken to work; a look at it costs a system call


class Wires:
    """
    Connections to the broker, the one that was used last on top; to its users it's one of redis-py's pools.

    They come from the pool of `client`, `most` at a time: whoever asks for one more waits until one is released. One
    that is taken after a while is looked at, so that nothing is written to one which the server has closed meanwhile.
    """

    def __init__(
        self,
        client: "Callable[[], Redis]",
        *,
        most: int,
        forget: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._most = most
        self._forget = forget  # called when all is closed
        self._clock = clock
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._idle: deque[tuple[Any, Any, float]] = deque()  # a pool, its connection, idle since
        self._pools: dict[Any, Any] = {}  # connection -> its pool, of those in use
        self._permits: SimpleQueue[None] = SimpleQueue()
        for _ in range(self._most):
            self._permits.put(None)

    def get_connection(self) -> Any:  # one of redis-py's
        """Return a connection that nobody else has until it's released."""
        if self._process != os.getpid():  # those at hand are the parent's
            self._begin()
        self._permits.get()
        try:
            pool, connection = self._taken() or self._new()
        except BaseException:
            self._permits.put(None)
            raise
        self._pools[connection] = pool
        return connection

    def release(self, connection: Any) -> None:  # as above
        """Take back a connection, which has nothing under way, or was disconnected."""
        pool = self._pools.pop(connection)
        if connection.is_connected:
            self._idle.append((pool, connection, self._clock()))
        else:
            pool.release(connection)
        self._permits.put(None)

    def drop_idle(self) -> None:
        """Disconnect what is idle; what is in use goes on."""
        while self._idle:
            try:
                self._drop(*self._idle.pop())
            except IndexError:  # another thread was quicker
                return

    def close(self) -> None:
        """Disconnect what is idle, and connect anew at the next use."""
        self.drop_idle()
        self._forget()

    def _taken(self) -> tuple[Any, Any] | None:
        while self._idle:
            try:
                pool, connection, since = self._idle.pop()
            except IndexError:
                break
            if self._clock() - since < _FRESH_SECONDS or _is_quiet(connection):
                return pool, connection
            self._drop(pool, connection, since)
        return None

    def _new(self) -> tuple[Any, Any]:
        pool: Any = self._client().connection_pool
        return pool, pool.get_connection()

    def _drop(self, pool: Any, connection: Any, _since: float) -> None:
        connection.disconnect()
        pool.release(connection)


def _is_quiet(connection: Any) -> bool:
    """Tell whether a connection is open, and has nothing to say that nobody asked for."""
    try:
        return not connection.can_read()
    except Exception:  # noqa: BLE001  # whatever is wrong with it, there are others
        return False
