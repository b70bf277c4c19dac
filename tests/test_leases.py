"""Leases as their holder knows them: tags, what there is to tell, how many to hold, and how it shows that it lives."""

from collections.abc import Callable, Iterator, Sequence
from threading import Thread
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import ConnectionError as RedisConnectionError

from orchestra.leases import MOST_NEWS, Lease, LeaseHolder, News, Pace, Start, disown, give_back, tell, words
from orchestra.store import Argument, Keys
from tests.transit import QUEUE, Transit, holder_named, transit_at

KEYS = Keys("orchestra", "shop")
LEASE = Lease("a", 1, QUEUE)

names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=":"), min_size=1)
queues = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


class TestTags:
    @given(st.builds(Lease, names, st.integers(0, 2**53), queues))
    def test_round_trip(self, lease: Lease) -> None:
        """A lease is read back from its delivery tag, whatever its queue is called."""
        assert lease == Lease.from_tag(str(lease))

    @pytest.mark.parametrize(
        "tag",
        [None, "", "6a1e9b0c-8f41-4e0e-9d0a-0a7a5b0e7d52", 7, "a:b", "a:1", "a:-1:q", "a:1.0:q", "a::q", ":", "::"],
    )
    def test_of_other_deliveries(self, tag: object) -> None:
        """A delivery without a lease has a tag that isn't taken for one."""
        assert Lease.from_tag(tag) is None


class TestPace:
    def test_nothing_known(self) -> None:
        """Before the first task has ended, nothing is fetched ahead."""
        assert 0 == Pace().ahead(4)

    @pytest.mark.parametrize(
        ("seconds", "slots", "ahead"),
        [(0.1, 1, 2), (0.1, 4, 10), (0.25, 1, 1), (0.3, 1, 0), (0.3, 2, 1), (60, 8, 0), (0.001, 1, 64), (0.0, 1, 64)],
    )
    def test_by_the_run_time(self, seconds: float, slots: int, ahead: int) -> None:
        """What the processes are done with in a quarter of a second is fetched ahead, up to a bound."""
        pace = Pace()
        pace.note(seconds)

        assert ahead == pace.ahead(slots)

    def test_never_ahead(self) -> None:
        """An agent that is to fetch nothing ahead doesn't, however short its tasks are."""
        pace = Pace(most_ahead=0)
        pace.note(0.0)

        assert 0 == pace.ahead(8)

    @given(st.lists(st.floats(0, 1e4), min_size=1))
    def test_mean_is_between(self, seconds: list[float]) -> None:
        """The mean lies between the shortest and the longest run time."""
        pace = Pace()
        for one in seconds:
            pace.note(one)

        assert pace.mean_seconds is not None
        assert min(seconds) - 1e-6 <= pace.mean_seconds <= max(seconds) + 1e-6

    def test_follows_a_change(self) -> None:
        """After some twenty tasks of another kind the mean is theirs."""
        pace = Pace()
        pace.note(100.0)
        for _ in range(60):
            pace.note(0.01)

        assert 1 <= pace.ahead(2)

    @pytest.mark.parametrize(
        ("seconds", "slots", "ahead"), [(0.02, 1, 0), (0.02, 4, 2), (0.001, 1, 10), (0.0, 1, 64), (60, 8, 0)]
    )
    def test_of_a_queue_that_stands_back(self, seconds: float, slots: int, ahead: int) -> None:
        """Of work that stands back, what is done within 10 ms is fetched ahead, by its own pace."""
        pace = Pace()
        pace.note(seconds, "lesser")
        for _ in range(9):
            pace.note(0.0, "other")

        assert (ahead, 64, 0) == (
            pace.ahead_of("lesser", slots),
            pace.ahead_of("other", slots),
            Pace().ahead_of("lesser", 8),
        )


class TestBound:
    def test_left_to_the_consumer(self) -> None:
        """A consumer without processes of its own says itself how many messages it takes."""
        assert LeaseHolder().bound() is None

    def test_one_for_each_process_and_some_ahead(self) -> None:
        """An agent holds a message for each process, as many as there are now, and what its pace allows."""
        processes = [2]
        holder = LeaseHolder(slots=lambda: processes[0])
        assert 2 == holder.bound()

        holder.pace.note(0.1)
        assert 2 + 5 == holder.bound()
        processes[0] = 4
        assert 4 + 10 == holder.bound()


class TestNumbers:
    def test_reserved_numbers_are_never_given_twice(self) -> None:
        """Each fetch has numbers of its own, used or not; connections are counted as well."""
        holder = LeaseHolder()

        assert [1, 11, 11, 14] == [holder.reserve(numbers) for numbers in (10, 0, 3, 1)]
        assert [1, 2] == [holder.next_session() for _ in range(2)]

    def test_holders_have_names_of_their_own(self) -> None:
        """No two holders are taken for one."""
        assert LeaseHolder().name != LeaseHolder().name


class TestNews:
    def test_kept_until_it_is_told(self) -> None:
        """What there is to tell stays, in its order, until it's known that Redis has heard it."""
        holder = LeaseHolder()
        holder.say("settle", LEASE)
        holder.say("delay", LEASE, 1.5)

        assert [News("settle", LEASE), News("delay", LEASE, 1.5)] == holder.news() == holder.news()
        assert 2 == holder.untold

        holder.told(holder.news()[:1])
        assert [News("delay", LEASE, 1.5)] == holder.news()

    def test_told_twice(self) -> None:
        """News that two connections told are forgotten once, and what was said in between stays."""
        holder = LeaseHolder()
        holder.say("settle", LEASE)
        first = second = holder.news()
        holder.told(first)
        holder.say("settle", LEASE)  # equal to what was told, and another word all the same

        holder.told(second)

        assert 1 == holder.untold

    def test_at_most_so_many_at_once(self) -> None:
        """A flood of news is told piece by piece."""
        holder = LeaseHolder()
        for number in range(MOST_NEWS + 3):
            holder.say("settle", Lease("a", number, QUEUE))

        first = holder.news()
        holder.told(first)

        assert (MOST_NEWS, 3) == (len(first), len(holder.news()))

    def test_said_by_many_threads(self) -> None:
        """Threads that acknowledge at the same time lose no word."""
        holder = LeaseHolder()

        def speak() -> None:
            for number in range(500):
                holder.say("settle", Lease("a", number, QUEUE))

        threads = [Thread(target=speak) for _ in range(4)]
        for thread in threads:
            thread.start()
        heard = 0
        while heard < 2000:
            news = holder.news()
            holder.told(news)
            heard += len(news)
        for thread in threads:
            thread.join()

        assert (2000, 0) == (heard, holder.untold)

    def test_words(self) -> None:
        """The script gets how many there are, and four words each."""
        news = [News("delay", Lease("a", 7, "q"), 1.5), News("settle", Lease("a", 8, "q"))]

        assert [2, "delay", 7, "q", 1.5, "settle", 8, "q", ""] == words(news)
        assert [0] == words([])


class TestHurry:
    def test_most_words_are_urgent(self) -> None:
        """What is said is to be told at once, until it was."""
        holder = LeaseHolder()
        assert not holder.hurry

        holder.say("settle", LEASE)
        assert holder.hurry

        holder.told(holder.news())
        assert not holder.hurry

    def test_an_acknowledgement_that_may_wait(self) -> None:
        """An acknowledgement that was said to be able to wait isn't urgent, and rides with what is."""
        holder = LeaseHolder()
        holder.no_hurry(LEASE)
        holder.say("settle", LEASE)
        assert (False, 1) == (holder.hurry, holder.untold)

        holder.say("settle", Lease("a", 2, QUEUE))
        assert holder.hurry

    @pytest.mark.parametrize("kind", ["release", "orphaned", "return", "delay", "condemn", "claim", "keep"])
    def test_only_an_acknowledgement_may_wait(self, kind: str) -> None:
        """Whatever else comes of that message is told at once."""
        holder = LeaseHolder()
        holder.no_hurry(LEASE)

        holder.say(kind, LEASE)

        assert holder.hurry

    def test_once(self) -> None:
        """It's that one acknowledgement which may wait, not the next one under the same number."""
        holder = LeaseHolder()
        holder.no_hurry(LEASE)
        for _ in range(2):
            holder.say("settle", LEASE)

        assert holder.hurry


class Listener:
    """Takes what is told, or refuses it."""

    def __init__(self, *refusals: Exception) -> None:
        self.refusals = list(refusals)
        self.heard: list[tuple[str, Sequence[str], Sequence[Argument]]] = []

    def run(self, script: str, keys: Sequence[str], args: Sequence[Argument]) -> int:
        """Run a script, as a store does."""
        if self.refusals:
            raise self.refusals.pop()
        self.heard.append((script, keys, args))
        return 1


class TestTell:
    def test_everything(self) -> None:
        """All there is to tell is told, in as many calls as it takes; with nothing to tell nothing is sent."""
        holder, listener = LeaseHolder(name="a"), Listener()
        tell(holder, listener.run, KEYS)
        assert [] == listener.heard

        for _ in range(MOST_NEWS + 1):
            holder.say("settle", LEASE)
        tell(holder, listener.run, KEYS)

        assert [MOST_NEWS, 1] == [args[2] for _, _, args in listener.heard]
        assert ("news", [KEYS.redelivered]) == listener.heard[1][:2]
        assert [KEYS.base, "a", 1, "settle", 1, QUEUE, ""] == listener.heard[1][2]
        assert 0 == holder.untold

    def test_a_refusal_keeps_it(self) -> None:
        """What Redis couldn't be told is told the next time."""
        holder, listener = LeaseHolder(), Listener(RedisConnectionError("gone"))
        holder.say("settle", LEASE)

        with pytest.raises(RedisConnectionError):
            tell(holder, listener.run, KEYS)
        assert (1, True) == (holder.untold, holder.hurry)

        tell(holder, listener.run, KEYS)
        assert (0, 1) == (holder.untold, len(listener.heard))


class TestGiveBack:
    def test_sessions(self, redis_url: str) -> None:
        """Giving back ends the connections' fetches only where the holder ends or leaves."""
        with transit_at(redis_url) as transit:
            holder = holder_named("a")
            assert holder.next_session() == 1

            give_back(transit.store, holder)
            assert self._session(transit) is None
            give_back(transit.store, holder, ending=True)
            assert b"2" == self._session(transit)
            give_back(transit.store, holder, leaving=True)
            assert b"3" == self._session(transit)

    @staticmethod
    def _session(transit: Transit) -> Any:
        return transit.client.hget(transit.keys.sessions, "a")


class TestDisown:
    @pytest.fixture
    def transit(self, redis_url: str) -> Iterator[Transit]:
        """Give a fleet's messages."""
        with transit_at(redis_url) as transit:
            yield transit

    def test_what_nobody_runs(self, transit: Transit) -> None:
        """A started lease whose end Redis has forgotten goes back to the front of its queue, counted as run before."""
        holder = holder_named("a")
        lease = transit.lease(holder, "letter")
        assert Start.STARTED is transit.start(lease)
        transit.put("later")
        holder.changed_server("second")

        assert {lease.number} == disown(transit.store, holder, [])
        assert set() == disown(transit.store, holder, [])
        fetched = transit.fetch(holder)
        assert fetched is not None
        assert [("letter", 1), ("later", 0)] == [(one.message, one.times_again) for one in fetched.deliveries]

    def test_what_is_in_hand_stays(self, transit: Transit) -> None:
        """A running task's lease, one whose end is still to be told, and one that hasn't begun are left alone."""
        holder = holder_named("a")
        running, ended, waiting = (transit.lease(holder, letter) for letter in ("one", "two", "three"))
        for lease in (running, ended):
            assert Start.STARTED is transit.start(lease)
        holder.say("release", ended)
        told_of = holder.changed_server("second")

        assert {ended.number} == told_of
        assert set() == disown(transit.store, holder, {running.number, *told_of})
        assert [{"leases:a"}] * 3 == [transit.places(letter) for letter in ("one", "two", "three")]
        assert waiting.number < holder.first_here

    def test_an_end_that_was_not_told(self, transit: Transit) -> None:
        """An acknowledgement that the former server hasn't heard is no word for the next: that may lack the result."""
        holder = holder_named("a")
        lease = transit.lease(holder, "letter")
        transit.start(lease)
        holder.say("settle", lease)

        assert {lease.number} == disown(transit.store, holder, holder.changed_server("second"))
        assert 0 == holder.untold
        assert ["letter"] == transit.messages(holder)

    def test_only_what_is_older_than_the_server(self, transit: Transit) -> None:
        """What was fetched from this server already is none of it."""
        holder = holder_named("a")
        holder.changed_server("second")
        transit.start(transit.lease(holder, "letter"))

        assert set() == disown(transit.store, holder, [])

    def test_an_end_that_comes_after_all(self, transit: Transit) -> None:
        """Who says later that a task has ended has its copy dropped if that hasn't begun."""
        holder = holder_named("a")
        lease = transit.lease(holder, "letter")
        transit.start(lease)
        holder.changed_server("second")
        disown(transit.store, holder, [])

        transit.say(holder, "settle", lease)

        assert [] == transit.messages(holder)

    def test_others_are_left_alone(self, transit: Transit) -> None:
        """What another holder runs is its own."""
        lease = transit.lease(holder_named("b"), "letter")
        transit.start(lease)

        assert set() == disown(transit.store, holder_named("a"), [])
        assert {"leases:b"} == transit.places("letter")


class Beats:
    """Stands for a pulse, whose own tests have the real one."""

    def __init__(self) -> None:
        self.state = "made"
        self.running = False
        self.ticks = 0

    def start(self) -> None:
        """Begin to beat."""
        self.state = "started"

    def stop(self) -> None:
        """Beat no more."""
        self.state = "stopped"

    def tick(self) -> None:
        """Take a tick."""
        self.ticks += 1


class TestBeating:
    @pytest.fixture
    def made(self) -> list[Beats]:
        """Give the pulses that were made, in their order."""
        return []

    @pytest.fixture
    def make(self, made: list[Beats]) -> Callable[[], Any]:
        """Give what makes a pulse."""

        def make() -> Any:
            made.append(Beats())
            return made[-1]

        return make

    def test_one_pulse_for_one_server(self, made: list[Beats], make: Callable[[], Any]) -> None:
        """However often it connects to a server, a holder beats there by one pulse."""
        holder = LeaseHolder()
        for _ in range(2):
            holder.beat_with({"host": "one"}, make)

        assert ["started"] == [beats.state for beats in made]

    def test_another_server(self, made: list[Beats], make: Callable[[], Any]) -> None:
        """After a move to another server it beats there, and no longer at the old one."""
        holder = LeaseHolder()
        for host in ("one", "two"):
            holder.beat_with({"host": host}, make)

        assert ["stopped", "started"] == [beats.state for beats in made]

    def test_ticks(self, made: list[Beats], make: Callable[[], Any]) -> None:
        """Each turn of the loop ticks, and says whether a task runs; a task that begins says so before the next."""
        busy = [False]
        holder = LeaseHolder(busy=lambda: busy[0])
        holder.tick()  # nothing happens before it beats
        holder.began()
        holder.beat_with("server", make)

        holder.tick()
        assert (1, False) == (made[0].ticks, made[0].running)
        holder.began()
        assert made[0].running
        holder.tick()
        assert (2, False) == (made[0].ticks, made[0].running)
        busy[0] = True
        holder.tick()
        assert made[0].running

    def test_rest(self, made: list[Beats], make: Callable[[], Any]) -> None:
        """A holder that rests beats no more, also when it's told so twice; it may begin again at the same server."""
        holder = LeaseHolder()
        holder.rest()
        holder.beat_with("server", make)
        for _ in range(2):
            holder.rest()
        holder.tick()
        assert ["stopped", 0] == [made[0].state, made[0].ticks]

        holder.beat_with("server", make)
        assert ["stopped", "started"] == [beats.state for beats in made]
