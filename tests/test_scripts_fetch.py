"""Fetching, script by script: which messages come, in which order, and to whom."""

from collections.abc import Iterator

import pytest

from orchestra.leases import Lease, LeaseHolder, Start
from tests.transit import QUEUE, Delivery, Transit, holder_named, transit_at

LETTERS = ["first", "second", "third"]
STEP = "\x06\x163"  # how kombu marks the list of a priority


@pytest.fixture
def transit(redis_url: str) -> Iterator[Transit]:
    """Give a fleet's messages on an empty server."""
    with transit_at(redis_url) as transit:
        yield transit


@pytest.fixture
def holder() -> LeaseHolder:
    """Give an agent's holder."""
    return holder_named("a")


@pytest.fixture
def other() -> LeaseHolder:
    """Give another agent's."""
    return holder_named("b")


class TestFetch:
    def test_first_come_first_served(self, transit: Transit, holder: LeaseHolder) -> None:
        """Messages come in their order, as many as are asked for, each under a number of its own; the rest waits."""
        transit.put(*LETTERS)

        fetched = transit.fetch(holder, limit=2)

        assert fetched is not None
        assert [Delivery(1, QUEUE, "first"), Delivery(2, QUEUE, "second")] == fetched.deliveries
        assert ["third"] == transit.waiting()
        assert {"leases:a"} == transit.places("first")

    def test_lists_in_their_order(self, transit: Transit, holder: LeaseHolder) -> None:
        """The lists are looked into in the order that the channel gives them, which is by priority first."""
        lists = [("one", "one"), ("two", "two"), (f"one{STEP}", "one"), (f"two{STEP}", "two")]
        for name, _ in reversed(lists):
            transit.put(f"of {name}", queue=name)

        assert [f"of {name}" for name, _ in lists] == transit.messages(holder, lists=lists)

    def test_a_list_may_be_bounded(self, transit: Transit, holder: LeaseHolder) -> None:
        """A queue fills the fetch up to its bound, what came before it included; others may fill the rest."""
        transit.put(*LETTERS, queue="lesser")
        transit.put("one", queue="scarce")

        fetched = transit.fetch(holder, "scarce", "lesser", "other", limit=4, most={"lesser": 3})

        assert fetched is not None
        assert (["one", "first", "second"], False) == (fetched.messages, fetched.full)
        assert ["third"] == transit.waiting("lesser")
        assert 1 == transit.client.llen(transit.keys.wake("lesser"))

    def test_a_list_may_be_passed_by(self, transit: Transit, holder: LeaseHolder) -> None:
        """A queue of which nothing may be taken keeps its messages, and an idle agent is woken for them."""
        transit.put(*LETTERS, queue="lesser")
        transit.put("one", queue="scarce")

        assert ["one"] == transit.messages(holder, "lesser", "scarce", most={"lesser": 0})

        assert LETTERS == transit.waiting("lesser")
        assert 1 == transit.client.llen(transit.keys.wake("lesser"))
        assert 0 == transit.client.llen(transit.keys.wake("scarce"))

    def test_what_is_left_wakes_another(self, transit: Transit, holder: LeaseHolder) -> None:
        """Who leaves messages behind wakes one idle agent for them; who leaves nothing wakes nobody."""
        transit.put(*LETTERS)

        assert [(True, 1), (False, 0)] == [self._full_and_woken(transit, holder, limit) for limit in (2, 2)]

    @staticmethod
    def _full_and_woken(transit: Transit, holder: LeaseHolder, limit: int) -> tuple[bool, int]:
        fetched, key = transit.fetch(holder, limit=limit), transit.keys.wake(QUEUE)
        assert fetched is not None
        woken = transit.client.llen(key)
        transit.client.delete(key)
        return fetched.full, woken

    def test_what_is_left_in_other_queues_wakes_another(self, transit: Transit, holder: LeaseHolder) -> None:
        """Who was woken for one queue and found its fill in another wakes an agent of the one that is left."""
        transit.put("full", queue="one")
        transit.put("left", queue="two")

        transit.fetch(holder, "one", "two", limit=1)

        assert 1 == transit.client.llen(transit.keys.wake("two"))

    def test_without_acknowledgement(self, transit: Transit, holder: LeaseHolder) -> None:
        """What needs no acknowledgement is popped plainly; the queue beside it isn't."""
        transit.put("plain", queue="letters")
        transit.put("leased")

        assert ["plain", "leased"] == transit.messages(holder, "letters", QUEUE, plainly={"letters"})

        assert set() == transit.places("plain")
        assert {"leases:a"} == transit.places("leased")

    def test_consumers_that_are_no_agents(self, transit: Transit, other: LeaseHolder) -> None:
        """What a consumer fetched that tells of no start counts as started: nobody takes it over."""
        lease = transit.lease(holder_named("web", agent=False), "letter")

        assert 1e12 == transit.score(lease)
        assert [] == transit.messages(other, free=1, after=-1)

    def test_big_numbers(self, transit: Transit, holder: LeaseHolder) -> None:
        """A holder that has fetched more than 32 bits can count goes on."""
        holder.reserve(2**40)
        lease = transit.lease(holder, "letter")

        assert 2**40 < lease.number
        assert Start.STARTED is transit.start(lease)
        assert float("inf") == transit.score(lease)
        transit.say(holder, "settle", lease)
        assert set() == transit.places("letter")

    @pytest.mark.parametrize(
        "queue",
        [
            *(
                "shop:nlp+mem_gb~ge~16@shop.index",
                "with a space",
                "größe:日本",
                "{braces}",
                "100%s",
                "a:1:",
                "\\n",
                '"',
            ),
        ],
    )
    def test_names_of_queues(self, transit: Transit, holder: LeaseHolder, other: LeaseHolder, queue: str) -> None:
        """A queue may be called as it likes: its messages come, go back to their own list, and leave nothing."""
        lists = [(f"{queue}{STEP}", queue)]
        transit.put(*LETTERS, queue=f"{queue}{STEP}")

        assert LETTERS == transit.messages(holder, lists=lists)
        transit.give_back(holder)
        assert LETTERS == transit.waiting(f"{queue}{STEP}")
        fetched = transit.fetch(other, lists=lists)
        assert fetched is not None
        for delivery in fetched.deliveries:
            transit.say(other, "settle", Lease(other.name, delivery.number, delivery.queue))
        assert [0, 0] == [transit.client.exists(transit.keys.leased(queue)), transit.client.exists(f"{queue}{STEP}")]

    def test_an_idle_fetch_writes_nothing(self, transit: Transit, holder: LeaseHolder) -> None:
        """Looking into empty queues changes nothing on the server, and so is neither logged nor replicated."""
        transit.fetch(holder)

        def changes() -> int:
            return int(transit.client.info("persistence")["rdb_changes_since_last_save"])

        before = changes()
        assert [[], []] == [transit.messages(holder, "one", "two", free=1) for _ in range(2)]
        assert before == changes()

    def test_nothing_is_left(self, transit: Transit, holder: LeaseHolder) -> None:
        """Of a message that was done with, nothing stays but its task's record."""
        lease = transit.lease(holder, "letter")
        before = {transit.keys.holders, transit.keys.sessions, transit.keys.task("1")}

        transit.start(lease)
        transit.say(holder, "settle", lease)

        assert before == {key.decode() for key in transit.client.keys("*")}


class TestSessions:
    def test_a_replaced_one_gets_nothing(self, transit: Transit, holder: LeaseHolder) -> None:
        """A fetch of a connection that was given up brings nothing, but what it says is heard."""
        lease = transit.lease(holder, "fetched")
        transit.start(lease)
        transit.fetch(holder, session=2)
        transit.put("waiting")
        holder.say("settle", lease)

        assert transit.fetch(holder, session=1) is None
        assert ["waiting"] == transit.waiting()
        assert set() == transit.places("fetched")

    def test_a_new_one_gives_back(self, transit: Transit, holder: LeaseHolder) -> None:
        """What the lost connection had fetched comes again in its order, but for what has started."""
        started = transit.lease(holder, "started")
        transit.start(started)
        transit.put(*LETTERS)
        transit.fetch(holder)
        transit.put("later")

        fetched = transit.fetch(holder, session=2)

        assert fetched is not None
        assert [*LETTERS, "later"] == fetched.messages
        assert {0} == {delivery.times_again for delivery in fetched.deliveries}
        assert float("inf") == transit.score(started)

    def test_a_new_one_of_a_consumer_that_is_no_agent(self, transit: Transit) -> None:
        """What the lost connection of any other consumer had fetched comes again as well: it never arrived."""
        web = holder_named("web", agent=False)
        transit.lease(web, "letter")

        assert ["letter"] == transit.messages(web, session=2)


class TestDelayed:
    def delay(self, transit: Transit, holder: LeaseHolder, at: dict[str, float]) -> None:
        """Have a holder put messages by, all at once."""
        leases = {letter: transit.lease(holder, letter) for letter in at}
        for letter, seconds in at.items():
            holder.say("delay", leases[letter], transit.now() + seconds)
        transit.give_back(holder)

    def test_in_the_order_of_their_times(self, transit: Transit, holder: LeaseHolder) -> None:
        """A fetch moves what is due to its queue, the earliest first, and tells when the next one is."""
        self.delay(transit, holder, {"second": -1, "first": -2, "later": 60})

        fetched = transit.fetch(holder)

        assert fetched is not None
        assert ["first", "second"] == fetched.messages
        assert fetched.due is not None
        assert 50 < fetched.due - fetched.now < 70
        assert {f"delayed:{QUEUE}"} == transit.places("later")

    def test_behind_what_waits(self, transit: Transit, holder: LeaseHolder) -> None:
        """What becomes due stands behind what was there before, as if it had been sent now."""
        self.delay(transit, holder, {"due": -1})
        transit.put("waiting")

        assert ["waiting", "due"] == transit.messages(holder)

    def test_other_queues_too(self, transit: Transit, holder: LeaseHolder) -> None:
        """Whoever fetches moves what is due in any queue, and wakes an agent that serves it."""
        self.delay(transit, holder, {"due": -1})

        assert [] == transit.messages(holder, "other")

        assert ["due"] == transit.waiting()
        assert 1 == transit.client.llen(transit.keys.wake(QUEUE))
        assert 0 == transit.client.exists(transit.keys.due)


class TestTakeOver:
    def test_an_idle_agent_takes_what_waits_at_a_busy_one(
        self, transit: Transit, holder: LeaseHolder, other: LeaseHolder
    ) -> None:
        """It takes the oldest, as many as it has processes free, and they're no longer the busy one's."""
        transit.put(*LETTERS)
        fetched = transit.fetch(holder)
        assert fetched is not None

        assert LETTERS[:2] == transit.messages(other, free=2, after=-1)

        leases = [Lease("a", delivery.number, QUEUE) for delivery in fetched.deliveries]
        assert [Start.MOVED, Start.MOVED, Start.STARTED] == [transit.start(lease) for lease in leases]
        assert {"leases:b"} == transit.places("first")

    @pytest.mark.parametrize("word", ["started", "claim", "keep"])
    def test_what_is_not_to_be_taken(
        self, transit: Transit, holder: LeaseHolder, other: LeaseHolder, word: str
    ) -> None:
        """What has started, is as good as started or is kept on purpose stays where it is."""
        lease = transit.lease(holder, "letter")
        transit.start(lease) if word == "started" else transit.say(holder, word, lease)

        assert [] == transit.messages(other, free=1, after=-1)
        assert {"leases:a"} == transit.places("letter")

    def test_not_before_its_time(self, transit: Transit, holder: LeaseHolder, other: LeaseHolder) -> None:
        """What was fetched just now, or after Redis's clock was set back, isn't taken over."""
        lease = transit.lease(holder, "letter")
        ahead = {f"{lease.holder}:{lease.number}": transit.now() + 3600}

        assert [] == transit.messages(other, free=1, after=60)
        transit.client.zadd(transit.keys.leased(QUEUE), ahead)
        assert [] == transit.messages(other, free=1, after=0)
        assert [lease.number] == sorted(transit.give_back(holder))

    def test_not_while_anything_waits(self, transit: Transit, holder: LeaseHolder, other: LeaseHolder) -> None:
        """As long as a queue has messages, nobody's are taken; nor are an agent's own, nor where none is free."""
        transit.lease(holder, "leased")
        transit.put("waiting")

        assert ["waiting"] == transit.messages(other, free=1, after=-1)
        assert [] == transit.messages(holder, free=1, after=-1)
        assert [] == transit.messages(holder_named("c"), free=0, after=-1)

    def test_not_for_who_does_not_acknowledge(self, transit: Transit, holder: LeaseHolder, other: LeaseHolder) -> None:
        """A consumer that would never end the lease takes none over."""
        transit.lease(holder, "letter")

        assert [] == transit.messages(other, free=1, after=-1, plainly={QUEUE})
