"""DeadLetters: what is listed, what filters mean, and how letters are published anew."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from orchestra.dead_letters import DeadLetters
from orchestra.exceptions import ValidationError
from orchestra.leases import LeaseHolder
from orchestra.letters import DeadFilters, DeadPage
from orchestra.types import DeadReason
from tests.dead import dead_letters_of
from tests.test_scripts_dead import message_of
from tests.transit import QUEUE, Transit, holder_named, transit_at

HOUR = 3600.0


@pytest.fixture
def transit(redis_url: str) -> Iterator[Transit]:
    """Give a fleet's messages on an empty server."""
    with transit_at(redis_url) as transit:
        yield transit


@pytest.fixture
def letters(transit: Transit) -> DeadLetters:
    """Give four letters, the oldest of them an hour old."""
    holder = holder_named("a")
    _die(transit, holder, message_of("old"), "poison")
    transit.client.zincrby(transit.keys.dead_letters, -HOUR, "old")
    _die(transit, holder, message_of("bill", task="bills.render", requires="gpu,mem_gb>=16"), "permanent")
    _die(transit, holder, message_of("mail", task="mail.send", requires=None), "exhausted")
    _die(transit, holder, b"\xff no text", "undecodable", queue="celery")
    return dead_letters_of(transit.store)


def _die(transit: Transit, holder: LeaseHolder, message: str | bytes, reason: str, *, queue: str = QUEUE) -> None:
    text = message if isinstance(message, str) else message.decode(errors="surrogateescape")
    transit.client.lpush(queue, message)
    fetched = transit.fetch(holder, queue)
    assert fetched is not None
    assert [text] == fetched.messages
    lease = transit.lease_of(holder, fetched)
    transit.say(holder, "condemn", lease, f"{reason}\nwhy {reason}")


def _ids(page: DeadPage) -> list[str]:
    return [letter.id for letter in page.letters]


def _ago(seconds: float) -> datetime:
    return datetime.now(UTC) - timedelta(seconds=seconds)


class TestList:
    def test_newest_first(self, letters: DeadLetters) -> None:
        """All letters are listed without their messages."""
        page = letters.list()

        assert ["message-1", "mail", "bill", "old"] == _ids(page)
        assert (None, {None}) == (page.cursor, {letter.message for letter in page.letters})

    @pytest.mark.parametrize(
        ("which", "expected"),
        [
            ({"task": "mail.send"}, ["mail"]),
            ({"task": "*.render"}, ["bill"]),
            ({"task": "*"}, ["message-1", "mail", "bill", "old"]),
            ({"reason": "poison"}, ["old"]),
            ({"reason": DeadReason.UNDECODABLE}, ["message-1"]),
            ({"requires": "gpu"}, ["bill"]),
            ({"requires": "mem_gb"}, ["bill"]),
            ({"requires": "nlp"}, ["mail", "old"]),  # one by its queue, the other by its message
            ({"requires": "gpu,mem_gb>=16"}, ["bill"]),
            ({"requires": "mem_gb>=32"}, []),
            ({"requires": "general"}, ["message-1"]),
            ({"since": _ago(HOUR / 2)}, ["message-1", "mail", "bill"]),
            ({"until": _ago(HOUR / 2)}, ["old"]),
            ({"since": _ago(HOUR / 2), "reason": "poison"}, []),
            ({"since": datetime(2001, 1, 1), "task": "bills.*"}, ["bill"]),  # noqa: DTZ001  # UTC, as is said
        ],
    )
    def test_filters(self, letters: DeadLetters, which: DeadFilters, expected: list[str]) -> None:
        """A letter is listed, and counted, if all that is given holds for it."""
        assert expected == _ids(letters.list(**which))
        assert len(expected) == letters.count(**which)

    @pytest.mark.parametrize("limit", [1, 2, 3, 4])
    def test_pages(self, letters: DeadLetters, limit: int) -> None:
        """Page by page comes each letter once, whatever the filter leaves out."""
        seen, cursor = list[str](), None
        while True:
            page = letters.list(limit=limit, cursor=cursor, task="?*")
            seen += _ids(page)
            if page.cursor is None:
                break
            cursor = page.cursor

        assert ["mail", "bill", "old"] == seen

    def test_more_than_a_round_trip(self, transit: Transit) -> None:
        """However many there are, all are found."""
        transit.put(*(message_of(str(number)) for number in range(450)))
        keys = transit.keys
        transit.store.run(
            "bury",
            [keys.queues, keys.queues_version, keys.delayed(QUEUE), keys.leased(QUEUE), keys.parked_counts, QUEUE],
            [keys.base, "nlp", QUEUE, "unregistered", "", 1000],
        )
        letters = dead_letters_of(transit.store)

        assert [str(number) for number in reversed(range(450))] == _ids(letters.list(limit=1000))
        assert (450, 450) == (letters.count(), letters.count(reason="unregistered"))

    @pytest.mark.parametrize(
        ("which", "words"),
        [
            (
                {"reason": "poisoned"},
                "poison, permanent, exhausted, expired, undecodable, unregistered, unroutable, rejected",
            ),
            ({"requires": "gpu>=>"}, "gpu>=>"),
            ({"cursor": "behind"}, "'behind' is no cursor"),
            ({"limit": 0}, "limit=0"),
        ],
    )
    def test_nonsense(self, letters: DeadLetters, which: DeadFilters, words: str) -> None:
        """What can't be read is refused, with what is allowed."""
        with pytest.raises(ValidationError) as caught:
            letters.list(**which)

        assert words in str(caught.value)


class TestShow:
    def test_whole(self, letters: DeadLetters) -> None:
        """One letter is shown with its message."""
        letter = letters.show("bill")

        assert ("bills.render", "permanent", "why permanent") == (letter.task, letter.reason, letter.error)
        assert b'"body": [1.0, 1e+300, [], {}]' in (letter.message or b"")
        assert b"\xff no text" == letters.show("message-1").message

    def test_unknown(self, letters: DeadLetters) -> None:
        """An id that no letter has is told as such."""
        with pytest.raises(ValidationError, match="There is no dead letter nobody"):
            letters.show("nobody")


class TestReplay:
    def test_by_id(self, letters: DeadLetters, transit: Transit) -> None:
        """The letters named are published, each once, and the others stay."""
        assert 2 == letters.replay("bill", "mail", "bill")

        assert ["message-1", "old"] == _ids(letters.list())
        assert [message_of("bill", task="bills.render", requires="gpu,mem_gb>=16")] == transit.waiting()[:1]
        assert 2 == len(transit.waiting())

    def test_by_filter(self, letters: DeadLetters, transit: Transit) -> None:
        """Filters say which; the oldest comes first."""
        assert 3 == letters.replay(task="?*")

        assert ["old", "bill", "mail"] == [json.loads(message)["headers"]["id"] for message in transit.waiting()]

    def test_dry_run(self, letters: DeadLetters, transit: Transit) -> None:
        """A dry run counts, and changes nothing."""
        assert [3, 1] == [letters.replay(task="?*", dry_run=True), letters.purge("bill", dry_run=True)]

        assert (4, []) == (letters.count(), transit.waiting())

    def test_at_a_rate(self, transit: Transit) -> None:
        """No more letters are published in a second than is said, the first at once."""
        holder, moments, now = holder_named("a"), list[tuple[float, int]](), [100.0]
        for number in range(5):
            _die(transit, holder, message_of(str(number)), "permanent")

        def sleep(seconds: float) -> None:
            moments.append((now[0] - 100.0, len(transit.waiting())))
            now[0] += seconds

        dead_letters_of(transit.store).replay(task="*", rate_per_second=2, sleep=sleep, clock=lambda: now[0])

        assert [(0.0, 1), (0.5, 2), (1.0, 3), (1.5, 4)] == moments
        assert 5 == len(transit.waiting())

    @pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf")])
    def test_rate_that_makes_no_sense(self, letters: DeadLetters, rate: float) -> None:
        """A rate is a number above 0."""
        with pytest.raises(ValidationError, match="rate_per_second="):
            letters.replay(task="*", rate_per_second=rate)

        assert 4 == letters.count()

    def test_cut_in_the_middle(self, letters: DeadLetters, transit: Transit) -> None:
        """When whoever replays dies in between, each message is a letter or in its queue, and going on ends it."""

        def die(_: float) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            letters.replay(task="?*", rate_per_second=5, sleep=die)
        assert (3, 1) == (letters.count(), len(transit.waiting()))
        letters.replay(task="?*")

        assert (["message-1"], 3) == (_ids(letters.list()), len(transit.waiting()))

    def test_results_elsewhere_are_forgotten(self, transit: Transit) -> None:
        """Where a task's result isn't in the broker's database, whoever keeps it is asked to forget it."""
        forgotten: list[str] = []
        _die(transit, holder_named("a"), message_of("1"), "permanent")

        dead_letters_of(transit.store, forget=forgotten.append).replay("1")

        assert ["1"] == forgotten

    @pytest.mark.parametrize("act", ["replay", "purge"])
    @pytest.mark.parametrize(("ids", "which"), [((), {}), (("bill",), {"task": "mail.send"})])
    def test_unclear(self, letters: DeadLetters, act: str, ids: tuple[str, ...], which: DeadFilters) -> None:
        """Without a word on which letters, or with two, nothing happens."""
        with pytest.raises(ValidationError, match="Say which dead letters"):
            getattr(letters, act)(*ids, **which)

        assert 4 == letters.count()

    def test_unknown(self, letters: DeadLetters) -> None:
        """When one of several ids isn't there, none is replayed."""
        with pytest.raises(ValidationError, match="nobody"):
            letters.replay("bill", "nobody")

        assert 4 == letters.count()


class TestPurge:
    def test_by_filter_and_id(self, letters: DeadLetters, transit: Transit) -> None:
        """What is purged is nowhere any more."""
        assert [1, 2] == [letters.purge("message-1"), letters.purge(requires="nlp")]

        assert ["bill"] == _ids(letters.list())
        assert set() == transit.places("mail.send")
        assert [] == transit.waiting()
