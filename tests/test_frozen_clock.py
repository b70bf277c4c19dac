"""Time that stands still."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta, timezone

import pytest

from orchestra.exceptions import ValidationError
from orchestra.frozen_clock import FrozenClock

NOON = datetime(2026, 7, 1, 12, tzinfo=UTC)


class TestTime:
    def test_stands_still(self) -> None:
        """Nobody who looks at the clock moves it."""
        clock = FrozenClock(NOON)

        assert NOON == clock.now() == clock.now()
        assert NOON.timestamp() == clock() == clock()
        assert "<FrozenClock at 2026-07-01T12:00:00+00:00>" == repr(clock)

    def test_moves_when_told_to(self) -> None:
        """Seconds and moment move together, by as much as was said."""
        clock = FrozenClock(NOON)

        clock.advance(90)
        clock.advance(0.5)

        assert NOON + timedelta(seconds=90.5) == clock.now()
        assert 90.5 == clock() - NOON.timestamp() == clock.elapsed_seconds

    def test_moments_are_in_utc(self) -> None:
        """A start elsewhere is the same moment; one without a zone is none."""
        assert "12:00" == f"{FrozenClock(NOON.astimezone(timezone(timedelta(hours=2)))).now():%H:%M}"
        with pytest.raises(ValidationError, match="no time zone"):
            FrozenClock(datetime(2026, 7, 1))  # noqa: DTZ001  # the wrong value

    @pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf")])
    def test_does_not_go_back(self, seconds: float) -> None:
        """What isn't a number of seconds can't pass."""
        clock = FrozenClock()

        for move in (clock.advance, clock.sleep, lambda seconds: asyncio.run(clock.sleep_async(seconds))):
            with pytest.raises(ValidationError, match="can't pass"):
                move(seconds)
        assert (0.0, ()) == (clock.elapsed_seconds, clock.slept)


class TestSleep:
    def test_moves_the_time(self, frozen_clock: FrozenClock) -> None:
        """A sleep takes no time, and it is later afterwards; what was slept can be read."""
        frozen_clock.sleep(60)
        asyncio.run(frozen_clock.sleep_async(3600))

        assert 3660 == frozen_clock.elapsed_seconds
        assert (60, 3600) == frozen_clock.slept

    def test_coroutines_sleep_side_by_side(self, frozen_clock: FrozenClock) -> None:
        """Each wakes at its own moment, in the order of these moments, however the coroutines were started."""
        woken: list[tuple[float, float]] = []

        async def sleeper(*naps: float) -> None:
            for nap in naps:
                await frozen_clock.sleep_async(nap)
                woken.append((nap, frozen_clock.elapsed_seconds))

        async def all_of_them() -> None:
            await asyncio.gather(sleeper(3, 1), sleeper(1, 1), sleeper(2.5), sleeper(0))

        asyncio.run(all_of_them())

        assert [(0, 0), (1, 1), (1, 2), (2.5, 2.5), (3, 3), (1, 4)] == woken

    def test_the_cancelled_hold_up_nobody(self, frozen_clock: FrozenClock) -> None:
        """A sleep that is given up leaves the time to the others."""

        async def patient(seconds: float, nap: Callable[[float], Awaitable[None]]) -> bool:
            task = asyncio.ensure_future(nap(seconds))
            await asyncio.sleep(0)
            task.cancel()
            await nap(5)
            return task.cancelled()

        assert asyncio.run(patient(1, frozen_clock.sleep_async))
        assert 5 == frozen_clock.elapsed_seconds
