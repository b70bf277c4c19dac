"""How long things take, by a clock that the tests hold."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from orchestra.exceptions import ConfigurationError
from orchestra.logging_utils import (
    PerformanceLogger,
    get_logger,
    performance_logger,
    performance_logging,
    setup_logging,
)
from tests.logs import Output, logging_left_alone


@pytest.fixture
def output() -> Iterator[Output]:
    """Give a stream to write to, and leave Python's logging and structlog as they were."""
    with logging_left_alone():
        yield Output()


class Clock:
    """A clock that passes on when it's told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now

    def work(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    """Give a clock."""
    return Clock()


@pytest.fixture
def performance(output: Output, clock: Clock) -> PerformanceLogger:
    """Give a logger of times by that clock, which writes to `output`."""
    return PerformanceLogger(setup_logging("DEBUG", "json", stream=output), clock=clock)


class TestPerformanceLogger:
    @pytest.mark.parametrize(
        ("seconds", "level", "event"), [(1.0, "info", "operation finished"), (1.5, "warning", "operation slow")]
    )
    def test_log_operation_time(
        self, performance: PerformanceLogger, output: Output, seconds: float, level: str, event: str
    ) -> None:
        """A time that somebody took is logged; what takes longer than the threshold is a warning."""
        performance.log_operation_time("task_execution", seconds, task_id="7c9e")

        assert level == output.line["level"]
        assert {
            "event": event,
            "operation": "task_execution",
            "duration_seconds": seconds,
            "task_id": "7c9e",
        } == output.fields

    @pytest.mark.parametrize(
        ("seconds", "level", "event"), [(0.5, "debug", "operation finished"), (1.5, "warning", "operation slow")]
    )
    def test_time_operation(
        self, performance: PerformanceLogger, clock: Clock, output: Output, seconds: float, level: str, event: str
    ) -> None:
        """A block is timed; one that is fast enough is for those who look for details."""
        with performance.time_operation("database_query", table="tea"):
            clock.work(seconds)

        assert level == output.line["level"]
        assert {
            "event": event,
            "operation": "database_query",
            "duration_seconds": seconds,
            "table": "tea",
        } == output.fields

    def test_a_blocks_own_threshold(self, performance: PerformanceLogger, clock: Clock, output: Output) -> None:
        """What is slow may be said for each block."""
        with performance.time_operation("database_query", threshold_seconds=0.1):
            clock.work(0.2)

        assert "operation slow" == output.line["event"]

    def test_a_block_that_fails(self, performance: PerformanceLogger, clock: Clock, output: Output) -> None:
        """The error is named, and goes on its way."""

        def query() -> None:
            with performance.time_operation("database_query"):
                clock.work(0.2)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            query()

        assert "warning" == output.line["level"]
        assert {
            "event": "operation failed",
            "operation": "database_query",
            "duration_seconds": 0.2,
            "error_type": "ZeroDivisionError",
        } == output.fields

    def test_async_with(self, performance: PerformanceLogger, clock: Clock, output: Output) -> None:
        """A coroutine times its block in the same words."""

        async def query() -> None:
            async with performance.time_operation("database_query"):
                clock.work(1.5)

        asyncio.run(query())

        assert ("operation slow", 1.5) == (output.line["event"], output.line["duration_seconds"])

    def test_blocks_within_blocks(self, performance: PerformanceLogger, clock: Clock, output: Output) -> None:
        """Each block has a time of its own."""
        with performance.time_operation("outer"):
            clock.work(1)
            with performance.time_operation("inner"):
                clock.work(2)

        assert [("inner", 2.0), ("outer", 3.0)] == [
            (line["operation"], line["duration_seconds"]) for line in output.lines
        ]

    def test_is_there_without_a_set_up(self, output: Output) -> None:
        """A module may use the one of this module, before or after logging is set up."""
        setup_logging("DEBUG", "json", stream=output)

        with performance_logger.time_operation("database_query"):
            pass

        assert ("orchestra.performance", "database_query") == (output.line["logger"], output.line["operation"])

    @pytest.mark.parametrize("threshold", [-1, float("nan"), float("inf"), "1", True, None])
    def test_refuses_thresholds_that_make_no_sense(self, threshold: Any) -> None:
        """A threshold is a number of seconds."""
        with pytest.raises(ConfigurationError, match=r"threshold_seconds is .*; it must be a number of seconds"):
            PerformanceLogger(get_logger("shop"), threshold_seconds=threshold)


class Shop:
    """Something with methods."""

    def __init__(self, performance: PerformanceLogger, clock: Clock) -> None:
        watched = performance_logging(threshold_seconds=1.0, logger=performance)

        class Till:
            """Counts seconds."""

            @watched
            def count(self, seconds: float) -> float:
                """Take some seconds."""
                clock.work(seconds)
                return seconds

        @watched
        async def wait(seconds: float) -> float:
            clock.work(seconds)
            return seconds

        self.count = Till().count
        self.wait = wait


@pytest.fixture
def shop(performance: PerformanceLogger, clock: Clock) -> Shop:
    """Give what is decorated."""
    return Shop(performance, clock)


class TestPerformanceLogging:
    def test_a_fast_call_is_silent(self, shop: Shop, output: Output) -> None:
        """Even for those who look for details: what is decorated may be called very often."""
        assert 0.5 == shop.count(0.5)
        assert 1.0 == asyncio.run(shop.wait(1.0))
        assert [] == output.lines

    def test_a_slow_call_is_a_warning(self, shop: Shop, output: Output) -> None:
        """It names the function, and how long it took."""
        assert 1.5 == shop.count(seconds=1.5)
        assert "warning" == output.line["level"]
        assert ("operation slow", 1.5) == (output.line["event"], output.line["duration_seconds"])
        assert f"{__name__}.Shop.__init__.<locals>.Till.count" == output.line["operation"]

    def test_a_slow_coroutine_is_timed_to_its_end(self, shop: Shop, output: Output) -> None:
        """What counts is the time until it has run, and it stays a coroutine function."""
        assert 1.5 == asyncio.run(shop.wait(1.5))
        assert ("operation slow", 1.5) == (output.line["event"], output.line["duration_seconds"])
        assert asyncio.iscoroutinefunction(shop.wait)

    def test_a_failure_is_told(self, performance: PerformanceLogger, output: Output) -> None:
        """However fast it came; the error goes on its way."""

        @performance_logging(logger=performance)
        def fail() -> None:
            raise KeyError

        with pytest.raises(KeyError):
            fail()

        assert ("operation failed", "KeyError") == (output.line["event"], output.line["error_type"])

    def test_stays_the_function_that_it_was(self, shop: Shop) -> None:
        """Name, words and annotations are kept, so that a task may be decorated."""
        assert ("count", "Take some seconds.") == (shop.count.__name__, shop.count.__doc__)
        assert ["seconds", "return"] == list(shop.count.__annotations__)

    def test_refuses_generators(self) -> None:
        """A generator does its work later than it's called, so its time would say nothing."""
        with pytest.raises(ConfigurationError, match=r"numbers is a generator: time the loop over it"):

            @performance_logging()
            def numbers() -> Iterator[int]:
                yield 1

    def test_refuses_to_stand_without_brackets(self) -> None:
        """The error shows how it's written."""

        def slow() -> None: ...

        with pytest.raises(ConfigurationError, match=r"@performance_logging\(threshold_seconds=1.0\)"):
            performance_logging(slow)  # type: ignore[arg-type]
