"""How long a server that can't be reached, or takes nothing, is tried again."""

import re
import time
from collections.abc import Callable
from typing import Final, TypeVar

from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    MasterDownError,
    MaxConnectionsError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from orchestra.exceptions import BrokerUnavailableError

__all__ = ["Patience", "is_full", "is_loss"]

Reply = TypeVar("Reply")

_LOSSES: Final = (
    BrokerUnavailableError,
    RedisConnectionError,  # a server that is still loading its data too
    RedisTimeoutError,
    ReadOnlyError,  # these two: in the middle of a failover
    MasterDownError,
    OSError,
)
_FOR_A_PERSON: Final = (AuthenticationError, AuthorizationError, MaxConnectionsError)
# Out of memory, a full disk, too few replicas for `min-replicas-to-write`; older servers wrap these words for a script.
_FULL: Final = re.compile(r"\b(OOM|MISCONF|NOREPLICAS) ")
_FIRST_PAUSE_SECONDS: Final = 0.05
_LONGEST_PAUSE_SECONDS: Final = 0.5


def is_loss(error: object) -> bool:
    """Tell whether an error means that the server can't be reached or can't take anything now, which may pass."""
    return isinstance(error, _LOSSES) and not isinstance(error, _FOR_A_PERSON)


def is_full(error: object) -> bool:
    """Tell whether an error means that the server answers and takes nothing in, which a person can change."""
    return isinstance(error, ResponseError) and (
        isinstance(error, OutOfMemoryError) or _FULL.search(str(error)) is not None
    )


class Patience:
    """
    Decides, after each attempt that failed, whether there's another one, and waits for it: an `errback` for kombu.

    The bound is on the whole, whatever is attempted: give one object to all the steps of one doing. An attempt that
    would end beyond it, if it took as long as the one before, isn't begun; so only a server that refuses at first and
    hangs at last makes it longer, by one attempt.
    """

    def __init__(
        self,
        seconds: float,
        *,
        told: Callable[[Exception, float], object] | None = None,
        until_taken: bool = False,  # whether to wait for a server that takes nothing in, too
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._told = told  # somebody's own `errback`
        self._until_taken = until_taken
        self._clock = clock
        self._sleep = sleep
        self._began = clock()
        self._end = self._began + seconds
        self._grace = seconds / 10  # an attempt that hangs takes half the time, and two of them are to fit
        self._pause = 0.0
        self.was_tried = False  # whether an attempt has failed

    def __call__(self, error: Exception, interval: float = 0.0) -> None:
        """
        Return when the next attempt may begin; the first time that is at once, since a connection may just be old.

        Args:
            error: why the attempt failed; it is raised when it is no loss of the server, or when time is up.
            interval: seconds that the caller is going to wait by itself, in place of the wait here.

        """
        self.was_tried = True
        if self._told is not None:
            self._told(error, interval)
        now = self._clock()
        if not self._may_pass(error) or now >= self._end or now + (now - self._began) > self._end + self._grace:
            raise error
        if not interval:
            self._sleep(min(self._pause, self._end - now))
            self._pause = min(self._pause * 2 or _FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS)
        self._began = self._clock()

    def _may_pass(self, error: Exception) -> bool:
        return is_loss(error) or (self._until_taken and is_full(error))

    def insist(self, act: Callable[[], Reply]) -> Reply:
        """Act until it succeeds, or until the patience is at its end."""
        while True:
            try:
                return act()
            except Exception as error:  # noqa: BLE001  # what isn't a loss is raised again
                self(error)
