"""How long a lost server is tried again."""

from collections.abc import Callable

import pytest
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    MasterDownError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from orchestra.exceptions import BrokerUnavailableError, ConfigurationError
from orchestra.patience import Patience, is_full, is_loss

DOWN = OSError("down")


def refuse() -> None:
    """Fail as a server's refusal does, in no time."""
    raise DOWN


class Time:
    """A clock that only moves when somebody sleeps or works."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        """Let time pass, and remember it."""
        self.slept.append(round(seconds, 3))
        self.now += seconds

    def patience(self, seconds: float, told: Callable[[Exception, float], None] | None = None) -> Patience:
        """Return a patience that lives by this clock."""
        return Patience(seconds, told=told, clock=lambda: self.now, sleep=self.sleep)


class TestIsLoss:
    @pytest.mark.parametrize(
        "error",
        [
            RedisConnectionError(),
            RedisTimeoutError(),
            BusyLoadingError(),
            ReadOnlyError(),
            MasterDownError("down"),
            ConnectionRefusedError(),
            BrokerUnavailableError(),
        ],
    )
    def test_what_may_pass(self, error: Exception) -> None:
        """A server that is away, is loading its data or is in the middle of a failover may be back soon."""
        assert is_loss(error)

    @pytest.mark.parametrize(
        "error", [AuthenticationError(), ResponseError("OOM"), ConfigurationError(), KeyError("x"), 1]
    )
    def test_what_stays(self, error: object) -> None:
        """A refusal isn't a loss, nor is a mistake in the code or a reply that is none."""
        assert not is_loss(error)


class TestIsFull:
    @pytest.mark.parametrize(
        "error",
        [
            OutOfMemoryError("command not allowed when used memory > 'maxmemory'."),
            ResponseError("MISCONF Errors writing to the AOF file: No space left on device"),
            ResponseError("NOREPLICAS Not enough good replicas to write."),
            ResponseError(
                "Error running script (call to f_1): @user_script:9: @user_script: 9: -OOM command not allowed"
            ),
        ],
    )
    def test_what_a_person_can_change(self, error: Exception) -> None:
        """A server without memory, disk or replicas takes nothing in, and isn't lost."""
        assert is_full(error)
        assert not is_loss(error)

    @pytest.mark.parametrize("error", [ResponseError("WRONGTYPE"), RedisConnectionError("OOM "), KeyError("OOM "), 1])
    def test_other_refusals(self, error: object) -> None:
        """Other refusals are for good, and a lost server isn't a full one."""
        assert not is_full(error)

    def test_only_some_wait_for_it(self) -> None:
        """Who submits hears of it at once; who has to send it waits, as for a lost server."""
        full, time = OutOfMemoryError("full"), Time()

        with pytest.raises(OutOfMemoryError):
            time.patience(5)(full)
        Patience(5, until_taken=True, clock=lambda: time.now, sleep=time.sleep)(full)


class TestPatience:
    def test_a_refusing_server(self) -> None:
        """It is tried again at once, then ever more slowly, and to the end of the time."""
        time = Time()
        patience = time.patience(2.0)

        with pytest.raises(OSError, match="down"):
            patience.insist(refuse)

        assert [0.0, 0.05, 0.1, 0.2, 0.4, 0.5, 0.5] == time.slept[:7]
        assert 2.0 == pytest.approx(time.now - 100.0)

    def test_a_silent_server(self) -> None:
        """Two attempts of half the time each fit, and a third isn't begun."""
        time = Time()
        patience = time.patience(5.0)

        time.now += 2.5
        patience(DOWN)
        time.now += 2.5
        with pytest.raises(OSError, match="down"):
            patience(DOWN)

    def test_a_slow_attempt_is_not_begun_late(self) -> None:
        """An attempt that would end beyond the bound, if it took as long as the last one, isn't begun."""
        time = Time()
        patience = time.patience(5.0)
        time.now += 3.0

        with pytest.raises(OSError, match="down"):
            patience(DOWN)

    def test_no_loss(self) -> None:
        """What doesn't pass by waiting is raised at once."""
        with pytest.raises(ResponseError, match="OOM"):
            Time().patience(5.0)(ResponseError("OOM"))

    def test_a_caller_that_waits_by_itself(self) -> None:
        """Where kombu sleeps between attempts there is no second pause."""
        time = Time()
        patience = time.patience(5.0)

        patience(DOWN, 0.2)
        patience(DOWN, 0.2)

        assert [] == time.slept

    def test_somebody_is_told(self) -> None:
        """An `errback` of somebody else's hears of every failed attempt, and how long the caller is going to wait."""
        seen: list[tuple[Exception, float]] = []
        patience = Time().patience(5.0, told=lambda error, interval: seen.append((error, interval)))

        patience(DOWN, 0.2)

        assert [(DOWN, 0.2)] == seen

    def test_insisting(self) -> None:
        """An act is repeated until it succeeds; its own error comes out when time is up."""
        time, losses = Time(), [DOWN, DOWN]

        def act() -> str:
            if losses:
                raise losses.pop()
            return "done"

        assert "done" == time.patience(5.0).insist(act)

        with pytest.raises(OSError, match="down"):
            time.patience(5.0).insist(refuse)
