"""Time that stands still, for tests: it moves when it's told to, and by sleeping."""

import asyncio
import math
from datetime import UTC, datetime, timedelta
from typing import Final

from orchestra.exceptions import ValidationError

__all__ = ["FrozenClock"]

_START: Final = datetime(2030, 1, 1, tzinfo=UTC)


class FrozenClock:
    """
    A clock that moves by `advance` alone; nothing here takes real time.

    The clock itself returns seconds, as `time.monotonic` and `time.time` do; `now` returns the same moment as a
    datetime in UTC. Give `sleep` or `sleep_async` where `time.sleep` or `asyncio.sleep` would do: they advance the
    clock by their seconds. Coroutines that sleep at the same time do so side by side: each wakes at its own moment.
    """

    def __init__(self, start: datetime = _START) -> None:
        if start.tzinfo is None:
            message = f"FrozenClock(start={start!r}) has no time zone: give it one, such as tzinfo=UTC."
            raise ValidationError(message)
        self._start = start.astimezone(UTC)
        self._elapsed = 0.0
        self._slept: list[float] = []
        self._wakes: list[float] = []  # when those coroutines wake that sleep now

    def __call__(self) -> float:
        """Return the time in seconds since 1970."""
        return self._start.timestamp() + self._elapsed

    def __repr__(self) -> str:
        """Show the moment."""
        return f"<{type(self).__name__} at {self.now().isoformat()}>"

    def now(self) -> datetime:
        """Return the moment, in UTC."""
        return self._start + timedelta(seconds=self._elapsed)

    @property
    def elapsed_seconds(self) -> float:
        """The seconds since the clock was made."""
        return self._elapsed

    @property
    def slept(self) -> tuple[float, ...]:
        """The seconds that each sleep was to take, in the order in which they began."""
        return tuple(self._slept)

    def advance(self, seconds: float) -> None:
        """
        Move the time on.

        Raises:
            ValidationError: the seconds are negative, or no number.

        """
        self._elapsed += _duration(seconds)

    def sleep(self, seconds: float) -> None:
        """Sleep, as `time.sleep` does; it is over at once, and the time is later."""
        self._slept.append(_duration(seconds))
        self.advance(seconds)

    async def sleep_async(self, seconds: float) -> None:
        """
        Sleep, as `asyncio.sleep` does; other coroutines go on meanwhile.

        The time jumps to whoever wakes first, once every coroutine that is ready to run has had a turn.
        """
        wakes = self._elapsed + _duration(seconds)
        self._slept.append(seconds)
        self._wakes.append(wakes)
        try:
            await asyncio.sleep(0)
            while self._elapsed < wakes:
                if wakes == min(self._wakes):
                    self._elapsed = wakes
                else:
                    await asyncio.sleep(0)
        finally:
            self._wakes.remove(wakes)


def _duration(seconds: float) -> float:
    if not 0 <= seconds < math.inf:
        message = f"{seconds!r} s can't pass: give a number of seconds, 0 or more."
        raise ValidationError(message)
    return seconds
