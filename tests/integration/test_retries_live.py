"""Retries on real agents: where they run, what becomes of them without Redis, and how many there are in a storm."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestra import TaskState
from tests.chaos.servers import Server, server_in
from tests.fleets import app_at
from tests.integration.agents import AgentProcess, agents, wait_until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

TASKS = 60
WINDOW_SECONDS = 2.0
ROOM = 12  # a fifth of the tasks, which is above the floor of 2 x 5

# Each attempt is a line of a file, with its time. The service is down until there's a file that says otherwise.
FLEET = """
import json
import os
import time
from pathlib import Path

from orchestra import Backoff, OrchestraCelery, RetryableError
from orchestra.retry_budget import RetryBudget

app = OrchestraCelery("fleet")
FOLDER = Path(__file__).parent
STEADY = Backoff(base_seconds=0.05, jitter="none", max_seconds=0.05)


def note(self):
    line = {"id": self.request.id, "at": time.time(), "retries": self.request.retries, "agent": os.environ["RUNS_AS"]}
    with (FOLDER / "attempts").open("a", encoding="utf-8") as attempts:
        attempts.write(json.dumps(line) + "\\n")


@app.task(
    bind=True,
    max_attempts=10_000,
    backoff=STEADY,
    retry_budget=RetryBudget(ratio=0.2, floor_per_second=5, window_seconds=2),
)
def ask(self):
    note(self)
    if not (FOLDER / "up").exists():
        raise ConnectionError("the service is down")


@app.task(bind=True, requires={"nlp"}, max_attempts=3)
def moving(self):
    note(self)
    if self.request.retries == 0:
        raise RetryableError("elsewhere, please", retry_after=3.0)
    return os.environ["RUNS_AS"]


@app.task(bind=True, max_attempts=3, backoff=STEADY)
def cut_off(self):
    note(self)
    while not (FOLDER / "go").exists():
        time.sleep(0.02)
    if self.request.retries == 0:
        raise RetryableError("while Redis is away")
    return self.request.retries
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Give a server that may be killed, and keeps what it was told."""
    with server_in(tmp_path / "redis", append_only=True) as server:
        yield server


@pytest.fixture
def app(server: Server) -> Iterator[Any]:
    """Give an app of the fleet that knows none of its tasks."""
    with app_at(server.url, main="fleet") as app:
        yield app


@pytest.fixture
def start(server: Server, tmp_path: Path) -> Iterator[Callable[..., AgentProcess]]:
    """Give a function that starts an agent by its name."""
    with agents(tmp_path, server.url) as started:
        started.write_app(FLEET)

        def one(name: str, *options: str, pool: str = "solo") -> AgentProcess:
            return started.start(*options, name=name, pool=pool, RUNS_AS=name)

        yield one


@pytest.fixture
def attempts(tmp_path: Path) -> Callable[[], list[dict[str, Any]]]:
    """Give a function that tells of the attempts, in their order."""

    def lines() -> list[dict[str, Any]]:
        noted = tmp_path / "attempts"
        return [json.loads(line) for line in noted.read_text("utf-8").splitlines()] if noted.exists() else []

    return lines


class TestRouting:
    def test_a_retry_lands_elsewhere(self, start: Callable[..., AgentProcess], app: Any, attempts: Any) -> None:
        """A retry is routed from its requirement: any agent that satisfies it runs it, and no other one does."""
        first = start("first", "--capabilities", "nlp")
        start("other")  # which serves `general` alone
        result = app.send_task("fleet.moving")
        wait_until(lambda: app.state.read(result.id).state is TaskState.RETRYING, what="the first attempt's end")

        assert 0 == first.stop()
        start("second", "--capabilities", "nlp,gpu")

        assert "second" == result.get(timeout=30)
        assert ["first", "second"] == [one["agent"] for one in attempts()]


class TestWithoutRedis:
    def test_a_retry_waits_for_it(
        self, start: Callable[..., AgentProcess], server: Server, app: Any, attempts: Any, tmp_path: Path
    ) -> None:
        """A task that fails while Redis is away is tried again when it's back: budget and publish can't lose it."""
        agent = start("agent")
        result = app.send_task("fleet.cut_off")
        wait_until(attempts, what="the first attempt")

        server.kill()
        (tmp_path / "go").touch()
        agent.wait_for("retry budget not asked")
        server.start()

        assert 1 == result.get(timeout=60)
        assert [0, 1] == [one["retries"] for one in attempts()]
        assert TaskState.SUCCEEDED is app.state.read(result.id).state


class TestStorm:
    def test_a_service_that_is_down(
        self, start: Callable[..., AgentProcess], app: Any, attempts: Any, tmp_path: Path
    ) -> None:
        """While a service is down its tasks are retried within their budget; when it's back each ends well."""
        fleet = [start("a"), start("b", "--concurrency", "2", pool="prefork")]
        results = [app.send_task("fleet.ask") for _ in range(TASKS)]
        wait_until(lambda: _retries(attempts()) >= 4 * ROOM, seconds=60, what="a storm of several windows")

        (tmp_path / "up").touch()

        for result in results:
            result.get(timeout=60)
        assert {result.id for result in results} == {one["id"] for one in attempts()}
        assert all(app.state.read(result.id).state is TaskState.SUCCEEDED for result in results)
        self.within_the_budget(attempts())
        records = [app.state.read(result.id) for result in results]
        assert any("s by the retry budget; ConnectionError" in str(e.note) for one in records for e in one.history)
        assert all(agent.says("retry put off") for agent in fleet)

    def within_the_budget(self, attempts: list[dict[str, Any]]) -> None:
        """
        Check that at the end of each window there have been no more retries than all windows so far have room for.

        An agent may start a retry a little after it was due, so a window alone may see one of the window before.
        """
        windows = Counter(int(one["at"] // WINDOW_SECONDS) for one in attempts if one["retries"])
        first = min(int(one["at"] // WINDOW_SECONDS) for one in attempts)
        so_far = 0
        for window in sorted(windows):
            so_far += windows[window]
            assert so_far <= ROOM * (window - first + 1), windows


def _retries(attempts: list[dict[str, Any]]) -> int:
    return sum(1 for one in attempts if one["retries"])
