"""Messages that nobody could run for too long become dead letters: those, and no others."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from orchestra.exceptions import NoCapableAgentError
from orchestra.queues import QueueNames
from orchestra.registry import AgentRegistry, CatalogueEntry
from orchestra.store import Store, text_of, texts_of
from orchestra.stranded import CHUNK, MOST_READ, Stranded, StrandedSweep
from orchestra.types import Cancelled
from tests.fleets import commands_at
from tests.stores import FLEET, manager_of, publish, register, store_at

STEPS = ("", "\x06\x166")
GPU = "shop:gpu"


@pytest.fixture
def store(redis_url: str) -> Iterator[Store]:
    """Give the shop's part of an empty Redis."""
    with store_at(redis_url) as store:
        yield store


@pytest.fixture
def registry(store: Store) -> AgentRegistry:
    """Give the shop's registry, in which an agent without a gpu lives."""
    registry = AgentRegistry(store, lost_after_seconds=5)
    join(registry, "text@a", "nlp")
    return registry


@pytest.fixture
def stranded() -> list[Stranded]:
    """Give the list of what a sweep has moved."""
    return []


@pytest.fixture
def sweep(store: Store, registry: AgentRegistry, stranded: list[Stranded]) -> StrandedSweep:
    """Give a sweep that another may follow at once."""
    return sweep_of(store, registry, stranded, pause_seconds=0.001)


def sweep_of(store: Store, registry: AgentRegistry, stranded: list[Stranded], *, pause_seconds: float) -> StrandedSweep:
    """Make a sweep of the shop's queues."""
    return StrandedSweep(
        store,
        registry,
        QueueNames(FLEET, "celery"),
        steps=STEPS,
        queue_prefix="",
        pause_seconds=pause_seconds,
        on_stranded=stranded.append,
    )


def swept(sweep: StrandedSweep, store: Store) -> None:
    """Sweep, whoever has just done so."""
    store.command("DEL", store.keys.sweeping)
    sweep.run()


def join(registry: AgentRegistry, name: str, capabilities: str, *tasks: str) -> None:
    """Register an agent that can and knows this."""
    about = {"capabilities": capabilities}
    known = {task: CatalogueEntry() for task in tasks or ("shop.train",)}
    register(registry, name, about=about, tasks=known, queues=[])


def send(
    store: Store,
    task_id: str,
    policy: str | None = "dead_letter_after:60",
    *,
    ago: float = 120,
    queue: str = GPU,
    step: str = "",
    **headers: Any,
) -> str:
    """Publish a task so long ago; return its message."""
    own = {} if policy is None else {"on_unroutable": policy}
    message = json.dumps({"headers": {"id": task_id, "task": "shop.train", **own, **headers}})
    suffix = queue.partition(":")[2]
    publish(store, task_id, message=message, name="shop.train", queue=f"{queue}{step}", suffix=suffix)
    now = store.command("TIME")
    store.command("HSET", store.keys.task(task_id), "submitted", int(now[0]) - ago)
    return message


def waiting(store: Store, queue: str = GPU) -> list[str]:
    """Return the ids of the tasks that wait in a list, the oldest first."""
    return [json.loads(raw)["headers"]["id"] for raw in reversed(store.command("LRANGE", queue, 0, -1))]


def dead(store: Store) -> list[dict[str, Any]]:
    """Return the dead letters, the oldest first."""
    ids = [text_of(letter) for letter in store.command("ZRANGE", store.keys.dead_letters, 0, -1)]
    return [texts_of(store.command("HGETALL", store.keys.dead_letter(letter))) for letter in ids]


class TestWhatIsMoved:
    def test_a_message_whose_time_is_up(self, store: Store, sweep: StrandedSweep, stranded: list[Stranded]) -> None:
        """It becomes a dead letter as it was, with queue and reason, and its waiter's error says who lacks what."""
        raw = send(store, "one")

        sweep.run()

        (letter,) = dead(store)
        assert (GPU, "unroutable", raw) == (letter["queue"], letter["reason"], letter["raw"])
        assert [] == waiting(store)
        (one,) = stranded
        assert ("one", "shop.train") == (one.task_id, one.task)
        assert isinstance(one.error, NoCapableAgentError)
        assert (
            "shop.train became a dead letter after 60 s in which nobody could run it: no agent that knows it satisfies "
            "gpu; 1 agent is known: text@a lacks gpu. Start one that does, and replay it."
        ) == str(one.error)

    @pytest.mark.parametrize(
        ("policy", "ago"),
        [
            (None, 9_000),
            ("wait", 9_000),
            ("raise", 9_000),
            ("fallback:dead_letter_after", 9_000),
            ("dead_letter_after:60", 30),
            ("dead_letter_after:nonsense", 9_000),
            (["dead_letter_after:60"], 9_000),
        ],
    )
    def test_others_stay(self, store: Store, sweep: StrandedSweep, policy: Any, ago: float) -> None:
        """A message without this policy, or that hasn't waited for long enough, stays beside one that goes."""
        send(store, "before", policy, ago=ago)
        send(store, "goes")
        send(store, "behind", policy, ago=ago)

        sweep.run()

        assert ["before", "behind"] == waiting(store)
        assert 1 == len(dead(store))

    @pytest.mark.parametrize("raw", ["dead_letter_after", '["dead_letter_after"]', '{"headers": "dead_letter_after"}'])
    def test_what_cannot_be_read_stays(self, store: Store, sweep: StrandedSweep, raw: str) -> None:
        """An agent judges it when one comes."""
        send(store, "goes")
        store.command("LPUSH", GPU, raw)

        sweep.run()

        assert [raw.encode()] == store.command("LRANGE", GPU, 0, -1)

    def test_whatever_its_urgency(self, store: Store, sweep: StrandedSweep) -> None:
        """Each of a queue's lists is looked into."""
        send(store, "one")
        send(store, "two", step=STEPS[1])

        sweep.run()

        assert ["", ""] == [letter["queue"].removeprefix(GPU) for letter in dead(store)]

    @pytest.mark.parametrize(("minutes", "goes"), [(-1.5, True), (-0.5, False)])
    def test_a_delayed_one_waits_since_it_was_due(
        self, store: Store, sweep: StrandedSweep, minutes: float, goes: bool
    ) -> None:
        """The time of a delayed task begins when it was due, however long ago it was submitted."""
        send(store, "one", ago=9_000, eta=(datetime.now(UTC) + timedelta(minutes=minutes)).isoformat())

        sweep.run()

        assert goes == (len(dead(store)) == 1)

    def test_one_whose_record_is_gone(self, store: Store, sweep: StrandedSweep) -> None:
        """A record is kept for longer than a message may wait, so without one its time is up."""
        send(store, "one")
        store.command("DEL", store.keys.task("one"))

        sweep.run()

        assert 1 == len(dead(store))

    def test_a_cancelled_one_is_left_to_whoever_drops_it(self, store: Store, sweep: StrandedSweep) -> None:
        """Nobody waits for it any more."""
        send(store, "one")
        assert manager_of(store).cancel("one").what is Cancelled.WAITING

        sweep.run()

        assert ["one"] == waiting(store)


class TestWhoCouldRunIt:
    def test_a_live_agent_that_can(self, store: Store, sweep: StrandedSweep, registry: AgentRegistry) -> None:
        """A queue that a live agent serves isn't touched, however busy the agent is."""
        send(store, "one")
        join(registry, "big@a", "gpu")

        sweep.run()

        assert ["one"] == waiting(store)

    @pytest.mark.parametrize(("ago", "goes"), [(30, False), (90, True)])
    @pytest.mark.parametrize("stopped", [True, False])
    def test_one_that_was_there(
        self,
        store: Store,
        sweep: StrandedSweep,
        registry: AgentRegistry,
        stranded: list[Stranded],
        ago: float,
        goes: bool,
        stopped: bool,
    ) -> None:
        """The time counts since the last agent that could run it was seen, whether that stopped or was lost."""
        send(store, "one", ago=9_000)
        join(registry, "big@a", "gpu")
        if stopped:
            registry.retire("big@a", "1")
        key = store.keys.former_agents if stopped else store.keys.agents
        store.command("ZADD", key, int(store.command("TIME")[0]) - ago, "big@a")

        sweep.run()

        assert goes == (len(dead(store)) == 1)
        assert all("big@a" not in str(one.error) for one in stranded)

    def test_one_that_does_not_know_the_task(
        self, store: Store, sweep: StrandedSweep, registry: AgentRegistry, stranded: list[Stranded]
    ) -> None:
        """A task that was handed on waits for an agent that knows it, not for any that satisfies it."""
        send(store, "one", queue="shop:gpu@shop.train")
        join(registry, "big@a", "gpu", "shop.index")

        sweep.run()

        assert ("big@a",) == stranded[0].error.unknown_to


class TestHowItSweeps:
    def test_one_at_a_time(self, store: Store, registry: AgentRegistry, stranded: list[Stranded]) -> None:
        """While one agent sweeps, and for a while after, no other does."""
        sweeps = [sweep_of(store, registry, stranded, pause_seconds=60) for _ in range(2)]
        sweeps[0].run()
        send(store, "one")

        sweeps[1].run()

        assert ["one"] == waiting(store)
        assert 0 < store.command("PTTL", store.keys.sweeping) <= 60_000

    def test_one_that_was_fetched_meanwhile(
        self, store: Store, registry: AgentRegistry, redis_url: str, stranded: list[Stranded]
    ) -> None:
        """What is no longer in the list when it would be moved is left to whoever has it."""
        raw = send(store, "one")
        sweep = sweep_of(store, registry, stranded, pause_seconds=0.001)
        store.command("RPOP", GPU)

        assert 0 == store.run("strand", [GPU], [store.keys.base, raw, GPU, "unroutable", "nobody can"])
        sweep.run()

        assert ([], []) == (dead(store), stranded)

    def test_goes_on_behind_what_may_wait(self, store: Store, sweep: StrandedSweep) -> None:
        """A sweep reads a bounded number of messages, and the next one goes on there, and begins anew at the end."""
        commands = [("LPUSH", GPU, f'{{"headers": {{"id": "w{number}"}}}}') for number in range(MOST_READ + CHUNK)]
        store.pipeline(commands)
        send(store, "behind")

        swept(sweep, store)
        assert [] == dead(store)
        assert str(MOST_READ) == text_of(store.command("HGET", store.keys.swept, GPU))

        swept(sweep, store)
        assert 1 == len(dead(store))
        assert 0 == store.command("EXISTS", store.keys.swept)

    def test_nothing_waits(self, store: Store, sweep: StrandedSweep, redis_url: str) -> None:
        """A sweep of a fleet whose queues are empty or served reads no message."""
        send(store, "one", queue="shop:nlp")

        with commands_at(redis_url) as seen:
            sweep.run()

        assert "LRANGE" not in {command.split()[0] for command in seen}

    def test_many(self, store: Store, sweep: StrandedSweep, stranded: list[Stranded]) -> None:
        """Everything whose time is up goes, in one sweep, in the order in which it came."""
        for number in range(2 * CHUNK + 10):
            send(store, f"t{number}", None if number % 3 else "dead_letter_after:60")

        sweep.run()

        ids = [json.loads(letter["raw"])["headers"]["id"] for letter in dead(store)]
        assert [f"t{number}" for number in range(0, 2 * CHUNK + 10, 3)] == ids == [one.task_id for one in stranded]
        assert [f"t{number}" for number in range(2 * CHUNK + 10) if number % 3] == waiting(store)
