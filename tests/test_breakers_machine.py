"""A breaker under any order of events: never more probes than places, and no message lost, doubled or forgotten."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from orchestra.breaker import BreakerPhase, Said
from orchestra.leases import Lease, LeaseHolder, Start
from tests.circuits import API, Call, Circuit, circuit_at
from tests.transit import holder_named

QUEUES = ("shop:llm", "shop:mixed")  # all tasks of the first share the breaker
SHARED = {"shop:llm": "api"}
SAID: Sequence[Said] = ("failed", "succeeded", "nothing")


@dataclass
class _Held:
    """A message in a holder's hands, and the call that began with it."""

    message: str
    lease: Lease
    holder: LeaseHolder
    call: Call | None = None
    told: bool = False


class _Fleet(RuleBasedStateMachine):
    """Two agents, and one breaker with up to three places."""

    held = Bundle("held")

    def __init__(self, url_circuit: Circuit) -> None:
        super().__init__()
        self.circuit = url_circuit
        self.transit = url_circuit.transit
        self.transit.client.flushdb()
        self.holders = [holder_named("a"), holder_named("b")]
        self.names = ["a", "b"]
        self.messages: dict[str, bool] = {}  # whether it's still to be done
        self.probing: list[_Held] = []  # begun as probes since the breaker's last change

    @initialize(probes=st.integers(1, 3))
    def with_places(self, probes: int) -> None:
        self.circuit.policy = replace(API, failures=2, probes=probes)

    # ── messages ──

    @rule(queue=st.sampled_from(QUEUES), count=st.integers(1, 4))
    def send(self, queue: str, count: int) -> None:
        for _ in range(count):
            message = f"message-{len(self.messages)}."
            self.messages[message] = True
            self.transit.put(message, queue=queue)

    @rule(target=held, who=st.integers(0, 1), limit=st.integers(1, 5))
    def fetch(self, who: int, limit: int) -> Any:
        holder = self.holders[who]
        phase = self._phase()
        fetched = self.transit.fetch(holder, *QUEUES, limit=limit, shared=SHARED)
        assert fetched is not None
        if phase is BreakerPhase.OPEN:
            assert [] == [one for one in fetched.deliveries if one.queue in SHARED]
        taken = [_Held(one.message, Lease(holder.name, one.number, one.queue), holder) for one in fetched.deliveries]
        return multiple(*taken)

    @rule(one=held)
    def begin(self, one: _Held) -> None:
        if one.call is not None:
            return
        phase, had = self._phase(), self._has(one)
        begun = self.circuit.ask(one.lease, task_id=one.message)
        if begun.verdict is not Start.STARTED:
            assert (begun.verdict is Start.PARKED) == had
            return
        assert had
        one.call = self.circuit.admitted(one.lease, begun)
        assert one.call.admission.probe == (phase is not BreakerPhase.CLOSED)
        if begun.told[2]:
            self.probing = []
        if one.call.admission.probe:
            self.probing.append(one)

    @rule(one=held, said=st.sampled_from(SAID), again=st.booleans())
    def end(self, one: _Held, said: Said, again: bool) -> None:
        if one.call is None or one.told:
            return
        one.told = True
        had = self._has(one)
        counted = had and one in self.probing
        changed = self.circuit.say(one.call, said, may_run_again=again)
        if changed is not None:
            assert counted or not one.call.admission.probe
            self.probing = []
        elif said == "nothing" and one in self.probing:
            self.probing.remove(one)
        if had and not self._has(one):
            assert (said, again, one.call.admission.probe) == ("failed", True, True)
            return
        if had:  # what becomes of a late acknowledgement is another machine's
            self.transit.say(one.holder, "settle", one.lease)
            self.messages[one.message] = False

    @rule(one=consumes(held), word=st.sampled_from(["return", "release"]))
    def give_back(self, one: _Held, word: str) -> None:
        self.transit.say(one.holder, word, one.lease)
        self._forget_lost()

    @rule(who=st.integers(0, 1))
    def lose(self, who: int) -> None:
        self.transit.silence(self.holders[who])
        self.transit.beat()
        self.holders[who] = holder_named(f"{self.holders[who].name}+")
        self.names.append(self.holders[who].name)
        self._forget_lost()

    def _forget_lost(self) -> None:
        self.probing = [one for one in self.probing if one.told or self._has(one)]

    # ── time, and people ──

    @rule()
    def cool_down(self) -> None:
        if self._phase() is BreakerPhase.OPEN:
            self.circuit.cool_down()

    @rule()
    def beat(self) -> None:
        self.transit.beat()

    @rule(act=st.sampled_from(["open", "open for a while", "close", "reset"]))
    def steer(self, act: str) -> None:
        if act == "close":
            self.circuit.breakers.close("api", by="ann")
        elif act == "reset":
            self.circuit.breakers.reset("api", by="ann")
        else:
            seconds = 60.0 if act == "open for a while" else None
            self.circuit.breakers.open("api", by="ann", seconds=seconds, policy=self.circuit.policy)
        self.probing = []

    # ── what holds at every moment ──

    @invariant()
    def no_more_probes_than_places(self) -> None:
        """Those that are under way and those that have succeeded never exceed the places."""
        assert len(self.probing) <= self.circuit.policy.probes

    @invariant()
    def every_message_is_in_one_place(self) -> None:
        """Each is in a queue, with a holder, or with the breaker, which is looked after unless it's held open."""
        keys = self.transit.keys
        with self.transit.client.pipeline(transaction=True) as pipe:
            for queue in QUEUES:
                pipe.lrange(queue, 0, -1)
            pipe.zrange(keys.parked("api"), 0, -1)
            for name in self.names:
                pipe.hvals(keys.leases(name))
            pipe.hgetall(keys.parked_counts)
            pipe.zscore(keys.due, "\napi")
            pipe.hget(keys.breaker("api"), "forced")
            *places, counts, due, forced = pipe.execute()
        text = b"\n".join(value for place in places for value in place).decode()
        parked = Counter(value.split(b"\n")[0] for value in places[2])

        for message, wanted in self.messages.items():
            assert (1 if wanted else 0) == text.count(message), message
        assert parked == {queue: int(count) for queue, count in counts.items()}
        assert due is not None or forced or not parked

    def _phase(self) -> BreakerPhase:
        found = [state for state in self.circuit.breakers.states() if state.name == "api"]
        return found[0].state if found else BreakerPhase.CLOSED

    def _has(self, one: _Held) -> bool:
        return bool(self.transit.client.hexists(self.transit.keys.leases(one.lease.holder), one.lease.number))


def _run(url: str, *, examples: int, steps: int) -> None:
    with circuit_at(url) as circuit:
        machine: Any = partial(_Fleet, circuit)
        run_state_machine_as_test(machine, settings=settings(max_examples=examples, stateful_step_count=steps))


class TestAnyOrderOfEvents:
    def test_quickly(self, redis_url: str) -> None:
        """Whatever calls come to and whatever befalls agents, places are kept and messages aren't lost."""
        _run(redis_url, examples=40, steps=25)

    @pytest.mark.slow
    def test_thoroughly(self, redis_url: str) -> None:
        """So it is in longer lives."""
        _run(redis_url, examples=200, steps=40)
