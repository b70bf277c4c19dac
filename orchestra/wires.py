"""The connections that submissions go through: kept open and at hand, with less ado than a pool makes of each."""

import os
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from redis import Redis

__all__ = ["Wires"]


class Wires:
    """
    Connections to the broker, the one that was used last on top; to its users it's one of redis-py's pools.

    They come from the pool of `client`, `most` at a time: whoever asks for one more waits until one is released. Each
    is looked at when it's taken, so that nothing is written to one that the server has closed: only then can an error
    be sure that nothing was enqueued.
    """

    def __init__(
        self,
        client: "Callable[[], Redis]",
        *,
        most: int,
        forget: Callable[[], None] = lambda: None,
    ) -> None:
        self._client = client
        self._most = most
        self._forget = forget  # called when all is closed
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._idle: deque[tuple[Any, Any]] = deque()  # a pool, its connection
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
            self._idle.append((pool, connection))
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
                pool, connection = self._idle.pop()
            except IndexError:
                break
            if _is_quiet(connection):
                return pool, connection
            self._drop(pool, connection)
        return None

    def _new(self) -> tuple[Any, Any]:
        pool: Any = self._client().connection_pool
        return pool, pool.get_connection()

    def _drop(self, pool: Any, connection: Any) -> None:
        connection.disconnect()
        pool.release(connection)


def _is_quiet(connection: Any) -> bool:
    """Tell whether a connection is open, and has nothing to say that nobody asked for."""
    try:
        return not connection.can_read()
    except Exception:  # noqa: BLE001  # whatever is wrong with it, there are others
        return False
