"""Cancellation, live: a running task is ended where its pool can, and whoever waits for it, or a chord, hears of it."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import chain, chord
from celery.exceptions import ChordError, TaskRevokedError

from orchestra import Orchestra, TaskState
from orchestra.orchestra import TaskHandle
from orchestra.store import Keys, text_of
from orchestra.types import Cancelled
from tests.fleets import app_at
from tests.integration.agents import Agents, wait_until
from tests.processes import alive

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

# Each step of a task is a file of its own: ID.begun, which holds the process id, ID.tidied, ID.done.
FLEET = """
import os
import signal
import time
from pathlib import Path

from orchestra import Backoff, OrchestraCelery, RetryableError

app = OrchestraCelery("fleet")
FOLDER = Path(__file__).parent


def note(task, what):
    mark = FOLDER / f"{task.request.id}.{what}"
    mark.with_suffix(".new").write_text(str(os.getpid()))
    mark.with_suffix(".new").rename(mark)


@app.task(bind=True)
def nap(self, *_, seconds=60):
    note(self, "begun")
    try:
        time.sleep(seconds)
    finally:
        note(self, "tidied")
    note(self, "done")


@app.task(bind=True)
def stubborn(self):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    note(self, "begun")
    time.sleep(60)
    note(self, "done")


@app.task(bind=True)
def attentive(self):
    note(self, "begun")
    while not self.cancelled:
        time.sleep(0.05)
    note(self, "tidied")


@app.task(bind=True, max_attempts=3, backoff=Backoff(base_seconds=0.1, jitter="none"))
def failing(self):
    note(self, "begun")
    while not (FOLDER / "fail").exists():
        time.sleep(0.05)
    raise RetryableError("try me again")


@app.task(bind=True)
def quick(self, *given):
    note(self, "done")
    return list(given)
"""

KEYS = Keys("orchestra", "fleet")


@pytest.fixture
def app(redis_url: str) -> Iterator[Any]:
    """Give an app of the fleet that knows none of its tasks."""
    with app_at(redis_url, main="fleet") as app:
        yield app


@pytest.fixture
def orchestra(app: Any, fleet: Agents) -> Orchestra:
    """Give the engine over it; its agents are still to be started."""
    fleet.write_app(FLEET)
    return Orchestra(app)


@pytest.fixture
def marked(tmp_path: Path) -> Callable[..., int]:
    """Give a function that waits for a step of a task, and returns the process id of it."""

    def wait(handle: TaskHandle, what: str) -> int:
        mark = tmp_path / f"{handle.id}.{what}"
        wait_until(mark.exists, seconds=30, what=f"{handle.id} has {what}")
        return int(mark.read_text())

    return wait


def _settled(app: Any) -> None:
    """Wait until no message is in the broker any more, and no lease."""
    wait_until(
        lambda: not [key for key in app.store.command("KEYS", "*") if b"leases:" in key or b"\x06\x16" in key],
        what="every message is settled",
    )


class TestRunning:
    def test_is_ended_by_prefork(
        self, fleet: Agents, orchestra: Orchestra, marked: Callable[..., int], tmp_path: Path
    ) -> None:
        """A running task's process ends with its `finally` blocks, the waiter hears, and the agent goes on at once."""
        agent = fleet.start("-c", "1", name="a", pool="prefork")
        handle = orchestra.submit("fleet.nap", {})
        pid = marked(handle, "begun")

        assert Cancelled.RUNNING is handle.cancel()

        with pytest.raises(TaskRevokedError, match="cancelled"):
            handle.get(timeout=20)
        marked(handle, "tidied")
        wait_until(lambda: not alive(pid), what="the end of the process")
        assert [] == orchestra.submit("fleet.quick", {}).get(timeout=20)
        assert (TaskState.CANCELLED, "REVOKED") == (handle.state, handle.result.state)
        assert not (tmp_path / f"{handle.id}.done").exists()
        _settled(orchestra.app)
        assert agent.process.poll() is None

    def test_is_killed_where_it_does_not_listen(
        self, fleet: Agents, orchestra: Orchestra, marked: Callable[..., int]
    ) -> None:
        """A task that ignores SIGTERM is killed after five seconds."""
        fleet.start("-c", "1", name="a", pool="prefork")
        handle = orchestra.submit("fleet.stubborn", {})
        pid = marked(handle, "begun")

        assert Cancelled.RUNNING is handle.cancel()

        wait_until(lambda: not alive(pid), what="the end of the process")
        assert [] == orchestra.submit("fleet.quick", {}).get(timeout=20)
        assert TaskState.CANCELLED is handle.state

    @pytest.mark.parametrize("pool", ["solo", "threads"])
    def test_sees_it_elsewhere(
        self, fleet: Agents, orchestra: Orchestra, marked: Callable[..., int], tmp_path: Path, pool: str
    ) -> None:
        """On a pool that can't end a task, a task sees `cancelled`, and what was to follow it isn't sent."""
        fleet.start("-c", "1", name="a", pool=pool)
        follower = orchestra.app.signature("fleet.quick")
        first = orchestra.app.signature("fleet.attentive")
        last: Any = chain(first, follower).apply_async()
        handle = orchestra.handle(last.parent.id)
        marked(handle, "begun")

        assert Cancelled.RUNNING is handle.cancel()

        marked(handle, "tidied")
        assert [] == orchestra.submit("fleet.quick", {}).get(timeout=20)
        with pytest.raises(TaskRevokedError, match="cancelled"):
            last.get(timeout=20)
        assert not (tmp_path / f"{last.id}.done").exists()
        assert TaskState.CANCELLED is handle.state
        _settled(orchestra.app)

    def test_is_not_tried_again(
        self, fleet: Agents, orchestra: Orchestra, marked: Callable[..., int], tmp_path: Path
    ) -> None:
        """A task that fails after it was cancelled has no further attempt, and stays cancelled."""
        agent = fleet.start("-c", "1", name="a", pool="threads")
        handle = orchestra.submit("fleet.failing", {})
        marked(handle, "begun")
        handle.cancel()
        (tmp_path / "fail").touch()

        agent.wait_for("try me again")
        _settled(orchestra.app)

        assert (TaskState.CANCELLED, 1) == (handle.state, handle.record().attempt)  # type: ignore[union-attr]
        with pytest.raises(TaskRevokedError):
            handle.get(timeout=5)

    def test_is_not_begun_again(
        self, fleet: Agents, orchestra: Orchestra, marked: Callable[..., int], tmp_path: Path
    ) -> None:
        """When its agent is killed instead of hearing of it, the message comes back, and is dropped."""
        lost = fleet.start("-c", "1", name="a", ORCHESTRA_BEAT_SECONDS="0.2")
        handle = orchestra.submit("fleet.nap", {})
        marked(handle, "begun")
        lost.process.send_signal(signal.SIGSTOP)
        handle.cancel()
        lost.process.send_signal(signal.SIGKILL)
        (tmp_path / f"{handle.id}.begun").unlink()

        fleet.start("-c", "1", name="b", ORCHESTRA_BEAT_SECONDS="0.2")

        wait_until(lambda: not orchestra.app.store.command("KEYS", f"{KEYS.base}leases:*"), seconds=30)
        _settled(orchestra.app)
        assert not (tmp_path / f"{handle.id}.begun").exists()
        assert TaskState.CANCELLED is handle.state


class TestNotRunning:
    @pytest.mark.parametrize("pool", ["prefork", "solo", "threads"])
    def test_never_begins(self, fleet: Agents, orchestra: Orchestra, tmp_path: Path, pool: str) -> None:
        """Whether it waits, is delayed or leased, a cancelled task doesn't begin, and its message goes."""
        sent = [orchestra.app.send_task("fleet.quick", **options) for options in ({}, {"countdown": 5.0}, {})]
        handles = [orchestra.handle(result.id) for result in sent]
        assert [Cancelled.WAITING, Cancelled.DELAYED] == [handle.cancel() for handle in handles[:2]]
        fleet.start("-c", "1", name="a", pool=pool)

        assert [] == handles[2].get(timeout=20)
        wait_until(lambda: not orchestra.app.store.command("KEYS", f"{KEYS.base}delayed:*"), what="the delayed is due")
        _settled(orchestra.app)

        assert [False, False] == [(tmp_path / f"{handle.id}.done").exists() for handle in handles[:2]]
        assert {TaskState.CANCELLED} == {handle.state for handle in handles[:2]}

    def test_in_an_agents_hands(
        self, fleet: Agents, orchestra: Orchestra, marked: Callable[..., int], tmp_path: Path
    ) -> None:
        """A task that waits in an agent behind another one is told from one in the queue, and doesn't begin."""
        fleet.start("-c", "1", name="a", pool="prefork")
        for _ in range(40):  # so that the agent sees how short tasks are, and fetches ahead
            last = orchestra.submit("fleet.quick", {})
        last.get(timeout=30)
        orchestra.drain(["a"])
        first = orchestra.submit("fleet.nap", {"seconds": 10})
        second = orchestra.submit("fleet.quick", {})
        orchestra.resume(["a"])
        marked(first, "begun")
        wait_until(lambda: _leases(orchestra.app) == 2, what="both are leased")

        assert Cancelled.LEASED is second.cancel()

        first.cancel()
        _settled(orchestra.app)
        assert not (tmp_path / f"{second.id}.done").exists()


def _leases(app: Any) -> int:
    keys = [text_of(key) for key in app.store.command("KEYS", f"{KEYS.base}leases:*")]
    return sum(int(app.store.command("HLEN", key)) for key in keys)


class TestChords:
    @pytest.mark.filterwarnings("ignore:Call to deprecated setex")  # Celery's own, for a group's result
    @pytest.mark.parametrize("when", ["waiting", "running"])
    def test_body_fails(
        self, fleet: Agents, orchestra: Orchestra, marked: Callable[..., int], tmp_path: Path, when: str
    ) -> None:
        """A chord with a cancelled part comes to its end: its body fails, and doesn't run."""
        nap, quick = orchestra.app.signature("fleet.nap"), orchestra.app.signature("fleet.quick")
        if when == "running":
            fleet.start("-c", "2", name="a", pool="prefork")
        sent: Any = chord([nap, quick], quick.clone()).apply_async()
        part, body = orchestra.handle(sent.parent.results[0].id), orchestra.handle(sent.id)
        if when == "running":
            marked(part, "begun")

        assert {"waiting": Cancelled.WAITING, "running": Cancelled.RUNNING}[when] is part.cancel()
        if when == "waiting":
            fleet.start("-c", "2", name="a", pool="prefork")

        with pytest.raises(ChordError, match="cancelled"):
            body.get(timeout=30)
        assert not (tmp_path / f"{body.id}.done").exists()
        _settled(orchestra.app)
