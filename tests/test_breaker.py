"""CircuitBreaker: what people see of breakers, and what happens when Redis is away."""

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from orchestra.breaker import Admission, BreakerPhase, CircuitBreaker
from orchestra.breaker_policy import Breaker
from tests.circuits import Circuit, circuit_at
from tests.stores import store_at
from tests.transit import holder_named


@pytest.fixture
def circuit(redis_url: str) -> Iterator[Circuit]:
    """Give a breaker on an empty server."""
    with circuit_at(redis_url) as circuit:
        yield circuit


class TestStates:
    def test_of_none(self, circuit: Circuit) -> None:
        """Where nothing was called there is nothing to list."""
        assert ([], []) == (circuit.breakers.states(), circuit.breakers.names())

    def test_of_a_closed_one(self, circuit: Circuit) -> None:
        """A breaker that was called tells of its window, and has no change to tell of."""
        holder = holder_named("a")
        for said in ("failed", "nothing"):
            circuit.end(holder, circuit.begin(holder), "failed" if said == "failed" else "nothing")

        state = circuit.state
        assert (BreakerPhase.CLOSED, 1, 2, None, None, ()) == (
            *(state.state, state.failures, state.calls),
            *(state.since, state.until, state.changes),
        )

    def test_of_an_open_one(self, circuit: Circuit) -> None:
        """An open one tells since when and until when, what opened it, and who waits."""
        holder = holder_named("a")
        circuit.trip(holder)
        circuit.park(holder, "letter")

        state = circuit.state
        assert state.since is not None
        assert state.until is not None
        assert 60 == pytest.approx((state.until - state.since).total_seconds(), abs=0.01)
        assert abs((state.since - datetime.now(UTC)).total_seconds()) < 60
        assert (3, 3, 1, 0, 1) == (state.failures, state.calls, state.waiting, state.probes, state.places)

    def test_by_name(self, circuit: Circuit) -> None:
        """They come by name, each with its own changes."""
        for name in ("b", "a:x"):
            circuit.breakers.open(name, by="ann")

        assert [("a:x", 1), ("b", 1)] == [(one.name, len(one.changes)) for one in circuit.breakers.states()]


class TestAway:
    def test_a_report_is_forgotten(self) -> None:
        """A breaker that can't be told is no trouble of the task's."""
        with store_at("redis://127.0.0.1:1", socket_connect_timeout=1) as store:
            call = Admission("api", "0", "a:1", probe=False)

            assert CircuitBreaker(store).report(call, "failed", Breaker("api"), by="text@a").changed is None
