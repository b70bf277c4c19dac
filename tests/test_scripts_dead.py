"""What the scripts make of dead letters: none is lost or doubled, and what befell a message is counted."""

import json
from collections.abc import Iterator

import pytest

from orchestra.leases import Lease, LeaseHolder, Start, Told
from orchestra.letters import Dropped
from orchestra.state import advance_arguments
from orchestra.types import TaskState
from tests.dead import dead_letters_of, letters_in
from tests.stores import manager_of, publish, states_of
from tests.transit import QUEUE, Transit, holder_named, transit_at

DAY = 86_400.0


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


def message_of(task_id: str, *, number: int = 1, **headers: object) -> str:
    """Return the bytes of a task's message, with what JSON encoders like to change."""
    told = {"id": task_id, "task": "shop.index", "requires": "nlp", "retries": 0, **headers}
    return json.dumps({"headers": told, "body": [1.0, 1e300, [], {}], "number": number})


def condemned(transit: Transit, holder: LeaseHolder, message: str, reason: str = "permanent") -> None:
    """Have a message leased and made a dead letter."""
    lease = transit.lease(holder, message)
    transit.say(holder, "condemn", lease, f"{reason}\nthe error\nin lines")


def ids_in(transit: Transit) -> list[str]:
    """Return the letters' ids, oldest first."""
    return [letter.id for letter in letters_in(transit.client, transit.keys)]


class TestBurial:
    def test_a_letter_is_whole(self, transit: Transit, holder: LeaseHolder) -> None:
        """It has the message's bytes, what its headers and its record say, and why it died."""
        message = message_of("1", retries=2)
        publish(transit.store, "1", message=message)
        manager_of(transit.store).advance("1", TaskState.RUNNING, agent="a@test")
        transit.fetch(holder)

        transit.say(holder, "condemn", Lease("a", 1, QUEUE), "permanent\nKeyError: 'x'\nmore")

        (letter,) = letters_in(transit.client, transit.keys)
        assert (message.encode(), QUEUE, "nlp") == (letter.message, letter.queue, letter.requires)
        assert ("1", "1", "shop.index", 3) == (letter.id, letter.task_id, letter.task, letter.attempt)
        assert ("permanent", "KeyError: 'x'\nmore") == (letter.reason, letter.error)
        assert [TaskState.SUBMITTED, TaskState.RUNNING] == [entry.state for entry in letter.history]
        record = manager_of(transit.store).read("1")
        assert record is not None
        assert record.submitted_at == letter.submitted_at
        assert {"dead:letter:1"} == transit.places(message)

    def test_a_copy_is_one_letter(self, transit: Transit, holder: LeaseHolder) -> None:
        """When two copies of a message die, there is one letter to be replayed."""
        for reason in ("permanent", "poison"):
            condemned(transit, holder, message_of("1"), reason)

        assert [("1", "poison")] == [(letter.id, letter.reason) for letter in letters_in(transit.client, transit.keys)]

    def test_another_message_of_a_task_s_id(self, transit: Transit, holder: LeaseHolder) -> None:
        """What was sent anew under the same id is a letter of its own."""
        for number in (1, 2, 3):
            condemned(transit, holder, message_of("1", number=number))

        assert ["1", "1.2", "1.3"] == ids_in(transit)

    @pytest.mark.parametrize(
        "raw",
        [
            "no json", "[]", "{}", '{"headers": 1}', '{"headers": {"id": 7}}', '{"headers": {"id": "a b"}}',
            '{"headers": {"id": "' + "7" * 201 + '"}}', "[" * 2000,
        ],
    )  # fmt: skip
    def test_what_has_no_task_s_id(self, transit: Transit, holder: LeaseHolder, raw: str) -> None:
        """It gets an id that nothing else has; of two that are alike, neither is lost."""
        condemned(transit, holder, raw)
        condemned(transit, holder, raw)

        assert [("message-1", raw.encode()), ("message-2", raw.encode())] == [
            (letter.id, letter.message) for letter in letters_in(transit.client, transit.keys)
        ]

    def test_no_two_of_a_time(self, transit: Transit) -> None:
        """Letters that one step makes have times in the order in which they would have been delivered."""
        transit.put(*(message_of(str(number)) for number in range(200)))
        keys = transit.keys
        transit.store.run(
            "bury",
            [keys.queues, keys.queues_version, keys.delayed(QUEUE), keys.leased(QUEUE), keys.parked_counts, QUEUE],
            [keys.base, "nlp", QUEUE, "unregistered", "", 1000],
        )

        pairs = transit.client.zrange(keys.dead_letters, 0, -1, withscores=True)
        assert [str(number) for number in range(200)] == [name.decode() for name, _ in pairs]
        assert 200 == len({score for _, score in pairs})

    def test_with_the_result(self, transit: Transit, holder: LeaseHolder) -> None:
        """A failure is stored, recorded and its message kept in one step, which may be repeated."""
        message = message_of("1")
        lease = transit.lease(holder, message)
        record = advance_arguments(TaskState.FAILED, ttl_seconds=60, agent="a@test", note="no", name="shop.index")
        keys = transit.keys
        for _ in range(2):
            transit.store.run(
                "store_result",
                ["result:1", keys.task("1")],
                ["{}", 60, '{"status": "SUCCESS"', *record, keys.base, lease.holder, lease.number, QUEUE, "poison\nno"],
            )

        assert {"dead:letter:1"} == transit.places(message)
        (letter,) = letters_in(transit.client, keys)
        assert [TaskState.FAILED] == [entry.state for entry in letter.history]

    def test_a_stored_success_wins(self, transit: Transit, holder: LeaseHolder) -> None:
        """When another copy has succeeded meanwhile, the one that fails leaves no letter."""
        lease = transit.lease(holder, message_of("1"))
        transit.client.set("result:1", '{"status": "SUCCESS", "result": 1}')
        record = advance_arguments(TaskState.FAILED, ttl_seconds=60)
        keys = transit.keys
        transit.store.run(
            "store_result",
            ["result:1", keys.task("1")],
            ["{}", 60, '{"status": "SUCCESS"', *record, keys.base, lease.holder, lease.number, QUEUE, "poison\nno"],
        )

        assert (0, {}) == (len(ids_in(transit)), transit.client.hgetall(keys.leases("a")))


class TestWithTheRecord:
    """Where the result is elsewhere, or not kept, the letter and the record's last line are one step."""

    def _condemned(self, transit: Transit, lease: Lease) -> None:
        record = advance_arguments(TaskState.FAILED, ttl_seconds=60, agent="a@test", note="no", name="shop.index")
        keys = transit.keys
        transit.store.run(
            "condemn",
            [keys.redelivered, keys.task("1")],
            [keys.base, lease.holder, lease.number, QUEUE, "permanent\nno", *record],
        )

    def test_both(self, transit: Transit, holder: LeaseHolder) -> None:
        """The letter knows how its task ended."""
        self._condemned(transit, transit.lease(holder, message_of("1")))

        (letter,) = letters_in(transit.client, transit.keys)
        assert [TaskState.FAILED] == [entry.state for entry in letter.history]
        assert [TaskState.FAILED] == states_of(manager_of(transit.store).read("1"))

    def test_after_a_replay(self, transit: Transit, holder: LeaseHolder) -> None:
        """A step that is repeated, since its reply was lost, leaves what was replayed meanwhile to be run."""
        lease = transit.lease(holder, message_of("1"))
        self._condemned(transit, lease)
        assert 1 == dead_letters_of(transit.store).replay("1")
        self._condemned(transit, lease)

        assert TaskState.SUBMITTED is states_of(manager_of(transit.store).read("1"))[-1]
        assert Start.STARTED is transit.start(Lease("a", transit.fetch(holder).deliveries[0].number, QUEUE))  # type: ignore[union-attr]  # it's there

    def test_a_lease_that_was_taken_back(self, transit: Transit, holder: LeaseHolder) -> None:
        """The record ends with the copy that hasn't run, which is the letter."""
        lease = transit.lease(holder, message_of("1"))
        assert Start.STARTED is transit.start(lease)
        transit.silence(holder)
        transit.beat()
        self._condemned(transit, lease)

        assert TaskState.FAILED is states_of(manager_of(transit.store).read("1"))[-1]
        assert [] == transit.messages(holder_named("b"))
        assert {"dead:letter:1"} == transit.places(message_of("1"))


class TestLateCondemnation:
    """A lost agent's task fails after all: its other copy is the letter, unless it runs."""

    def _lost(self, transit: Transit, holder: LeaseHolder) -> Lease:
        lease = transit.lease(holder, message_of("1"))
        assert Start.STARTED is transit.start(lease)
        transit.silence(holder)
        assert (1, 0) == transit.beat()
        return lease

    def test_the_copy_waits(self, transit: Transit, holder: LeaseHolder, other: LeaseHolder) -> None:
        """It isn't delivered any more, but kept."""
        transit.say(holder, "condemn", self._lost(transit, holder), "permanent\nno")

        assert [] == transit.messages(other)
        assert {"dead:letter:1"} == transit.places(message_of("1"))
        assert 0 == transit.client.exists(transit.keys.redelivered)

    def test_the_copy_was_fetched(self, transit: Transit, holder: LeaseHolder, other: LeaseHolder) -> None:
        """It doesn't start, and its holder's acknowledgement takes nothing away."""
        lease = self._lost(transit, holder)
        copy = Lease("b", transit.fetch(other).deliveries[0].number, QUEUE)  # type: ignore[union-attr]  # it's there
        transit.say(holder, "condemn", lease, "permanent\nno")

        assert Start.FINISHED is transit.start(copy)
        transit.say(other, "settle", copy)
        assert {"dead:letter:1"} == transit.places(message_of("1"))

    def test_the_copy_runs(self, transit: Transit, holder: LeaseHolder, other: LeaseHolder) -> None:
        """It decides by itself: when it succeeds, there is no letter."""
        lease = self._lost(transit, holder)
        copy = Lease("b", transit.fetch(other).deliveries[0].number, QUEUE)  # type: ignore[union-attr]  # it's there
        assert Start.STARTED is transit.start(copy)
        transit.say(holder, "condemn", lease, "permanent\nno")
        transit.say(other, "settle", copy)

        assert set() == transit.places(message_of("1"))
        assert 0 == transit.client.exists(transit.keys.redelivered, transit.keys.deliveries)


class TestLosses:
    def told(self, transit: Transit, holder: LeaseHolder) -> Told:
        """Fetch the message, and return what is told of it."""
        fetched = transit.fetch(holder)
        assert fetched is not None
        return fetched.deliveries[0].told

    def test_processes(self, transit: Transit, holder: LeaseHolder) -> None:
        """Each lost process is counted, with the agent and how it was lost."""
        lease = transit.lease(holder, message_of("1"))
        for times in (1, 2, 3):
            transit.say(holder, "orphaned", lease, f"a@test\nsignal {times}")
            fetched = transit.fetch(holder)
            assert fetched is not None
            assert Told(times, lost_processes=times) == fetched.deliveries[0].told
            lease = Lease("a", fetched.deliveries[0].number, QUEUE)
        transit.say(holder, "condemn", lease, "poison\ntoo many")

        (letter,) = letters_in(transit.client, transit.keys)
        assert [("process", "a@test", f"signal {times}") for times in (1, 2, 3)] == [
            (one.kind, one.agent, one.note) for one in letter.deliveries
        ]
        assert (3, 0) == (letter.lost_processes, letter.lost_agents)
        assert 0 == transit.client.exists(transit.keys.deliveries, transit.keys.redelivered)

    def test_agents(self, transit: Transit, holder: LeaseHolder, other: LeaseHolder) -> None:
        """An agent that is lost counts for the tasks that it had begun, apart from processes, and not for the rest."""
        publish(transit.store, "1", message=message_of("1"))
        begun = transit.fetch(holder)
        assert begun is not None
        assert Start.STARTED is transit.start(Lease("a", begun.deliveries[0].number, QUEUE))
        transit.lease(holder, message_of("2"))
        transit.silence(holder)
        transit.beat()

        fetched = transit.fetch(other)

        assert fetched is not None
        assert [Told(1, lost_agents=1), Told()] == [one.told for one in fetched.deliveries]
        transit.say(other, "condemn", Lease("b", fetched.deliveries[0].number, QUEUE), "poison\ntoo many")
        (letter,) = letters_in(transit.client, transit.keys)
        assert [("agent", "text@a")] == [(one.kind, one.agent) for one in letter.deliveries]

    def test_one_that_was_frozen(self, transit: Transit, holder: LeaseHolder, other: LeaseHolder) -> None:
        """An agent that beats again wasn't lost: nothing is held against its messages, other losses are."""
        lease = transit.lease(holder, message_of("1"))
        transit.say(holder, "orphaned", lease, "a@test\nsignal 9")
        again = transit.fetch(holder)
        assert again is not None
        transit.start(Lease("a", again.deliveries[0].number, QUEUE))
        transit.silence(holder)
        transit.beat()
        transit.beat("a")

        assert Told(2, lost_processes=1) == self.told(transit, other)

    @pytest.mark.parametrize("leaving", [True, False])
    def test_a_stop_counts_nothing(
        self, transit: Transit, holder: LeaseHolder, other: LeaseHolder, leaving: bool
    ) -> None:
        """What an agent gives back by itself, begun or not, has cost nobody."""
        lease = transit.lease(holder, message_of("1"))
        if leaving:
            transit.start(lease)
        transit.give_back(holder, leaving=leaving)

        assert Told(int(leaving)) == self.told(transit, other)

    def test_forgotten_with_the_end(self, transit: Transit, holder: LeaseHolder) -> None:
        """A task that succeeds at last leaves nothing behind."""
        lease = transit.lease(holder, message_of("1"))
        transit.say(holder, "orphaned", lease, "a@test\nsignal 9")
        fetched = transit.fetch(holder)
        assert fetched is not None
        transit.say(holder, "settle", Lease("a", fetched.deliveries[0].number, QUEUE))

        assert 0 == transit.client.exists(transit.keys.deliveries, transit.keys.redelivered)


class TestReplay:
    def test_in_one_step(self, transit: Transit, holder: LeaseHolder) -> None:
        """The same bytes go to the end of the same list, an agent is woken, and the letter is gone."""
        message = message_of("1")
        lists = [(f"{QUEUE}\x06\x163", QUEUE)]
        transit.client.lpush(lists[0][0], message)
        assert [message] == transit.messages(holder, lists=lists)
        transit.say(holder, "condemn", Lease("a", 1, QUEUE), "permanent\nno")
        transit.client.lpush(lists[0][0], "waiting")
        transit.client.delete(transit.keys.wake(QUEUE))

        assert 1 == dead_letters_of(transit.store).replay("1")

        assert ["waiting", message] == transit.waiting(lists[0][0])
        assert {lists[0][0]} == transit.places(message)
        assert 1 == transit.client.llen(transit.keys.wake(QUEUE))
        assert [] == ids_in(transit)
        assert [b"nlp"] == transit.client.zrange(transit.keys.queues, 0, -1)

    def test_repeated_after_a_lost_answer(self, transit: Transit, holder: LeaseHolder) -> None:
        """One call that runs twice publishes once, and counts the same; the next call finds nothing."""
        condemned(transit, holder, message_of("1"))
        keys = transit.keys

        def replay(call: str) -> int:
            replayed: int = transit.store.run(
                "replay",
                [keys.dead_letters, keys.redelivered, keys.queues, keys.queues_version, keys.replay(call)],
                [keys.base, 60_000, "1", "nlp", ""],
            )
            return replayed

        assert [1, 1, 0] == [replay("x"), replay("x"), replay("y")]
        assert [message_of("1")] == transit.waiting()

    def test_a_new_life(self, transit: Transit, holder: LeaseHolder) -> None:
        """The record is open again and keeps its past, the former result is gone, and losses are counted from 0."""
        publish(transit.store, "1", message=message_of("1", retries=1), attempt=2)
        transit.fetch(holder)
        lease = Lease("a", 1, QUEUE)
        transit.say(holder, "orphaned", lease, "a@test\nsignal 9")
        transit.fetch(holder)
        manager_of(transit.store).advance("1", TaskState.FAILED, attempt=2, note="no")
        transit.say(holder, "condemn", Lease("a", 11, QUEUE), "poison\ntoo many")
        assert ["1"] == ids_in(transit)
        transit.client.set("result:1", "{}")

        dead_letters_of(transit.store, result_key=lambda task_id: f"result:{task_id}").replay("1")

        record = manager_of(transit.store).read("1")
        assert [TaskState.SUBMITTED, TaskState.FAILED, TaskState.SUBMITTED] == states_of(record)
        assert record is not None
        assert (TaskState.SUBMITTED, 2, None) == (record.state, record.attempt, record.error)
        assert "replayed, was poison" == record.history[-1].note
        assert 0 == transit.client.exists("result:1")
        fetched = transit.fetch(holder)
        assert fetched is not None
        assert Told(0, replays=1) == fetched.deliveries[0].told
        assert Start.STARTED is transit.start(Lease("a", fetched.deliveries[0].number, QUEUE), attempt=2)

    def test_the_past_goes_along(self, transit: Transit, holder: LeaseHolder) -> None:
        """A letter that dies again tells of both its lives."""
        lease = transit.lease(holder, message_of("1"))
        transit.say(holder, "orphaned", lease, "a@test\nsignal 9")
        transit.fetch(holder)
        transit.say(holder, "condemn", Lease("a", 2, QUEUE), "poison\ntoo many")
        dead_letters_of(transit.store).replay("1")
        fetched = transit.fetch(holder)
        assert fetched is not None
        transit.say(holder, "condemn", Lease("a", fetched.deliveries[0].number, QUEUE), "permanent\nno")

        (letter,) = letters_in(transit.client, transit.keys)
        assert ["process", "replay"] == [one.kind for one in letter.deliveries]
        assert 0 == letter.lost_processes

    def test_of_a_foreign_queue(self, transit: Transit, holder: LeaseHolder) -> None:
        """What came from a queue that isn't the fleet's goes back there, and the table of queues doesn't change."""
        lease = transit.lease(holder, "no json", queue="billing")
        transit.say(holder, "condemn", lease, "undecodable\nno JSON")

        dead_letters_of(transit.store).replay("message-1")

        assert ["no json"] == transit.waiting("billing")
        assert 0 == transit.client.exists(transit.keys.queues)


class TestBounds:
    def test_too_many(self, transit: Transit, holder: LeaseHolder) -> None:
        """The oldest letters go as soon as there are more than the agents allow, and are counted."""
        letters = dead_letters_of(transit.store)
        letters.trim(most=3, ttl_seconds=DAY)
        for number in range(5):
            condemned(transit, holder, message_of(str(number)))

        assert ["2", "3", "4"] == ids_in(transit)
        assert Dropped(age=0, surplus=2) == letters.dropped()
        assert [2, 0] == [letters.trim(most=3, ttl_seconds=DAY) for _ in range(2)]
        assert set() == transit.places('"id": "0"')

    def test_a_lower_bound(self, transit: Transit, holder: LeaseHolder) -> None:
        """Agents that allow fewer drop what is over, a bounded number at once."""
        for number in range(10):
            condemned(transit, holder, message_of(str(number)))

        dropped = [dead_letters_of(transit.store).trim(most=2, ttl_seconds=DAY, limit=5) for _ in range(3)]

        assert ([5, 3, 0], ["8", "9"]) == (dropped, ids_in(transit))

    def test_too_old(self, transit: Transit, holder: LeaseHolder) -> None:
        """A letter goes when its time is over."""
        for number in range(3):
            condemned(transit, holder, message_of(str(number)))
        transit.client.zincrby(transit.keys.dead_letters, -2 * DAY, "1")

        assert 1 == dead_letters_of(transit.store).trim(most=10, ttl_seconds=DAY)

        assert ["0", "2"] == ids_in(transit)
        assert Dropped(age=1, surplus=0) == dead_letters_of(transit.store).dropped()
