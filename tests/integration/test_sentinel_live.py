"""Sentinel, live: a fleet finds its Redis by asking, and goes on with the next master after a failover."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import chord

from orchestra.orchestra import Orchestra
from tests.fleets import app_at, quick
from tests.integration.agents import AgentProcess, Agents, agents, wait_until
from tests.servers import SentinelSet

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

FLEET = """
import pathlib
import time

from orchestra import OrchestraCelery

app = OrchestraCelery("fleet")
app.conf.broker_transport_options = {options!r}


@app.task(requires={{"nlp"}})
def words(text: str) -> int:
    return len(text.split())


@app.task(requires={{"nlp"}})
def held(folder: str) -> int:
    place = pathlib.Path(folder)
    with (place / "begun").open("a") as begun:
        begun.write(".")
    while not (place / "go").exists():
        time.sleep(0.02)
    return len((place / "begun").read_text())


@app.task
def total(numbers: list[int]) -> int:
    return sum(numbers)
"""


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[SentinelSet]:
    """Give the servers."""
    with SentinelSet.start(tmp_path) as servers:
        yield servers


@pytest.fixture
def agent(tmp_path: Path, redis: SentinelSet) -> Iterator[Callable[[], AgentProcess]]:
    """Give a function that starts the agent."""
    with agents(tmp_path, redis.url) as started:
        yield lambda: _started(started, redis)


def _started(fleet: Agents, redis: SentinelSet) -> AgentProcess:
    fleet.write_app(FLEET.format(options=redis.options))
    return fleet.start("--capabilities", "nlp,general", name="text")


@pytest.fixture
def app(redis: SentinelSet) -> Iterator[Any]:
    """Give an app that sends, and knows none of the tasks."""
    changes = {"broker_transport_options": redis.options}
    settings = quick(connect_timeout_seconds=10.0)
    with app_at(redis.url, main="fleet", settings=settings, changes=changes) as app:
        yield app


def test_a_fleet_works(agent: Callable[[], AgentProcess], app: Any) -> None:
    """Tasks, chords, remote control, counting and purging go by Sentinel as they do by a plain address."""
    waiting = [app.send_task("fleet.words", ("one two",), requires="gpu") for _ in range(3)]
    agent()
    words = app.signature("fleet.words", ("one two three",))

    assert 3 == words.apply_async().get(timeout=20)
    assert 6 == chord([words, words], app.signature("fleet.total"), app=app).apply_async().get(timeout=20)
    assert [{"text@test": {"ok": "pong"}}] == app.control.broadcast("ping", reply=True, limit=1, timeout=20)
    depths = {queue.name: queue.depth for queue in Orchestra(app).queues()}
    assert {"celery": 0, "fleet:nlp": 0, "fleet:gpu": 3} == depths
    with app.connection_for_write() as connection:
        assert 3 == connection.default_channel.queue_purge("fleet:gpu")
    assert not any(result.ready() for result in waiting)


@pytest.mark.parametrize("way", ["asked", "crash"])
def test_a_failover(agent: Callable[[], AgentProcess], app: Any, redis: SentinelSet, way: str) -> None:
    """The next master has what waited; the agent and the senders find it by themselves, and go on."""
    process = agent()
    assert 2 == app.send_task("fleet.words", ("one two",)).get(timeout=20)
    waiting = [app.send_task("fleet.words", (text,), requires="gpu") for text in ("a", "a b")]

    redis.fail_over() if way == "asked" else redis.crash()

    wait_until(lambda: _runs(app), seconds=60, what="a task on the next master")
    assert process.process.poll() is None
    assert not any(result.ready() for result in waiting)
    assert "add consumer" in str(app.control.add_consumer("fleet:gpu", reply=True, limit=1, timeout=20))
    assert [1, 2] == [result.get(timeout=20) for result in waiting]


def test_an_end_that_the_replica_lacks(
    agent: Callable[[], AgentProcess], app: Any, redis: SentinelSet, tmp_path: Path
) -> None:
    """A task whose result was lost with the master runs again, though its agent is alive and was done with it."""
    process = agent()
    result = app.send_task("fleet.held", (str(tmp_path),), requires="nlp")
    wait_until((tmp_path / "begun").exists, what="the task's beginning")
    redis.catch_up()
    redis.cut_off()
    (tmp_path / "go").touch()
    assert 1 == result.get(timeout=20)

    redis.crash_behind()

    wait_until(lambda: _result(app, result.id) == 2, seconds=60, what="the second run's result")
    assert process.process.poll() is None


def _result(app: Any, task_id: str) -> Any:
    try:
        return app.AsyncResult(task_id).result
    except Exception:  # noqa: BLE001  # as above
        return None


def _runs(app: Any) -> bool:
    """Send a task, and tell whether its result came: what was sent to a master that went is no promise of Redis."""
    try:
        return bool(2 == app.send_task("fleet.words", ("one two",)).get(timeout=5))
    except Exception:  # noqa: BLE001  # whichever connection is first to find that its master is gone
        return False
