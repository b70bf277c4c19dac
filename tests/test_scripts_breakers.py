"""Breakers script by script: when they open, who may probe, what waits for them, and when it goes on."""

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest

from orchestra.breaker import BreakerPhase
from orchestra.leases import Lease, LeaseHolder, Start
from orchestra.types import TaskState
from tests.circuits import API, Circuit, circuit_at
from tests.stores import manager_of, publish, states_of
from tests.transit import QUEUE, holder_named

SHARED = {QUEUE: "api"}


@pytest.fixture
def circuit(redis_url: str) -> Iterator[Circuit]:
    """Give a breaker on an empty server."""
    with circuit_at(redis_url) as circuit:
        yield circuit


@pytest.fixture
def holder() -> LeaseHolder:
    """Give an agent's holder."""
    return holder_named("a")


@pytest.fixture
def other() -> LeaseHolder:
    """Give another agent's."""
    return holder_named("b")


class TestClosed:
    def test_as_many_failures_as_it_takes(self, circuit: Circuit, holder: LeaseHolder) -> None:
        """The last of so many failures opens it, and no earlier one."""
        changes = [circuit.end(holder, circuit.begin(holder), "failed") for _ in range(3)]

        assert [None, None, BreakerPhase.OPEN] == changes
        assert (3, 3, False) == (circuit.state.failures, circuit.state.calls, circuit.state.forced)

    def test_as_large_a_part(self, circuit: Circuit, holder: LeaseHolder) -> None:
        """Failures that are too small a part of the window's calls don't open it; those that make the part up do."""
        for _ in range(4):
            circuit.end(holder, circuit.begin(holder), "nothing")
        changes = [circuit.end(holder, circuit.begin(holder), "failed") for _ in range(4)]

        assert [None, None, None, BreakerPhase.OPEN] == changes
        assert (4, 8) == (circuit.state.failures, circuit.state.calls)

    def test_a_service_that_goes_away(self, circuit: Circuit, holder: LeaseHolder) -> None:
        """Failures are set against the last calls as well: the good ones before don't keep it closed."""
        earlier = circuit.transit.now() - 12
        circuit.transit.client.hset(circuit.transit.keys.breaker_calls("api"), f"c{earlier:.3f}", 500)

        assert BreakerPhase.OPEN is [circuit.end(holder, circuit.begin(holder), "failed") for _ in range(3)][-1]
        assert (3, 3) == (circuit.state.failures, circuit.state.calls)

    def test_the_window_passes(self, circuit: Circuit, holder: LeaseHolder) -> None:
        """What is older than the window counts for nothing."""
        key = circuit.transit.keys.breaker_calls("api")
        long_ago = f"{circuit.transit.now() - 70:.3f}"
        circuit.transit.client.hset(key, mapping={f"c{long_ago}": 50, f"f{long_ago}": 50})

        assert [None, None] == [circuit.end(holder, circuit.begin(holder), "failed") for _ in range(2)]

    def test_a_repeated_report(self, circuit: Circuit, holder: LeaseHolder) -> None:
        """A failure that is told twice, after a lost answer, is one."""
        call = circuit.begin(holder)

        assert [None] * 5 == [circuit.say(call, "failed") for _ in range(5)]
        assert 1 == circuit.state.failures

    def test_nothing_is_left_of_an_idle_one(self, circuit: Circuit, holder: LeaseHolder) -> None:
        """Its calls go with the window, and it isn't listed for ever."""
        circuit.begin(holder)

        assert 0 < circuit.transit.client.pttl(circuit.transit.keys.breaker_calls("api")) <= 120_000
        assert 0 == circuit.transit.client.exists(circuit.transit.keys.breaker("api"))
        circuit.transit.client.zadd(circuit.transit.keys.breakers, {"forgotten": 1})
        circuit.transit.client.delete(circuit.transit.keys.breaker_calls("api"))
        circuit.begin(holder)
        assert ["api"] == circuit.breakers.names()


class TestOpen:
    def test_a_task_waits(self, circuit: Circuit, holder: LeaseHolder) -> None:
        """Its lease ends in the step in which it begins to wait, its record says so, and no attempt is counted."""
        publish(circuit.transit.store, "1", suffix="", queue="elsewhere")
        circuit.trip(holder)
        lease = circuit.transit.lease(holder, "letter")

        begun = circuit.ask(lease)

        assert Start.PARKED is begun.verdict
        assert {"parked:api"} == circuit.transit.places("letter")
        assert circuit.transit.score(lease) is None
        record = manager_of(circuit.transit.store).read("1")
        assert record is not None
        assert (TaskState.SUBMITTED, 1) == (record.state, record.attempt)
        assert "waits for breaker api" == record.history[-1].note

    def test_a_copy_of_a_task_that_ran(self, circuit: Circuit, holder: LeaseHolder) -> None:
        """One that was running when its agent was lost isn't running while it waits; waiting again is noted once."""
        publish(circuit.transit.store, "1", suffix="", queue="elsewhere")
        circuit.trip(holder)
        manager_of(circuit.transit.store).advance("1", TaskState.RUNNING)
        for _ in range(2):
            circuit.ask(circuit.transit.lease(holder, "letter"))

        states = states_of(manager_of(circuit.transit.store).read("1"))
        assert [TaskState.SUBMITTED, TaskState.RUNNING, TaskState.SUBMITTED] == states

    def test_a_retry_waits_as_one(self, circuit: Circuit, holder: LeaseHolder) -> None:
        """A second attempt that waits stays a second attempt."""
        publish(circuit.transit.store, "1", suffix="", queue="elsewhere")
        publish(circuit.transit.store, "1", suffix="", queue="elsewhere", attempt=2)
        circuit.trip(holder)
        circuit.ask(circuit.transit.lease(holder, "letter"), attempt=2)

        record = manager_of(circuit.transit.store).read("1")
        assert record is not None
        assert (TaskState.RETRYING, 2) == (record.state, record.attempt)

    def test_asked_twice(self, circuit: Circuit, holder: LeaseHolder) -> None:
        """The same start again, after a lost answer, finds the lease gone and changes nothing."""
        circuit.trip(holder)
        lease = circuit.transit.lease(holder, "letter")

        assert [Start.PARKED, Start.MOVED] == [circuit.ask(lease).verdict for _ in range(2)]
        assert ["letter"] == circuit.parked()

    @pytest.mark.parametrize("once", [False, True])
    def test_a_task_fails(self, circuit: Circuit, holder: LeaseHolder, once: bool) -> None:
        """One that doesn't wait is told until when the breaker is open; nobody else takes its message over."""
        publish(circuit.transit.store, "1", suffix="", queue="elsewhere")
        circuit.trip(holder)
        lease = circuit.transit.lease(holder, "letter")

        begun = circuit.ask(lease, on_open="fail", once=once)

        until, left = map(float, begun.told)
        assert Start.REFUSED is begun.verdict
        assert 50 < left <= 60
        assert abs(until - left - circuit.transit.now()) < 30
        assert (None if once else float("inf")) == circuit.transit.score(lease)
        assert [TaskState.SUBMITTED] == states_of(manager_of(circuit.transit.store).read("1"))

    def test_a_cancelled_task(self, circuit: Circuit, holder: LeaseHolder) -> None:
        """A task that isn't going to run doesn't wait for anything, nor takes a place."""
        publish(circuit.transit.store, "1", suffix="", queue="elsewhere")
        circuit.trip(holder)
        manager_of(circuit.transit.store).cancel("1")

        assert (Start.STARTED, "cancelled") == circuit.ask(circuit.transit.lease(holder, "letter"))[:2]

    def test_late_results(self, circuit: Circuit, holder: LeaseHolder) -> None:
        """What began before it opened decides nothing, neither now nor once it's closed again."""
        late = [circuit.begin(holder) for _ in range(8)]
        circuit.breakers.open("api", by="ann", seconds=50, policy=API)
        assert [None] * 4 == [circuit.end(holder, call, "failed") for call in late[:4]]
        circuit.cool_down()
        probe = circuit.begin(holder)
        assert probe.admission.probe
        assert circuit.end(holder, late[4], "failed") is None
        assert circuit.end(holder, late[5], "succeeded") is None
        assert BreakerPhase.CLOSED is circuit.end(holder, probe, "succeeded")

        assert [None, None] == [circuit.end(holder, call, "failed") for call in late[6:]]
        assert (BreakerPhase.CLOSED, 0) == (circuit.state.state, circuit.state.failures)


class TestHalfOpen:
    @pytest.mark.parametrize("probes", [1, 3])
    def test_exactly_so_many_probes(self, redis_url: str, holder: LeaseHolder, probes: int) -> None:
        """Of all who ask, as many as there are places begin; the rest waits until all of them have succeeded."""
        with circuit_at(redis_url, replace(API, probes=probes)) as circuit:
            circuit.trip(holder)
            circuit.cool_down()
            leases = [circuit.transit.lease(holder, f"letter {number}") for number in range(6)]
            answers = [circuit.ask(lease) for lease in leases]
            calls = [
                circuit.admitted(lease, answer)
                for lease, answer in zip(leases, answers, strict=True)
                if answer.verdict is Start.STARTED
            ]

            assert [Start.STARTED] * probes + [Start.PARKED] * (6 - probes) == [one.verdict for one in answers]
            assert ["half_open", *[""] * (probes - 1)] == [one.told[2] for one in answers[:probes]]
            assert (BreakerPhase.HALF_OPEN, probes) == (circuit.state.state, circuit.state.probes)
            changes = [circuit.end(holder, call, "succeeded") for call in calls]
            assert [*[None] * (probes - 1), BreakerPhase.CLOSED] == changes

    def test_a_success_keeps_its_place(self, redis_url: str, holder: LeaseHolder) -> None:
        """A probe that has succeeded makes no room for another one."""
        with circuit_at(redis_url, replace(API, probes=2)) as circuit:
            circuit.trip(holder)
            circuit.cool_down()
            circuit.end(holder, circuit.begin(holder), "succeeded")
            circuit.begin(holder)

            circuit.park(holder, "letter")

    def test_one_failure(self, circuit: Circuit, holder: LeaseHolder) -> None:
        """It opens again for another cooldown."""
        circuit.trip(holder)
        circuit.cool_down()

        assert BreakerPhase.OPEN is circuit.end(holder, circuit.begin(holder), "failed")
        circuit.park(holder, "letter")
        until = circuit.state.until
        assert until is not None
        assert 50 < until.timestamp() - circuit.transit.now() <= 60

    @pytest.mark.parametrize("may", [True, False])
    def test_a_probe_that_failed(self, circuit: Circuit, holder: LeaseHolder, may: bool) -> None:
        """Its task goes to the back of its queue, on the attempt that it's on, if it may be run again."""
        publish(circuit.transit.store, "1", suffix="", queue="elsewhere")
        circuit.trip(holder)
        lease = circuit.transit.lease(holder, "letter")
        circuit.cool_down()
        probe = circuit.admitted(lease, circuit.ask(lease))
        circuit.transit.put("waiting")

        assert BreakerPhase.OPEN is circuit.say(probe, "failed", may_run_again=may)

        assert (["waiting", "letter"] if may else ["waiting"]) == circuit.transit.waiting()
        assert ({QUEUE} if may else {"leases:a"}) == circuit.transit.places("letter")
        record = manager_of(circuit.transit.store).read("1")
        assert record is not None
        assert (TaskState.SUBMITTED if may else TaskState.RUNNING, 1) == (record.state, record.attempt)

    def test_what_says_nothing(self, circuit: Circuit, holder: LeaseHolder) -> None:
        """A task's own error frees the place at once, and the first that waits is let out for it."""
        circuit.trip(holder)
        circuit.park(holder, "waits")
        circuit.park(holder, "waits too")
        probe = circuit.begin_when_cool(holder)
        assert [] == circuit.transit.messages(holder)

        assert circuit.end(holder, probe, "nothing") is None

        assert ["waits"] == circuit.transit.messages(holder)
        assert ["waits too"] == circuit.parked()

    def test_asked_twice(self, circuit: Circuit, holder: LeaseHolder) -> None:
        """The same start again, after a lost answer, is the same probe."""
        circuit.trip(holder)
        circuit.cool_down()
        lease = circuit.transit.lease(holder, "letter")

        assert ["probe", "probe"] == [circuit.ask(lease).told[0] for _ in range(2)]
        assert 1 == circuit.state.probes

    @pytest.mark.parametrize("way", ["lost", "leaves", "release", "settle"])
    def test_the_place_of_one_that_is_gone(
        self, circuit: Circuit, holder: LeaseHolder, other: LeaseHolder, way: str
    ) -> None:
        """The place is free once the probe's lease has ended, however that came; a late word of it decides nothing."""
        circuit.trip(holder)
        circuit.cool_down()
        probe = circuit.begin(holder, "probe", queue=QUEUE)
        circuit.park(other, "too many")
        if way == "lost":
            circuit.transit.silence(holder)
            circuit.transit.beat()
        elif way == "leaves":
            circuit.transit.give_back(holder, leaving=True)
        else:
            circuit.transit.say(holder, way, probe.lease)

        message = "another" if way == "settle" else "probe"
        if way == "settle":
            circuit.transit.put(message)
        fetched = circuit.transit.fetch(other)
        assert fetched is not None
        (again,) = [one for one in fetched.deliveries if one.message == message]
        heir = circuit.admitted(
            replace(probe.lease, holder="b", number=again.number),
            circuit.ask(replace(probe.lease, holder="b", number=again.number)),
        )
        assert heir.admission.probe
        assert circuit.say(probe, "succeeded") is None
        assert BreakerPhase.CLOSED is circuit.say(heir, "succeeded")

    def test_a_probe_that_runs_at_most_once(self, circuit: Circuit, holder: LeaseHolder) -> None:
        """It holds no lease, so its place is taken until it tells, or its time is over."""
        circuit.trip(holder)
        circuit.cool_down()
        probe = circuit.begin(holder, once=True)
        circuit.park(holder, "too many")
        key = circuit.transit.keys.breaker_probes("api")
        assert 20 < circuit.transit.client.zscore(key, probe.admission.lease) - circuit.transit.now() <= 30

        circuit.transit.client.zadd(key, {probe.admission.lease: circuit.transit.now() - 1})

        assert circuit.begin(holder, "next").admission.probe


class TestLettingOut:
    def test_probes_first(self, circuit: Circuit, holder: LeaseHolder) -> None:
        """When the cooldown is over as many as may probe go to the front of their queue; the rest waits on."""
        circuit.trip(holder)
        for letter in "abc":
            circuit.park(holder, letter)
        circuit.transit.put("waiting")
        circuit.cool_down()

        circuit.transit.beat()

        assert ["a", "waiting"] == circuit.transit.waiting()
        assert ["b", "c"] == circuit.parked()
        circuit.transit.beat()
        assert ["b", "c"] == circuit.parked()

    def test_the_row_is_kept(self, circuit: Circuit, holder: LeaseHolder) -> None:
        """One that was let out for a place which another took waits on before those that came after it."""
        circuit.trip(holder)
        for letter in "abc":
            circuit.park(holder, letter)
        circuit.cool_down()
        (lease,) = circuit.fetched(holder)
        circuit.begin(holder)

        assert Start.PARKED is circuit.ask(lease).verdict
        assert ["a", "b", "c"] == circuit.parked()

    def test_one_that_never_begins(self, circuit: Circuit, holder: LeaseHolder) -> None:
        """When what was let out was revoked meanwhile, say, the next one is before long."""
        circuit.trip(holder)
        for letter in "abc":
            circuit.park(holder, letter)
        circuit.cool_down()
        circuit.transit.beat()
        circuit.transit.client.delete(QUEUE)

        circuit.wait_out()
        circuit.transit.beat()

        assert ["b"] == circuit.transit.waiting()

    @pytest.mark.parametrize("count", [3, 1100])
    def test_all_in_order(self, circuit: Circuit, holder: LeaseHolder, count: int) -> None:
        """When it closes all come out, by bounded steps, in the order in which they began to wait."""
        letters = [f"{number:04}" for number in range(count)]
        circuit.trip(holder)
        probe_later = circuit.transit.now() - 5000
        for number, letter in enumerate(letters):
            circuit.transit.client.zadd(
                circuit.transit.keys.parked("api"), {f"{QUEUE}\n{QUEUE}\n{letter}": probe_later + number}
            )
        circuit.transit.client.hset(circuit.transit.keys.parked_counts, QUEUE, count)
        probe = circuit.begin_when_cool(holder)
        circuit.transit.put("waiting")
        circuit.end(holder, probe, "succeeded")
        assert len(circuit.transit.waiting()) <= 501
        for _ in range(3):
            circuit.transit.beat()

        assert [*letters, "waiting"] == circuit.transit.waiting()
        assert 0 == circuit.transit.client.exists(
            circuit.transit.keys.parked_counts, circuit.transit.keys.parked("api"), circuit.transit.keys.due
        )

    def test_idle_agents_hear_of_it(self, circuit: Circuit, holder: LeaseHolder) -> None:
        """A fetch tells when the cooldown is over, and what comes out wakes an agent of its queue."""
        circuit.trip(holder)
        circuit.park(holder, "letter")
        fetched = circuit.transit.fetch(holder)
        assert fetched is not None
        assert fetched.due is not None
        assert 50 < fetched.due - fetched.now <= 60
        circuit.transit.client.delete(circuit.transit.keys.wake(QUEUE))

        circuit.cool_down()
        circuit.transit.beat()

        assert 1 == circuit.transit.client.llen(circuit.transit.keys.wake(QUEUE))

    def test_none_is_forgotten(self, circuit: Circuit, holder: LeaseHolder) -> None:
        """Where a server lost the note that some wait, the next calls bring them out."""
        circuit.trip(holder)
        circuit.park(holder, "letter")
        circuit.transit.client.delete(circuit.transit.keys.due, circuit.transit.keys.breaker("api"))

        circuit.begin(holder)
        circuit.transit.beat()

        assert ["letter"] == circuit.transit.waiting()


class TestFetching:
    def test_an_open_breakers_queue(self, circuit: Circuit, holder: LeaseHolder) -> None:
        """Nothing is popped from a queue whose tasks all share an open breaker; others go on."""
        circuit.trip(holder)
        circuit.transit.put("letter")
        circuit.transit.put("other", queue="shop:other")

        assert ["other"] == circuit.transit.messages(holder, QUEUE, "shop:other", shared=SHARED)
        assert ["letter"] == circuit.transit.waiting()

    def test_a_half_open_ones(self, redis_url: str, holder: LeaseHolder, other: LeaseHolder) -> None:
        """As many are popped as may probe, by all agents together; all once it's closed."""
        with circuit_at(redis_url, replace(API, probes=2)) as circuit:
            circuit.trip(holder)
            circuit.transit.put(*"abcde")
            circuit.cool_down()

            fetched = circuit.transit.fetch(holder, shared=SHARED)
            assert fetched is not None
            assert ["a", "b"] == fetched.messages
            assert [] == circuit.transit.messages(other, shared=SHARED)
            for one in fetched.deliveries:
                lease = Lease(holder.name, one.number, QUEUE)
                circuit.end(holder, circuit.admitted(lease, circuit.ask(lease)), "succeeded")
            assert ["c", "d", "e"] == circuit.transit.messages(other, shared=SHARED)

    def test_what_was_let_out_is_fetched(self, circuit: Circuit, holder: LeaseHolder) -> None:
        """A task that waited is popped as the probe that it was let out for."""
        circuit.trip(holder)
        circuit.park(holder, "parked")
        circuit.transit.put("waiting")
        circuit.cool_down()

        assert ["parked"] == circuit.transit.messages(holder, shared=SHARED)

    def test_one_that_never_begins(self, circuit: Circuit, holder: LeaseHolder) -> None:
        """When what was popped doesn't begin, as a task that was revoked, the next one is popped before long."""
        circuit.trip(holder)
        circuit.transit.put("revoked", "letter")
        circuit.cool_down()
        assert ["revoked"] == circuit.transit.messages(holder, shared=SHARED)

        circuit.wait_out()

        assert ["letter"] == circuit.transit.messages(holder, shared=SHARED)

    def test_a_mixed_queue(self, circuit: Circuit, holder: LeaseHolder) -> None:
        """A queue that got a task by a caller's choice is popped from: that one may have nothing to do with it."""
        circuit.trip(holder)
        publish(circuit.transit.store, "1", message="by choice", queue=QUEUE, chosen=True)

        assert ["by choice"] == circuit.transit.messages(holder, shared=SHARED)
        assert 80_000 < circuit.transit.client.ttl(circuit.transit.keys.mixed(QUEUE)) <= 86_400

    def test_nobody_is_woken_for_a_paused_queue(self, circuit: Circuit, holder: LeaseHolder) -> None:
        """A fetch that has enough wakes others for what it leaves, but not for what nobody may take."""
        circuit.trip(holder)
        circuit.transit.put("letter")
        circuit.transit.put("one", "two", queue="shop:other")

        circuit.transit.fetch(holder, "shop:other", QUEUE, limit=1, shared=SHARED)

        wake = circuit.transit.keys.wake
        assert [1, 0] == [circuit.transit.client.llen(wake(queue)) for queue in ("shop:other", QUEUE)]


class TestSteering:
    def test_open_until_closed(self, circuit: Circuit, holder: LeaseHolder) -> None:
        """One that somebody opens without an end stays open, whatever calls say."""
        call = circuit.begin(holder)
        circuit.breakers.open("api", by="ann")
        circuit.park(holder, "letter")
        circuit.end(holder, call, "succeeded")
        circuit.transit.beat()

        state = circuit.state
        assert (BreakerPhase.OPEN, True, None, 1) == (state.state, state.forced, state.until, state.waiting)
        assert -1 == circuit.transit.client.ttl(circuit.transit.keys.breaker("api"))
        assert [] == circuit.transit.waiting()

        assert circuit.breakers.close("api", by="ann")
        assert not circuit.breakers.close("api", by="ann")
        assert ["letter"] == circuit.transit.waiting()
        assert (BreakerPhase.CLOSED, False, 0) == (circuit.state.state, circuit.state.forced, circuit.state.waiting)

    def test_open_for_a_time(self, circuit: Circuit, holder: LeaseHolder) -> None:
        """One that is opened for a time has calls tried then, by the policy that is given along."""
        circuit.breakers.open("api", by="ann", seconds=50, policy=replace(API, probes=2))
        circuit.park(holder, "letter")
        assert circuit.state.until is not None
        assert 2 == circuit.state.places
        circuit.cool_down()

        assert BreakerPhase.HALF_OPEN is circuit.state.state
        assert [True, True] == [circuit.begin(holder, text).admission.probe for text in ("one", "two")]

    def test_reset(self, circuit: Circuit, holder: LeaseHolder) -> None:
        """A breaker that is reset is forgotten, and what waited for it comes out."""
        circuit.trip(holder)
        circuit.park(holder, "letter")

        assert circuit.breakers.reset("api", by="ann")

        assert [] == circuit.breakers.states()
        assert ["letter"] == circuit.transit.waiting()


class TestNews:
    def test_of_every_change(self, circuit: Circuit, holder: LeaseHolder) -> None:
        """Each change is listed with who made it, the newest first, and told on the fleet's channel."""
        with circuit.transit.client.pubsub(ignore_subscribe_messages=True) as heard:
            heard.subscribe(circuit.transit.keys.breakers)
            heard.get_message(timeout=5)
            circuit.trip(holder)
            circuit.cool_down()
            circuit.end(holder, circuit.begin(holder), "succeeded")
            circuit.breakers.open("api", by="ann")
            told = [json.loads(heard.get_message(timeout=5)["data"]) for _ in range(4)]

        changes = circuit.state.changes
        expected = [("open", "text@a", 3), ("half_open", "text@a", 0), ("closed", "text@a", 0), ("open", "ann", 0)]
        assert expected == [(one.state.value, one.by, one.failures) for one in reversed(changes)]
        assert expected == [(one["state"], one["by"], one["failures"]) for one in told]

    def test_the_list_is_capped(self, circuit: Circuit) -> None:
        """The last hundred changes are kept."""
        for _ in range(60):
            circuit.breakers.open("api", by="ann")
            circuit.breakers.close("api", by="ann")

        assert 100 == circuit.transit.client.llen(circuit.transit.keys.breaker_changes)
