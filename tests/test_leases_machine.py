"""Messages in transit, in any order of events: each is in one place or done with, and none that is done with starts."""

from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from orchestra.leases import Lease, LeaseHolder, Start
from orchestra.types import TaskState
from tests.dead import dead_letters_of
from tests.stores import manager_of
from tests.transit import Delivery, Transit, holder_named, transit_at

LISTS = [("shop:nlp", "shop:nlp"), ("celery", "celery"), ("shop:nlp\x06\x163", "shop:nlp")]
QUEUES = sorted({queue for _, queue in LISTS})


@dataclass(eq=False)
class _Held:
    """One delivery of a message, which its holder may have lost by now."""

    lease: Lease
    holder: LeaseHolder
    message: str
    started: bool = False
    given_up: bool = False
    failed: bool = False


@dataclass
class _Life:
    """What has become of a message."""

    gone: bool = False  # nothing of it may be anywhere
    settled: bool = False  # an agent has said that it's done with; a copy may wait, and must not start
    condemned: bool = False  # an agent has said that it's a dead letter, and nobody has replayed it since
    runs: list[_Held] = field(default_factory=list)


class _Transit(RuleBasedStateMachine):
    held: Bundle[_Held] = Bundle("held")

    def __init__(self, transit: Transit) -> None:
        super().__init__()
        transit.client.flushdb()
        self.transit = transit
        self.lives: dict[str, _Life] = {}
        self.holders = [holder_named(name) for name in ("a", "b")]
        self.sessions = {holder.name: holder.next_session() for holder in self.holders}
        self.names = [holder.name for holder in self.holders]  # of all that there were
        self.lost: set[str] = set()  # names of those that left, or fell silent at some time

    # ── what producers and agents do ──

    @rule(which=st.sampled_from(LISTS))
    def put(self, which: tuple[str, str]) -> None:
        message = f"<{len(self.lives)}>"
        self.lives[message] = _Life()
        self.transit.put(message, queue=which[0])

    @rule(target=held, who=st.integers(0, 1), limit=st.integers(1, 3), idle=st.booleans(), begins=st.booleans())
    def fetch(self, who: int, limit: int, idle: bool, begins: bool) -> Any:  # one delivery, or several
        held = self._fetch(who, limit=limit, free=limit if idle else 0)
        for one in held if begins else ():
            self.start(one, once=False)
        return multiple(*held)

    @rule(target=held, who=st.integers(0, 1))
    def fetch_over_a_new_connection(self, who: int) -> Any:
        self.sessions[self.holders[who].name] = self.holders[who].next_session()
        return multiple(*self._fetch(who, limit=10))

    def _fetch(self, who: int, *, limit: int, free: int = 0) -> list[_Held]:
        holder = self.holders[who]
        session = self.sessions[holder.name]
        fetched = self.transit.fetch(holder, lists=LISTS, limit=limit, free=free, session=session, after=-1)
        assert fetched is not None
        assert len(fetched.deliveries) <= limit
        return [self._delivered(holder, one) for one in fetched.deliveries]

    def _delivered(self, holder: LeaseHolder, delivery: Delivery) -> _Held:
        life = self.lives[delivery.message]
        assert not life.gone
        assert not life.settled
        assert not life.condemned
        assert bool(life.runs) <= bool(delivery.times_again), "it was begun before, and isn't marked so"
        assert all(run.given_up or run.holder.name in self.lost for run in life.runs), "it runs, and its agent lives"
        return _Held(Lease(holder.name, delivery.number, delivery.queue), holder, delivery.message)

    @rule(who=st.integers(0, 1))
    def fetch_by_an_old_connection(self, who: int) -> None:
        holder = self.holders[who]
        before = self._look().places
        self.sessions[holder.name] = holder.next_session()
        self.transit.fetch(holder, "none", session=self.sessions[holder.name])
        given_back = self._look().places
        assert set(before) == set(given_back)

        assert self.transit.fetch(holder, lists=LISTS, session=self.sessions[holder.name] - 1) is None
        assert given_back == self._look().places

    @rule(one=held, once=st.booleans())
    def begin(self, one: _Held, once: bool) -> None:
        self.start(one, once=once)

    def start(self, one: _Held, *, once: bool) -> None:
        life, held = self.lives[one.message], self._is_held(one)
        once = once and not life.runs
        verdict = self.transit.start(one.lease, one.message, once=once)

        assert (verdict is Start.MOVED) == (not held)
        if verdict is Start.STARTED:
            assert not life.settled or one.started, "it was done with"
            one.started = True
            life.runs.append(one)
            if once:
                life.gone = life.settled = True

    @rule(one=held, recorded=st.booleans())
    def settle(self, one: _Held, recorded: bool) -> None:
        life, held = self.lives[one.message], self._is_held(one)
        if not held and not one.started:
            return  # nobody acknowledges what he never had in hand
        if one.failed:
            self.transit.say(one.holder, "settle", one.lease)  # as Celery does after a failure too
            return
        if recorded and one.started:
            manager_of(self.transit.store).advance(one.message, TaskState.SUCCEEDED)
        self.transit.say(one.holder, "settle", one.lease)
        life.settled = True
        life.gone = life.gone or held

    @rule(
        one=consumes(held),
        word=st.sampled_from(["return", "release", "orphaned", "condemn", "delay"]),
        for_long=st.booleans(),
    )
    def give_up(self, one: _Held, word: str, for_long: bool) -> None:
        if one.started and word not in {"release", "orphaned"}:
            return
        at = self.transit.now() + (1e6 if for_long else -1)
        self.transit.say(one.holder, word, one.lease, at if word == "delay" else "")
        one.given_up = True

    @rule(one=held)
    def fail(self, one: _Held) -> None:
        life, held = self.lives[one.message], self._is_held(one)
        if not one.started:
            return
        self.transit.say(one.holder, "condemn", one.lease, "permanent\nit fails")
        life.condemned = life.condemned or held or not (life.gone or one.failed)
        one.failed = True

    @rule(data=st.data())
    def replay(self, data: st.DataObject) -> None:
        dead = self.transit.client.zrange(self.transit.keys.dead_letters, 0, -1)
        if not dead:
            return
        letter = dead_letters_of(self.transit.store).show(data.draw(st.sampled_from(dead)).decode())
        assert 1 == dead_letters_of(self.transit.store).replay(letter.id)
        life = self.lives[(letter.message or b"").decode()]
        life.condemned, life.runs = False, []

    @rule(one=held, word=st.sampled_from(["claim", "keep"]))
    def mark(self, one: _Held, word: str) -> None:
        self.transit.say(one.holder, word, one.lease)

    @rule(who=st.integers(0, 1), ending=st.booleans())
    def drain(self, who: int, ending: bool) -> None:
        holder = self.holders[who]
        given = self.transit.give_back(holder, ending=ending)
        assert given <= set(range(holder.reserve(0)))
        if ending:
            self.sessions[holder.name] = holder.next_session()

    # ── what happens to agents ──

    @rule(who=st.integers(0, 1))
    def leave(self, who: int) -> None:
        self.lost.add(self.holders[who].name)
        self.transit.give_back(self.holders[who], leaving=True)
        self._replace(who)

    @rule(who=st.integers(0, 1), limit=st.sampled_from([1, 1000]), survives=st.booleans())
    def lose(self, who: int, limit: int, survives: bool) -> None:
        self.lost.add(self.holders[who].name)
        self.transit.silence(self.holders[who])
        self.transit.beat(limit=limit)
        if not survives:
            self._replace(who)

    def _replace(self, who: int) -> None:
        self.holders[who] = holder_named(f"{self.holders[who].name}+")
        self.sessions[self.holders[who].name] = self.holders[who].next_session()
        self.names.append(self.holders[who].name)

    # ── what holds at every moment ──

    @invariant()
    def every_message_is_in_its_place(self) -> None:
        """Each is in one place; who holds a lease and its queue agree on it; and what is delayed is awaited."""
        found = self._look()

        for message, life in self.lives.items():
            expected = {0} if life.gone else {0, 1} if life.settled else {1}
            assert found.places[message] in expected, (message, life, found.places[message])
        assert found.leases_by_holder == found.leases_by_queue
        for first, awaited in found.delays:
            assert (awaited is not None) == (first is not None)
            assert awaited is None or first is None or awaited <= first

    def _is_held(self, one: _Held) -> bool:
        return bool(self.transit.client.hexists(self.transit.keys.leases(one.lease.holder), one.lease.number))

    def _look(self) -> "_Found":
        """Read all that the server holds, in one round trip and one for each dead letter."""
        keys = self.transit.keys
        lists = [name for name, _ in LISTS]
        with self.transit.client.pipeline(transaction=True) as pipe:
            for name in lists:
                pipe.lrange(name, 0, -1)
            for queue in QUEUES:
                pipe.zrange(keys.delayed(queue), 0, -1, withscores=True)
                pipe.zscore(keys.due, queue)
                pipe.zrange(keys.leased(queue), 0, -1)
            for name in self.names:
                pipe.hgetall(keys.leases(name))
            pipe.keys(keys.dead_letter("*"))
            *reply, letters = pipe.execute()
        listed, rest = reply[: len(lists)], reply[len(lists) :]
        by_queue, leases = rest[: 3 * len(QUEUES)], rest[3 * len(QUEUES) :]
        delayed, due, leased = by_queue[::3], by_queue[1::3], by_queue[2::3]
        values = [raw for raws in listed for raw in raws]
        values += [value for each in delayed for value, _ in each]
        values += [value for each in leases for value in each.values()]
        values += [self.transit.client.hget(key, "raw") for key in letters]
        text = b"\n".join(values).decode()
        return _Found(
            places=Counter({message: text.count(message) for message in self.lives}),
            leases_by_holder={
                f"{name}:{int(number)}" for name, each in zip(self.names, leases, strict=True) for number in each
            },
            leases_by_queue={name.decode() for each in leased for name in each},
            delays=[(each[0][1] if each else None, awaited) for each, awaited in zip(delayed, due, strict=True)],
        )


@dataclass(frozen=True)
class _Found:
    places: Counter[str]  # how often each message is anywhere
    leases_by_holder: set[str]
    leases_by_queue: set[str]
    delays: list[tuple[float | None, float | None]]  # of each queue: the first delayed message's time, and the table's


def _run(url: str, *, examples: int, steps: int) -> None:
    with transit_at(url) as transit:
        machine: Any = partial(_Transit, transit)
        run_state_machine_as_test(machine, settings=settings(max_examples=examples, stateful_step_count=steps))


class TestAnyOrderOfEvents:
    def test_quickly(self, redis_url: str) -> None:
        """Whatever agents do and whatever befalls them, no message is lost or doubled, or begins after its end."""
        _run(redis_url, examples=100, steps=25)

    @pytest.mark.slow
    def test_thoroughly(self, redis_url: str) -> None:
        """So it is in longer lives."""
        _run(redis_url, examples=1000, steps=50)
