"""Claims, live: however many submit at once, and whoever is killed meanwhile, there is one task, and it ends."""

import json
import os
import signal
import subprocess
import sys
from base64 import b64decode
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest

from orchestra import Orchestra, TaskState
from orchestra.orchestra import TaskHandle
from tests.fleets import app_at
from tests.integration.agents import Agents, wait_until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

QUICKLY: Any = {"ORCHESTRA_BEAT_SECONDS": "0.4"}  # a silent agent is lost after two seconds

FLEET = """
import os
import time
from pathlib import Path

from orchestra import OrchestraCelery

app = OrchestraCelery("fleet")
FOLDER = Path(__file__).parent


def run(task, number):
    mark = FOLDER / f"{task.request.id}.begun"
    mark.with_suffix(".new").write_text(str(os.getpid()))
    mark.with_suffix(".new").rename(mark)
    while not (FOLDER / f"go{number}").exists():
        time.sleep(0.05)
    return number


@app.task(bind=True, unique="until_done")
def alone(self, number):
    return run(self, number)


@app.task(bind=True, unique="until_done", acks_late=False)
def once(self, number):
    return run(self, number)
"""

SUBMITTER = """
import sys

from orchestra import Orchestra
from fleet import app

start, keys, way = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
orchestra = Orchestra(app)
for number in [*range(start, keys), *range(start)]:
    options = {"idempotency_key": f"key {number}"} if way == "key" else {}
    print(number, orchestra.submit("fleet.alone", {"number": number}, **options).id, flush=True)
"""


@pytest.fixture
def app(redis_url: str) -> Iterator[Any]:
    """Give an app of the fleet that knows none of its tasks."""
    with app_at(redis_url, main="fleet") as app:
        yield app


@pytest.fixture
def submitter(tmp_path: Path, redis_url: str, fleet: Agents) -> Callable[..., "subprocess.Popen[str]"]:
    """Give a starter of processes that submit the tasks of so many keys, from one of them on."""
    fleet.write_app(FLEET)
    fleet.write_app(SUBMITTER, module="submitter")

    def start(first: int, keys: int, way: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, str(tmp_path / "submitter.py"), str(first), str(keys), way],
            cwd=tmp_path,
            env={**os.environ, "ORCHESTRA_BROKER_URL": redis_url, "PYTHONPATH": str(tmp_path)},
            stdout=subprocess.PIPE,
            text=True,
        )

    return start


def _told(process: "subprocess.Popen[str]") -> list[tuple[int, str]]:
    """Return what a submitter has told until its end."""
    out, _ = process.communicate(timeout=120)
    lines = [line.split() for line in out.splitlines(keepends=True) if line.endswith("\n")]
    return [(int(number), task_id) for number, task_id in lines]


def _enqueued(app: Any) -> dict[int, list[str]]:
    """Return the ids of the messages that wait, by the number that they're for."""
    found: dict[int, list[str]] = {}
    for raw in app.store.command("LRANGE", "celery\x06\x166", 0, -1):
        message = json.loads(raw)
        number = json.loads(b64decode(message["body"]))[1]["number"]
        found.setdefault(number, []).append(message["headers"]["id"])
    return found


@pytest.mark.parametrize("way", ["key", "unique"])
class TestSubmitters:
    def test_all_at_once(self, app: Any, submitter: Callable[..., Any], way: str) -> None:
        """Six processes that submit the same fifty all get the same fifty tasks."""
        processes = [submitter(0, 50, way) for _ in range(6)]

        told = [pair for process in processes for pair in _told(process)]

        assert dict.fromkeys(range(50), 6) == Counter(number for number, _ in told)
        assert {number: [task_id] for number, task_id in told} == _enqueued(app)
        assert 50 == len(set(told))

    def test_killed(self, app: Any, submitter: Callable[..., Any], way: str) -> None:
        """Submitters that are killed in between leave each task there once or not at all; one more completes them."""
        random, told = Random(1), list[tuple[int, str]]()
        for first in range(0, 200, 25):
            process = submitter(first, 200, way)
            lines = [process.stdout.readline() for _ in range(random.randint(1, 40))]
            process.send_signal(signal.SIGKILL)
            told += [(int(number), task_id) for number, task_id in map(str.split, lines)]
            process.communicate()

        told += _told(submitter(0, 200, way))

        assert {number: [task_id] for number, task_id in told} == _enqueued(app)
        assert set(range(200)) == {number for number, _ in told}


class TestOwner:
    @pytest.fixture
    def orchestra(self, app: Any, fleet: Agents) -> Orchestra:
        """Give the engine; its agents are still to be started."""
        fleet.write_app(FLEET)
        return Orchestra(app)

    @pytest.fixture
    def begun(self, tmp_path: Path) -> Callable[[TaskHandle], int]:
        """Give a function that waits for the begin of a task, forgets of it, and returns the process id."""

        def wait(handle: TaskHandle) -> int:
            mark = tmp_path / f"{handle.id}.begun"
            wait_until(mark.exists, seconds=30, what=f"{handle.id} has begun")
            pid = int(mark.read_text())
            mark.unlink()
            return pid

        return wait

    def test_killed_with_its_child_and_its_agent(
        self, fleet: Agents, orchestra: Orchestra, begun: Callable[[TaskHandle], int], tmp_path: Path
    ) -> None:
        """A unique task keeps its lock through the deaths of its process and its agent, until it's done."""
        first_agent = fleet.start("-c", "1", name="a", pool="prefork", **QUICKLY)
        first = orchestra.submit("fleet.alone", {"number": 1})
        os.kill(begun(first), signal.SIGKILL)
        assert first == orchestra.submit("fleet.alone", {"number": 1})
        begun(first)
        os.killpg(first_agent.process.pid, signal.SIGKILL)
        assert first == orchestra.submit("fleet.alone", {"number": 1})
        fleet.start("-c", "1", name="b", pool="prefork", **QUICKLY)
        begun(first)
        assert first == orchestra.submit("fleet.alone", {"number": 1})

        (tmp_path / "go1").touch()

        assert 1 == first.get(timeout=30)
        second = orchestra.submit("fleet.alone", {"number": 1})
        assert (1, False) == (second.get(timeout=30), first == second)

    def test_killed_where_it_runs_once(
        self, fleet: Agents, orchestra: Orchestra, begun: Callable[[TaskHandle], int], tmp_path: Path
    ) -> None:
        """The lock of a task that runs at most once is free as soon as its killed agent is lost."""
        lost = fleet.start("-c", "1", name="a", pool="prefork", **QUICKLY)
        fleet.start("-c", "1", "-Q", "elsewhere", name="b", **QUICKLY)
        first = orchestra.submit("fleet.once", {"number": 1})
        begun(first)
        assert first == orchestra.submit("fleet.once", {"number": 1})
        os.killpg(lost.process.pid, signal.SIGKILL)

        wait_until(lambda: orchestra.submit("fleet.once", {"number": 1}) != first, what="the lock is free")

        second = orchestra.submit("fleet.once", {"number": 1})
        (tmp_path / "go1").touch()
        fleet.start("-c", "1", name="c", **QUICKLY)
        assert (1, TaskState.RUNNING) == (second.get(timeout=30), first.state)

    def test_cancelled_and_expired(
        self, fleet: Agents, orchestra: Orchestra, begun: Callable[[TaskHandle], int], tmp_path: Path
    ) -> None:
        """A running task that is cancelled, and one that expires, leave their lock to the next."""
        fleet.start("-c", "1", name="a", pool="prefork", **QUICKLY)
        first = orchestra.submit("fleet.alone", {"number": 1})
        begun(first)
        late = orchestra.submit("fleet.alone", {"number": 2}, expires=datetime.now(UTC) - timedelta(seconds=1))
        first.cancel()
        second = orchestra.submit("fleet.alone", {"number": 1})
        begun(second)
        second.cancel()
        for number in (1, 2):
            (tmp_path / f"go{number}").touch()

        assert first != second
        wait_until(lambda: late.state is not None and late.state.finished, what="the end of the late one")
        assert 2 == orchestra.submit("fleet.alone", {"number": 2}).get(timeout=30)
