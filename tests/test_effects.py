"""Effects: they happen once, with a value that stays, and never by a run that another one has overtaken."""

from collections.abc import Iterator
from threading import Barrier, Thread
from typing import Any

import pytest

from orchestra.effects import Effect, once
from orchestra.exceptions import AgentOrchestraException, FencedError, ValidationError
from orchestra.store import Store
from orchestra.types import JSONValue
from tests.stores import store_at


@pytest.fixture
def store(redis_url: str) -> Iterator[Store]:
    """Give the shop's store over an empty Redis."""
    with store_at(redis_url) as store:
        yield store


def carry_out(store: Store, effect: Effect, *, task_id: str = "1", name: str = "pay") -> JSONValue:
    """Carry an effect out."""
    return once(store, task_id, name, effect, ttl_seconds=60)


def paid(pipe: Any) -> JSONValue:
    """Pay one, and note for whom."""
    pipe.incr("balance")
    pipe.rpush("receipts", "A7")
    return {"receipt": "A7"}


class TestOnce:
    def test_happens_once(self, store: Store) -> None:
        """A second run gets the first one's value, and isn't even asked for commands."""
        assert {"receipt": "A7"} == carry_out(store, paid)
        assert {"receipt": "A7"} == carry_out(store, lambda _: pytest.fail("it has happened"))

        assert (b"1", 1) == (store.command("GET", "balance"), store.command("LLEN", "receipts"))

    def test_effects_are_told_apart(self, store: Store) -> None:
        """Each task has effects of its own, by their names, and their memory ends."""
        for task_id, name in (("1", "pay"), ("1", "mail"), ("2", "pay")):
            carry_out(store, paid, task_id=task_id, name=name)

        assert b"3" == store.command("GET", "balance")
        assert 0 < store.command("PTTL", store.keys.effect("1", "pay")) <= 60_000

    def test_one_that_fails_has_not_happened(self, store: Store) -> None:
        """When `effect` raises, nothing of it is carried out, and the next run may."""

        def failing(pipe: Any) -> JSONValue:
            pipe.incr("balance")
            raise KeyError("no")

        def odd(pipe: Any) -> Any:
            pipe.incr("balance")
            return {1, 2}

        with pytest.raises(KeyError):
            carry_out(store, failing)
        with pytest.raises(ValidationError, match="no JSON"):
            carry_out(store, odd)
        assert store.command("GET", "balance") is None

        carry_out(store, paid)
        assert b"1" == store.command("GET", "balance")

    def test_refused_commands(self, store: Store) -> None:
        """What Redis refuses altogether hasn't happened; where a part of it has, it isn't repeated."""
        store.command("SET", "receipts", "no list")

        with pytest.raises(AgentOrchestraException, match="WRONGTYPE"):
            carry_out(store, lambda pipe: pipe.rpush("receipts", "A7") and None)
        assert not store.command("HEXISTS", store.keys.effect("1", "pay"), "value")
        with pytest.raises(AgentOrchestraException, match="WRONGTYPE"):
            carry_out(store, paid)
        carry_out(store, paid)
        assert b"1" == store.command("GET", "balance")

    def test_many_at_once(self, store: Store, redis_url: str) -> None:
        """Of runs that come together one carries it out; the others have its value, or are overtaken."""
        barrier, values, fenced = Barrier(8), list[JSONValue](), list[FencedError]()

        def run() -> None:
            with store_at(redis_url) as own:
                barrier.wait(timeout=30)
                try:
                    values.append(carry_out(own, paid))
                except FencedError as error:
                    fenced.append(error)

        threads = [Thread(target=run) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)

        assert 8 == len(values) + len(fenced)
        assert [{"receipt": "A7"}] * len(values) == values
        assert (b"1", 1) == (store.command("GET", "balance"), store.command("LLEN", "receipts"))


class TestFence:
    def test_a_run_that_was_overtaken(self, store: Store) -> None:
        """A run during which a later one has claimed the effect doesn't carry it out, whoever commits first."""

        def overtaken(pipe: Any) -> JSONValue:
            with pytest.raises(ZeroDivisionError):
                carry_out(store, lambda _: 1 // 0)  # the other run claims, and hasn't committed yet
            return paid(pipe)

        with pytest.raises(FencedError, match="later run"):
            carry_out(store, overtaken)

        assert store.command("GET", "balance") is None
        assert {"receipt": "A7"} == carry_out(store, paid)

    def test_a_run_that_comes_last(self, store: Store) -> None:
        """A run during which a later one has carried the effect out takes that one's value."""

        def late(pipe: Any) -> JSONValue:
            carry_out(store, paid)
            pipe.set("balance", 700)
            return "late"

        assert {"receipt": "A7"} == carry_out(store, late)
        assert b"1" == store.command("GET", "balance")
