"""What projects know of Celery on Redis, live: steering a busy agent, ending tasks, canvas, stock workers beside."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from signal import SIGQUIT
from typing import Any

import pytest
from celery import chain, chord, group
from celery.exceptions import TaskRevokedError
from redis import Redis

from orchestra import OrchestraCelery
from tests.fleets import stock_at
from tests.integration.agents import AgentProcess, Agents, wait_until
from tests.keys import keys_holding, lengths_of_lists

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

MARK = "mark of a message"

# Each run is a line of a file, so that none is overlooked, whichever process it was in.
TASKS = """
import os
from pathlib import Path
from time import monotonic, sleep

FOLDER = Path(__file__).parent


def note(word):
    with (FOLDER / "ran").open("a") as ran:
        ran.write(f"{word} {os.environ['RUNS_AS']}\\n")


def declare(app):
    @app.task(name="fleet.wait", shared=False)
    def wait(word):
        note(word)
        deadline = monotonic() + 60
        while not (FOLDER / "go").exists() and monotonic() < deadline:
            sleep(0.02)
        return word

    @app.task(name="fleet.short", shared=False)
    def short(word):
        sleep(0.02)
        note(word)
        return word

    @app.task(name="fleet.count", shared=False)
    def count(words):
        return len(words)
"""
OURS = """
import tasks
from orchestra import OrchestraCelery

app = OrchestraCelery("fleet")
tasks.declare(app)
"""
STOCK = """
import tasks
from celery import Celery

app = Celery("stock")
app.conf.task_acks_late = True
tasks.declare(app)
"""


@pytest.fixture
def start(fleet: Agents) -> Any:
    """Give a function that starts one of our agents by its name, with a pool of processes."""
    fleet.write_app(TASKS, module="tasks")
    fleet.write_app(OURS)

    def started(name: str, *options: str) -> AgentProcess:
        return fleet.start(*options, name=name, pool="prefork", RUNS_AS=name)

    return started


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:
    """Give a client of the test's own."""
    with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def ran(tmp_path: Path) -> Any:
    """Give a function that tells which words were noted, in which order and by whom."""

    def lines() -> list[tuple[str, ...]]:
        noted = tmp_path / "ran"
        return [tuple(line.split()) for line in noted.read_text().splitlines()] if noted.exists() else []

    return lines


def _send(app: Any, task: str, word: str, **options: Any) -> Any:
    return app.send_task(f"fleet.{task}", (word,), headers={"mark": MARK}, **options)


def _told(app: Any, command: str, *arguments: Any, **options: Any) -> str:
    """Say what the agent answered to a command."""
    return str(getattr(app.control, command)(*arguments, reply=True, limit=1, timeout=10, **options))


class TestABusyAgent:
    """Every process of the agent is busy for as long as the test wants."""

    @pytest.fixture
    def busy(self, start: Any, sender: OrchestraCelery, ran: Any) -> list[Any]:
        """Start an agent, and give the results of the two tasks that it is busy with."""
        start("busy", "-c", "2")
        results = [_send(sender, "wait", word) for word in ("first", "second")]
        wait_until(lambda: len(ran()) == 2, what="two running tasks")
        return results

    def test_it_tells_what_it_does(self, busy: list[Any], sender: OrchestraCelery, tmp_path: Path) -> None:
        """It answers at once, with the tasks that run, and those that wait in it apart from them."""
        waiting = {_send(sender, "short", f"{number}").id for number in range(4)}
        inspect: Any = sender.control.inspect(limit=1, timeout=10)

        active, reserved = inspect.active()["busy@test"], inspect.reserved()["busy@test"]

        assert {result.id for result in busy} == {task["id"] for task in active}
        assert {task["id"] for task in reserved} <= waiting
        assert {"busy@test": {"ok": "pong"}} == inspect.ping()
        (tmp_path / "go").touch()
        assert ["first", "second"] == [result.get(timeout=20) for result in busy]

    def test_queues_come_and_go(
        self, busy: list[Any], sender: OrchestraCelery, client: Any, ran: Any, tmp_path: Path
    ) -> None:
        """It takes a queue and leaves one while it's busy; that holds as soon as it has time."""
        assert "add consumer extra" in _told(sender, "add_consumer", "extra")
        assert "no longer consuming" in _told(sender, "cancel_consumer", "celery")
        extra = _send(sender, "short", "extra", queue="extra")
        left = _send(sender, "short", "left")
        (tmp_path / "go").touch()

        assert ["first", "second", "extra"] == [result.get(timeout=20) for result in (*busy, extra)]
        wait_until(lambda: len(keys_holding(client, MARK)) == 1, what="the message in the queue that was left")
        assert not left.ready()

        assert "add consumer celery" in _told(sender, "add_consumer", "celery")
        assert "left" == left.get(timeout=20)
        assert {"first", "second", "extra", "left"} == {word for word, _ in ran()}
        assert 4 == len(ran())

    def test_what_is_revoked_meanwhile_is_not_run(
        self, busy: list[Any], sender: OrchestraCelery, client: Any, ran: Any, tmp_path: Path
    ) -> None:
        """Of the tasks behind the running ones, those that are revoked are dropped; all others run once."""
        results = [_send(sender, "short", f"{number}") for number in range(12)]
        revoked = results[1::3]
        _told(sender, "revoke", [result.id for result in revoked])
        (tmp_path / "go").touch()

        for result in results:
            if result in revoked:
                with pytest.raises(TaskRevokedError):
                    result.get(timeout=20)
            else:
                result.get(timeout=20)
        wait_until(lambda: not keys_holding(client, MARK), what="no message left")
        expected = {"first", "second", *(f"{number}" for number in range(12) if number % 3 != 1)}
        assert dict.fromkeys(expected, 1) == Counter(word for word, _ in ran())


class TestTerminating:
    @pytest.mark.parametrize("signal", ["SIGTERM", "SIGKILL"])
    def test_a_running_task(
        self, start: Any, sender: OrchestraCelery, client: Any, ran: Any, tmp_path: Path, signal: str
    ) -> None:
        """`revoke(terminate=True)` ends a task as revoked and its message with it; the agent goes on."""
        agent = start("agent", "-c", "1")
        result = _send(sender, "wait", "ended")
        wait_until(ran, what="a running task")

        sender.control.revoke(result.id, terminate=True, signal=signal)

        with pytest.raises(TaskRevokedError):
            result.get(timeout=20)
        assert "next" == _send(sender, "short", "next").get(timeout=20)
        wait_until(lambda: not keys_holding(client, MARK), what="no message left")
        assert [("ended", "agent"), ("next", "agent")] == ran()
        assert agent.process.poll() is None

    def test_a_pool_that_cannot(
        self, start: Any, fleet: Agents, sender: OrchestraCelery, client: Any, ran: Any, tmp_path: Path
    ) -> None:
        """A cold stop lets a solo agent's task come to its end; Celery's pool would have it fail."""
        _ = start  # which writes the app
        agent = fleet.start(name="solo", RUNS_AS="solo")
        result = _send(sender, "wait", "cold")
        wait_until(ran, what="a running task")

        agent.process.send_signal(SIGQUIT)

        agent.wait_for("Cold shutdown")
        (tmp_path / "go").touch()
        assert "cold" == result.get(timeout=20)
        assert 0 == agent.process.wait(20)
        assert [("cold", "solo")] == ran()
        wait_until(lambda: not keys_holding(client, MARK), what="no message left")


class TestCanvas:
    def test_over_two_agents(self, start: Any, sender: OrchestraCelery, client: Any, ran: Any) -> None:
        """Every part of chains, groups and chords runs once, on whichever agent, and the bodies after all of them."""
        start("one", "-c", "2")
        start("two", "-c", "2")

        def short(word: str) -> Any:
            return sender.signature("fleet.short", (word,), headers={"mark": MARK}, immutable=True)

        count: Any = sender.signature("fleet.count")
        header = [chain(short(f"{number}a"), short(f"{number}b")) for number in range(10)]
        results = [
            chord([short(f"{number}") for number in range(40)], count).apply_async(),
            chord(header, count).apply_async(),
            group(short(f"{number}g") for number in range(20)).apply_async(),
            chain(*(short(f"{number}c") for number in range(10))).apply_async(),
        ]

        assert [40, 10, [f"{number}g" for number in range(20)], "9c"] == [result.get(timeout=60) for result in results]
        wait_until(lambda: not keys_holding(client, MARK), what="no message left")
        assert {1} == set(Counter(word for word, _ in ran()).values())
        assert 90 == len(ran())
        assert {"one", "two"} == {agent for _, agent in ran()}


class TestStockNeighbours:
    def test_one_queue_for_both(
        self, start: Any, fleet: Agents, sender: OrchestraCelery, redis_url: str, client: Any, ran: Any
    ) -> None:
        """A stock worker and our agent share the default queue; what either app sends runs once, on one of them."""
        start("ours", "-c", "1")
        fleet.write_app(STOCK, module="stock")
        environment = {"CELERY_BROKER_URL": redis_url, "CELERY_RESULT_BACKEND": redis_url, "RUNS_AS": "stock"}
        fleet.start("-c", "1", name="stock", module="stock", wait=False, **environment).wait_for(" ready.")

        with stock_at(redis_url) as stock:
            for number in range(100):
                _send(sender if number % 2 else stock, "short", f"{number}")
            wait_until(lambda: len(ran()) >= 100, seconds=60, what="a hundred runs")
            wait_until(lambda: not keys_holding(client, MARK), what="no message left")

        assert {f"{number}" for number in range(100)} == {word for word, _ in ran()}
        assert 100 == len(ran())
        assert {"ours", "stock"} == {worker for _, worker in ran()}
        assert 5 > max(lengths_of_lists(client).values(), default=0)

    def test_a_stock_worker_alone(
        self, start: Any, fleet: Agents, sender: OrchestraCelery, redis_url: str, client: Any, ran: Any
    ) -> None:
        """Without any agent of ours a stock worker runs what our app sends, urgent first, and nothing piles up."""
        for number, priority in enumerate((9, 6, 3, 0)):
            _send(sender, "short", f"{number}", priority=priority)
        fleet.write_app(STOCK, module="stock")
        environment = {"CELERY_BROKER_URL": redis_url, "CELERY_RESULT_BACKEND": redis_url, "RUNS_AS": "stock"}
        fleet.start("-c", "1", name="stock", module="stock", wait=False, **environment)
        results = [_send(sender, "short", f"more {number}") for number in range(40)]

        assert [f"more {number}" for number in range(40)] == [result.get(timeout=30) for result in results]
        wait_until(lambda: not keys_holding(client, MARK), what="no message left")
        assert 44 == len(ran())
        assert ["3", "2", "1", "0"] == [word for word, *_ in ran() if word in "3210"]
        assert 5 > max(lengths_of_lists(client).values(), default=0)
