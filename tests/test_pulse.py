"""The pulse: who beats, whose messages are taken back and when."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytest
from redis.connection import parse_url

from orchestra.pulse import Pulse, beat_arguments
from orchestra.store import Keys, Store, load_script
from tests.processes import alive, until
from tests.stores import client_at

LOST_AFTER = 0.6  # s
BEATS_OF_TWO_LIVES = 15  # more than come within twice that time, at ten a second
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@dataclass
class Fleet:
    """A fleet's keys on a server, and what they tell of its holders."""

    url: str
    client: Any  # a redis.Redis, whose types have every answer awaitable as well
    keys: Keys

    def pulse(self, holder: str, *, lost_after: float = LOST_AFTER, agent: str = "", **parameters: Any) -> Pulse:
        """Make a holder's pulse; `parameters` take the place of the URL's."""
        keys, args = beat_arguments(self.keys, holder=holder, agent=agent, lost_after_seconds=lost_after)
        return Pulse(
            parameters or parse_url(self.url),
            load_script("pulse"),
            keys,
            args,
            every_seconds=0.1,
            lost_after_seconds=lost_after,
        )

    def now(self) -> float:
        """Return Redis's time."""
        seconds, micros = self.client.time()
        return float(seconds + micros / 1e6)

    def beat_of(self, holder: str) -> float:
        """Return the Redis time of a holder's last beat; minus infinity for somebody who holds nothing."""
        score = self.client.zscore(self.keys.holders, holder)
        return float("-inf") if score is None else float(score)

    def silence_of(self, holder: str) -> float:
        """Return how long ago a holder's last beat was, in s."""
        return self.now() - self.beat_of(holder)

    def lease(self, holder: str, *messages: str, queue: str = "shop:nlp") -> None:
        """Have a holder hold messages, fetched in this order."""
        for number, message in enumerate(messages, 1):
            self.client.hset(self.keys.leases(holder), str(number), f"{queue}\n{queue}\n{message}")
            self.client.zadd(self.keys.leased(queue), {f"{holder}:{number}": self.now()})

    def fetched(self, queue: str = "shop:nlp") -> list[str]:
        """Fetch all that waits, as agents do: from the end of the list."""
        return [message.decode() for message in iter(lambda: self.client.rpop(queue), None)]


@contextmanager
def fleet_at(url: str) -> Iterator[Fleet]:
    """Give a fleet that nobody else has."""
    with client_at(url) as client:
        yield Fleet(url, client, Keys("orchestra", token_hex(4)))


@pytest.fixture
def fleet(redis_url: str) -> Iterator[Fleet]:
    """Give a fleet on an empty server."""
    with fleet_at(redis_url) as fleet:
        yield fleet


@contextmanager
def beating(pulse: Pulse) -> Iterator[Pulse]:
    """Start a pulse, and stop it at the end."""
    pulse.start()
    try:
        yield pulse
    finally:
        pulse.stop()


def goes_on(pulse: Pulse, *, ticking: bool = True, beats: int = 2) -> None:
    """Wait for that many beats more, one of which may have been on its way."""
    wanted = pulse.beats + beats

    def enough() -> bool:
        if ticking:
            pulse.tick()
        return pulse.beats >= wanted

    until(enough)


def helper_of(pulse: Pulse) -> int:
    """Return the helper's process id."""
    assert pulse._process is not None
    return pulse._process.pid


class TestBeats:
    def test_come_while_it_ticks(self, fleet: Fleet) -> None:
        """Who ticks is among the holders, at the Redis time of the last beat."""
        before = fleet.now()

        with beating(fleet.pulse("a")) as pulse:
            goes_on(pulse, beats=BEATS_OF_TWO_LIVES)

        assert before < fleet.beat_of("a") < fleet.now()
        assert (0, 0) == (pulse.reclaimed, pulse.became_due)

    def test_start_with_the_pulse(self, fleet: Fleet) -> None:
        """The first beat doesn't wait for a tick: leases may be taken as soon as there is a pulse."""
        with beating(fleet.pulse("a")) as pulse:
            until(lambda: pulse.beats)

        assert [b"a"] == fleet.client.zrange(fleet.keys.holders, 0, -1)

    def test_end_without_ticks(self, fleet: Fleet) -> None:
        """A loop that hangs is lost like one whose process is gone."""
        with beating(fleet.pulse("a")) as pulse:
            goes_on(pulse)

            until(lambda: fleet.silence_of("a") > 2 * LOST_AFTER)

    def test_need_no_ticks_while_a_task_runs(self, fleet: Fleet) -> None:
        """A task may take as long as it likes in a process that can't turn its loop meanwhile."""
        with beating(fleet.pulse("a")) as pulse:
            pulse.running = True

            goes_on(pulse, ticking=False, beats=BEATS_OF_TWO_LIVES)

            assert pulse.running
            pulse.running = False
            until(lambda: fleet.silence_of("a") > 2 * LOST_AFTER)

    def test_are_frequent_enough(self, fleet: Fleet) -> None:
        """An interval that is too long for the time after which one is lost is shortened."""
        keys, args = beat_arguments(fleet.keys, holder="a", agent="", lost_after_seconds=LOST_AFTER)
        script = load_script("pulse")
        slow = Pulse(parse_url(fleet.url), script, keys, args, every_seconds=600, lost_after_seconds=LOST_AFTER)

        with beating(slow) as pulse:
            goes_on(pulse, beats=3)


class TestPulse:
    def test_that_stops_its_pulse_ends_the_helper(self, fleet: Fleet) -> None:
        """After the stop there is no helper and no beat, and what was counted can be read; a second stop is none."""
        pulse = fleet.pulse("a")
        pulse.start()
        goes_on(pulse)
        helper = helper_of(pulse)

        pulse.stop()

        pulse.tick()
        pulse.stop()
        assert not alive(helper)
        assert pulse.beats >= 2

    def test_starts_one_helper(self, fleet: Fleet) -> None:
        """A second start changes nothing."""
        with beating(fleet.pulse("a")) as pulse:
            helper = helper_of(pulse)

            pulse.start()

            assert helper == helper_of(pulse)

    def test_needs_no_memory_files(self, fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where the system has no files that are memory alone, a nameless file on disk does."""
        monkeypatch.delattr(os, "memfd_create")

        with beating(fleet.pulse("a")) as pulse:
            goes_on(pulse)


class TestHelper:
    def test_that_died_is_started_again(self, fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
        """A helper that was killed is replaced at a tick, which says so; what was counted goes on."""
        with beating(fleet.pulse("a")) as pulse:
            goes_on(pulse)
            helper = helper_of(pulse)
            os.kill(helper, signal.SIGKILL)

            goes_on(pulse)

            assert helper != helper_of(pulse)
            assert "pulse restarted" in caplog.text
            assert "-9" in caplog.text
            assert pulse.beats >= 4

    @linux_only
    def test_is_small(self, fleet: Fleet) -> None:
        """Every agent has one, so it takes a fraction of an agent's memory."""
        with beating(fleet.pulse("a")) as pulse:
            goes_on(pulse)
            lines = Path(f"/proc/{helper_of(pulse)}/status").read_text(encoding="utf-8").splitlines()

        (private_kilobytes,) = (int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
        assert private_kilobytes < 10_000

    def test_goes_by_the_server_s_scripts(self, fleet: Fleet) -> None:
        """A server that has forgotten its scripts gets the text once more."""
        with beating(fleet.pulse("a")) as pulse:
            goes_on(pulse)
            fleet.client.script_flush()

            goes_on(pulse)

    def test_survives_its_connections(self, fleet: Fleet) -> None:
        """A connection that the server drops is made anew."""
        with beating(fleet.pulse("a")) as pulse:
            goes_on(pulse)
            fleet.client.client_kill_filter(_type="normal")

            goes_on(pulse)


class TestReclaiming:
    def test_a_lost_holder(self, fleet: Fleet) -> None:
        """Its messages go back after its time, not before, and the oldest is fetched first."""
        with beating(fleet.pulse("living")) as pulse:
            with beating(fleet.pulse("lost")) as lost:
                goes_on(lost)
                fleet.lease("lost", *map(str, range(12)))
            last_beat = fleet.beat_of("lost")

            def taken_back() -> bool:
                pulse.tick()
                return bool(fleet.client.llen("shop:nlp"))

            until(taken_back)

            assert fleet.now() - last_beat > LOST_AFTER
            assert list(map(str, range(12))) == fleet.fetched()
            assert 0 == fleet.client.exists(fleet.keys.leases("lost"), fleet.keys.leased("shop:nlp"))
            assert [b"living"] == fleet.client.zrange(fleet.keys.holders, 0, -1)
            until(lambda: pulse.reclaimed == 12)

    def test_moves_what_is_due(self, fleet: Fleet) -> None:
        """Delayed messages come to their queues in the order of their times, and not before them."""
        now = fleet.now()
        for message, due_at in [("later", now + 0.5), ("soon", now + 0.3), ("never", now + 3600)]:
            fleet.client.zadd(fleet.keys.delayed("shop:nlp"), {f"shop:nlp\nshop:nlp\n{message}": due_at})
            fleet.client.zadd(fleet.keys.due, {"shop:nlp": due_at}, lt=True)

        with beating(fleet.pulse("a")) as pulse:

            def both() -> bool:
                pulse.tick()
                return pulse.became_due == 2

            until(both)

        assert fleet.now() > now + 0.5
        assert ["soon", "later"] == fleet.fetched()
        assert 1 == fleet.client.zcard(fleet.keys.delayed("shop:nlp"))


class TestScript:
    """What one beat does, for times that a test can't wait for."""

    @pytest.fixture
    def beat(self, fleet: Fleet) -> Callable[..., list[int]]:
        """Give a function that beats."""
        store = Store(lambda: fleet.client, fleet.keys, location="redis.example:6379")

        def beat(holder: str = "living", *, agent: str = "", lost_after: float = 10, limit: int = 1000) -> list[int]:
            moved: list[int] = store.run(
                "pulse",
                *beat_arguments(fleet.keys, holder=holder, agent=agent, lost_after_seconds=lost_after, limit=limit),
            )
            return moved

        return beat

    @staticmethod
    def record(fleet: Fleet, *, last: float, quiet_until: float = 0.0) -> None:
        """Write the record of beats, in s from now."""
        now = fleet.now()
        fleet.client.hset(fleet.keys.beats, mapping={"last": now + last, "quiet_until": now + quiet_until})

    @staticmethod
    def holds(fleet: Fleet, holder: str, *messages: str, beat: float) -> None:
        """Have a holder that beat at a time, in s from now, hold messages."""
        fleet.client.zadd(fleet.keys.holders, {holder: fleet.now() + beat})
        fleet.lease(holder, *messages)

    def test_the_first_beat_ever_is_quiet(self, fleet: Fleet, beat: Callable[..., list[int]]) -> None:
        """Who beats first knows nothing of the others."""
        self.holds(fleet, "lost", "1", beat=-3600)

        assert [0, 0] == beat()

        assert [b"1"] == [value.rpartition(b"\n")[2] for value in fleet.client.hvals(fleet.keys.leases("lost"))]
        quiet_until = float(fleet.client.hget(fleet.keys.beats, "quiet_until"))
        assert 0 < quiet_until - fleet.now() <= 10

    @pytest.mark.parametrize(("last", "taken_back"), [(-4, 1), (-6, 0)])
    def test_a_gap_is_quiet(self, fleet: Fleet, beat: Callable[..., list[int]], last: float, taken_back: int) -> None:
        """When nobody beat for half the time after which one is lost, nobody is given up."""
        self.holds(fleet, "lost", "1", beat=-3600)
        self.record(fleet, last=last)

        assert [taken_back, 0] == beat()
        assert [0, 0] == beat()

    def test_quiet_time_ends(self, fleet: Fleet, beat: Callable[..., list[int]]) -> None:
        """Nobody is given up before its end, and the lost ones are after it; others' beats don't lengthen it."""
        self.holds(fleet, "lost", "1", beat=-3600)
        self.record(fleet, last=-1, quiet_until=5)
        first = beat()
        until_then = fleet.client.hget(fleet.keys.beats, "quiet_until")
        beat("other")

        self.record(fleet, last=-1, quiet_until=-0.001)

        assert [[0, 0], [1, 0]] == [first, beat()]
        assert float(until_then) > 0

    @pytest.mark.parametrize(("silent", "taken_back"), [(-9, 0), (-11, 1)])
    def test_who_is_lost(self, fleet: Fleet, beat: Callable[..., list[int]], silent: float, taken_back: int) -> None:
        """A holder is lost when it hasn't beaten for the time that the arguments name."""
        self.holds(fleet, "other", "1", beat=silent)
        self.record(fleet, last=-1)

        assert [taken_back, 0] == beat()

    def test_who_comes_back_is_a_holder_again(self, fleet: Fleet, beat: Callable[..., list[int]]) -> None:
        """A holder that was given up beats, and keeps what it leases from then on."""
        self.holds(fleet, "slow", "1", beat=-3600)
        self.record(fleet, last=-1)
        assert [1, 0] == beat()

        beat("slow")
        fleet.lease("slow", "2")

        assert [0, 0] == beat()
        assert {b"living", b"slow"} == set(fleet.client.zrange(fleet.keys.holders, 0, -1))

    def test_a_clock_that_was_set_back(self, fleet: Fleet, beat: Callable[..., list[int]]) -> None:
        """Beats of the time before count as of now: nobody is given up too early, and no lost one lives for ever."""
        self.holds(fleet, "lost", "1", beat=3600)
        self.record(fleet, last=3600, quiet_until=3600)

        assert [0, 0] == beat()

        assert -1 < fleet.silence_of("lost") < 10
        assert float(fleet.client.hget(fleet.keys.beats, "quiet_until")) < fleet.now() + 10
        assert float(fleet.client.hget(fleet.keys.beats, "last")) < fleet.now()

    def test_many_messages_go_back_in_several_beats(self, fleet: Fleet, beat: Callable[..., list[int]]) -> None:
        """One beat moves no more than it may, and the order holds over all of them."""
        self.holds(fleet, "lost", *map(str, range(25)), beat=-3600)
        self.holds(fleet, "lost too", "other", beat=-3000)
        self.record(fleet, last=-1)

        moved = [beat(limit=10)[0] for _ in range(4)]

        assert [10, 10, 6, 0] == moved
        order = fleet.fetched()
        assert list(map(str, range(25))) == [message for message in order if message != "other"]
        assert [b"living"] == fleet.client.zrange(fleet.keys.holders, 0, -1)

    def test_many_due_messages_move_in_several_beats(self, fleet: Fleet, beat: Callable[..., list[int]]) -> None:
        """One beat moves no more of a queue than it may, the earliest first."""
        delayed = {f"shop:nlp\nshop:nlp\n{number}": fleet.now() - 100 + number for number in range(25)}
        fleet.client.zadd(fleet.keys.delayed("shop:nlp"), delayed)
        fleet.client.zadd(fleet.keys.due, {"shop:nlp": fleet.now() - 100})

        moved = [beat(limit=10)[1] for _ in range(4)]

        assert [10, 10, 5, 0] == moved
        assert list(map(str, range(25))) == fleet.fetched()
        assert 0 == fleet.client.exists(fleet.keys.due)

    def test_an_agent_that_it_is(self, fleet: Fleet, beat: Callable[..., list[int]]) -> None:
        """The agent whose registration names the holder counts as alive too; another holder of the name doesn't."""
        fleet.client.hset(fleet.keys.agent("text@a"), "instance", "mine")

        beat("another", agent="text@a")
        before = fleet.client.zcard(fleet.keys.agents)
        beat("mine", agent="text@a")

        assert 0 == before
        assert [b"text@a"] == fleet.client.zrange(fleet.keys.agents, 0, -1)
