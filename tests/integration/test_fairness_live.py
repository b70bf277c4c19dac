"""Fairness, live: no task waits at a busy agent while another one could run it, and what can't be read stops nobody."""

import base64
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest

from tests.chaos.oracle import Execution
from tests.chaos.servers import server_in
from tests.dead import letters_in
from tests.fleets import stock_at
from tests.integration.agents import wait_until
from tests.lease_tasks import GENERAL, POOLS, LiveFleet, live_fleet

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

TASK_SECONDS = float(os.environ.get("FAIR_TASK_SECONDS", "0.5"))
SOON_SECONDS = 1.5  # one second, and some more for a machine that has other things to do

log = logging.getLogger(__name__)  # what was measured


@pytest.fixture
def fleet(tmp_path: Path, redis_url: str) -> Iterator[LiveFleet]:
    """Give a fleet without agents, which beat as in a deployment."""
    with (
        server_in(tmp_path / "redis", append_only=True) as server,
        live_fleet(tmp_path, server, redis_url, beat_seconds=1.0) as fleet,
    ):
        yield fleet


def _of(pool: str, number: int) -> int:
    """Return a pool's own number for a task."""
    return 100 * (1 + POOLS.index(pool)) + number


# ── idle agents ──


class TestIdleAgents:
    @pytest.mark.parametrize("pool", POOLS)
    def test_none_waits_beside_a_busy_one(self, fleet: LiveFleet, pool: str) -> None:
        """Of four agents, one of which fetched too many and one of which comes late, none is idle while tasks wait."""
        names = ["one", "two", "three", "late"]
        for name in names[:-1]:
            fleet.start(name, pool=pool)
        fleet.joined()
        for name in names[1:-1]:
            fleet.tell("drain", name)
        fleet.learn_pace("one")
        fleet.tell("drain", "one")
        numbers = range(1, 41)
        for number in numbers:
            fleet.send(number, TASK_SECONDS)
        fleet.tell("resume", "one")
        wait_until(lambda: fleet.held_by("one") > 1, what="tasks that were fetched ahead")
        for name in names[1:-1]:
            fleet.tell("resume", name)
        came = dict.fromkeys(names[:-1], time.monotonic())
        fleet.start("late", pool=pool)
        fleet.joined()
        came["late"] = time.monotonic()

        runs = fleet.ended(*numbers, seconds=60 + 40 * TASK_SECONDS)

        assert sorted(numbers) == sorted(run.number for run in runs)
        idle = {name: _longest_idle(runs, name, came[name]) for name in names}
        log.info("%s: longest idle times while tasks waited %s", pool, {name: f"{idle[name]:.2f} s" for name in names})
        assert max(idle.values()) < SOON_SECONDS

    def test_they_take_over_what_waits_behind_a_long_task(self, fleet: LiveFleet) -> None:
        """Many short tasks behind a long one, all fetched by its agent, are begun by an idle one within a second."""
        for pool in POOLS:
            for name in (f"{pool}-a", f"{pool}-b"):
                fleet.start(name, "--capabilities", pool, pool=pool)
        fleet.joined()
        waited = {}
        for pool in POOLS:
            short = [_of(pool, number) for number in range(2, 22)]
            _load(fleet, pool, [_of(pool, 1), *short])

            resumed_at = time.monotonic()
            fleet.tell("resume", f"{pool}-b")

            runs = fleet.ended(*short)
            assert len(short) == len(runs)
            waited[pool] = max(run.began for run in runs) - resumed_at
            log.info("%s: taken over and begun within %.2f s", pool, waited[pool])
        assert max(waited.values()) < SOON_SECONDS


def _longest_idle(runs: list[Execution], name: str, came: float) -> float:
    """Return for how long an agent was without a task at most while any of the tasks had not begun."""
    last = max(run.began for run in runs)
    own = sorted((run.began, run.ended or 0.0) for run in runs if run.agent == f"{name}@test")
    begins, ends = [began for began, _ in own], [ended for _, ended in own]
    return max(begin - end for end, begin in zip([came, *ends], [*begins, last], strict=True))


def _load(fleet: LiveFleet, pool: str, numbers: list[int]) -> None:
    """Have the first agent of a pool run a long task and hold the others; its second one takes none."""
    busy, idle = f"{pool}-a", f"{pool}-b"
    fleet.tell("drain", idle)
    fleet.learn_pace(busy, requires=pool)
    fleet.tell("drain", busy)
    for number in numbers:
        fleet.send(number, 8.0 if number == numbers[0] else 0.01, requires=pool)
    fleet.tell("resume", busy)
    fleet.begun(numbers[0])
    fleet.holds(busy, len(numbers))


# ── producers that wake nobody, and limits ──


class TestStockProducers:
    def test_their_messages_are_found(self, fleet: LiveFleet) -> None:
        """An agent that waits finds what a plain Celery app has sent within a second, time after time."""
        fleet.start("a")
        fleet.joined()
        fleet.send(0).get(timeout=20)
        waits = []
        with stock_at(fleet.server.url) as stock:
            for number in range(1, 13):
                fleet.holds("a", 0)
                _rest(number * 0.06)  # so that it is sent at another moment of the agent's wait each time
                sent = time.monotonic()
                stock.send_task("fleet.sleep", (number, 0.0))
                (run,) = fleet.ended(number)
                waits.append(run.began - sent)

        log.info("a stock producer's messages were found after %.2f s at most", max(waits))
        assert max(waits) < SOON_SECONDS


def _rest(seconds: float) -> None:
    end = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() >= end)


class TestRateLimits:
    def test_a_limited_task_stays(self, fleet: LiveFleet) -> None:
        """What waits at an agent for its rate limit isn't handed to and fro between idle agents, and runs once."""
        for name in ("one", "two"):
            fleet.start(name, pool="prefork")
        fleet.joined()
        with fleet.commands() as seen:
            for number in range(1, 13):
                fleet.send(number, task="limited")
            fleet.ended(*range(1, 13))

        assert list(range(1, 13)) == sorted(run.number for run in fleet.runs())
        leased = sum(command.text.startswith(f"HSET {fleet.keys.base}leases:") for command in seen)
        log.info("12 messages were leased %d times", leased)
        assert leased < 20


# ── what can't be read ──


def _message(
    fields: Mapping[str, object] | None = None, *, body: object = ([1, 0.0], {}, {}), **headers: object
) -> bytes:
    """Write a task's message as a stock producer does, with some of its fields, its body, or some headers replaced."""
    written = body if isinstance(body, bytes) else json.dumps(body).encode()
    properties = {
        "body_encoding": "base64",
        "correlation_id": "an-id",
        "delivery_info": {"exchange": "", "routing_key": GENERAL},
        "delivery_mode": 2,
        "delivery_tag": "a-tag",
        "priority": 0,
    }
    message = {
        "body": base64.b64encode(written).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"task": "fleet.sleep", "id": "an-id", "lang": "py", "argsrepr": "", "kwargsrepr": "", **headers},
        "properties": properties,
    }
    return json.dumps({**message, **(fields or {})}).encode()


UNREADABLE: Final[Mapping[str, bytes]] = {
    "bytes": b"\xff\xfe\x00\x80 no text",
    "nothing": b"",
    "no JSON": b"{ no JSON",
    "a number": b"5",
    "null": b"null",
    "a list": b"[]",
    "too deep": b"[" * 100_000,
    "no properties": b'{"body": "", "headers": {}}',
    "properties of another kind": _message({"properties": [1]}),
    "no place of delivery": _message({"properties": {"body_encoding": "base64", "delivery_info": 5}}),
    "headers of another kind": _message({"headers": [1]}),
    "a content type that is not accepted": _message({"content-type": "application/x-yaml"}),
    "pickle": _message({"content-type": "application/x-python-serialize", "content-encoding": "binary"}),
    "a content type of another kind": _message({"content-type": [1]}),
    "an encoding of another kind": _message({"content-encoding": 5}),
    "an unknown compression": _message(compression="no-such"),
    "a body that is no base64": _message().replace(b'"body": "', b'"body": "A'),
    "a body that is no text": _message(body=b"\xff\xfe"),
    "a body that is no JSON": _message(body=b"{"),
    "no task": _message({"headers": {"id": "an-id"}}),
    "a body of one part": _message(body=[1]),
    "a body of other kinds": _message(body=[1, 2, 3]),
    "a body that is a number": _message(body=5),
    "a body of options that are null": _message(body=[[1, 0.0], {}, None]),
    "a body whose arguments have no order": _message(body=[[1, 0.0], [], {}]),
    "a name of another kind": _message(task=[1]),
    "an id of another kind": _message(id=[1]),
    "no id": _message(id=None),
    "a time limit of another kind": _message(timelimit=5),
    "an eta that is no time": _message(eta="tomorrow"),
}


class TestDeadLetters:
    @pytest.mark.parametrize("pool", POOLS)
    def test_what_cannot_be_read(self, fleet: LiveFleet, pool: str) -> None:
        """Whatever anybody pushed to a queue is kept as it was, with the reason, and costs the agent nothing."""
        agent = fleet.start("a", pool=pool)
        fleet.joined()

        for raw in UNREADABLE.values():
            fleet.client.lpush(GENERAL, raw)

        fleet.send(2)
        fleet.ended(2)
        fleet.holds("a", 0)
        kept = {letter.message: letter for letter in letters_in(fleet.client, fleet.keys)}
        missing = [name for name, raw in UNREADABLE.items() if raw not in kept]
        assert not missing
        for letter in kept.values():
            assert (GENERAL, True) == (letter.queue, abs(letter.died_at.timestamp() - time.time()) < 60)
        assert len(UNREADABLE) == fleet.client.zcard(fleet.keys.dead_letters)
        assert [2] == [run.number for run in fleet.runs()]
        assert agent.process.poll() is None
        assert not fleet.waiting(GENERAL)
        log.info("%s: %s", pool, {name: kept[raw].reason for name, raw in UNREADABLE.items()})
