"""Timeouts, live: a task that takes too long is stopped as its pool can, and settled by its policy."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from billiard.exceptions import TimeLimitExceeded
from celery.exceptions import SoftTimeLimitExceeded

from orchestra import Orchestra, TaskState
from orchestra.orchestra import TaskHandle
from tests.fleets import app_at
from tests.integration.agents import AgentProcess, Agents, wait_until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

# Each attempt is a line of a file: id, attempt, process, begin, and at its end a line more.
FLEET = """
import os
import time
from pathlib import Path

from celery.exceptions import SoftTimeLimitExceeded

from orchestra import Backoff, OrchestraCelery

app = OrchestraCelery("fleet")
RAN = Path(__file__).with_name("ran")
QUICKLY = Backoff(base_seconds=0.1, jitter="none")


def note(task, what):
    with RAN.open("a", encoding="utf-8") as ran:
        ran.write(f"{task.request.id} {task.request.retries + 1} {what} {time.monotonic()}\\n")


def nap(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)


@app.task(bind=True, timeout=1, max_attempts=2, backoff=QUICKLY)
def slow(self, cured=0):
    note(self, "begun")
    nap(0 if cured and self.request.retries >= cured else 60)
    return self.request.retries + 1


@app.task(bind=True, max_attempts=2, backoff=QUICKLY, soft_time_limit=1, time_limit=2)
def deaf(self, cured=0):
    note(self, "begun")
    while not cured or self.request.retries < cured:
        try:
            nap(60)
        except SoftTimeLimitExceeded:
            note(self, "soft")
    return self.request.retries + 1


@app.task(bind=True, soft_time_limit=1, time_limit=2)
def stuck(self):
    note(self, "begun")
    try:
        nap(60)
    except SoftTimeLimitExceeded:
        nap(60)


@app.task(bind=True, acks_late=False, max_attempts=2, backoff=QUICKLY, time_limit=1)
def once(self):
    note(self, "begun")
    nap(60)


@app.task(bind=True, max_attempts=3, backoff=QUICKLY)
def patient(self):
    note(self, "begun")
    nap(60)


@app.task
def quick():
    return "quick"
"""


@pytest.fixture
def orchestra(redis_url: str, fleet: Agents) -> Iterator[Orchestra]:
    """Give the engine; its agents are still to be started."""
    fleet.write_app(FLEET)
    with app_at(redis_url, main="fleet") as app:
        yield Orchestra(app)


def _begins(folder: Path, handle: TaskHandle) -> list[int]:
    """Return the attempts of a task that have begun, in their order."""
    lines = [line.split() for line in (folder / "ran").read_text().splitlines()]
    return [int(attempt) for task_id, attempt, what, _ in lines if (task_id, what) == (handle.id, "begun")]


def _settled(app: Any) -> None:
    """Wait until no message is in the broker any more, and no lease."""
    wait_until(
        lambda: not [key for key in app.store.command("KEYS", "*") if b"leases:" in key or b"\x06\x16" in key],
        what="every message is settled",
    )


def _states(handle: TaskHandle) -> list[str]:
    return [entry.state.value for entry in handle.history()]


class TestPrefork:
    @pytest.fixture
    def agent(self, fleet: Agents, orchestra: Orchestra) -> AgentProcess:
        """Give an agent whose tasks have processes of their own."""
        return fleet.start("-c", "2", name="a", pool="prefork")

    def test_soft(self, agent: AgentProcess, orchestra: Orchestra, tmp_path: Path) -> None:
        """A task that the soft limit interrupts is tried again by its policy, and fails when no attempt is left."""
        cured, lost = orchestra.submit("fleet.slow", {"cured": 1}), orchestra.submit("fleet.slow", {})

        assert 2 == cured.get(timeout=30)
        with pytest.raises(SoftTimeLimitExceeded):
            lost.get(timeout=30)
        assert ["submitted", "running", "retrying", "running", "failed"] == _states(lost)
        assert [[1, 2], [1, 2]] == [_begins(tmp_path, handle) for handle in (cured, lost)]
        assert not agent.says("Hard time limit")
        _settled(orchestra.app)

    def test_hard(self, agent: AgentProcess, orchestra: Orchestra, tmp_path: Path) -> None:
        """One that doesn't listen is killed, and settled the same way, with its record and its waiters told."""
        cured, lost = orchestra.submit("fleet.deaf", {"cured": 1}), orchestra.submit("fleet.deaf", {})

        assert 2 == cured.get(timeout=40)
        with pytest.raises(TimeLimitExceeded):
            lost.get(timeout=40)
        assert ["submitted", "running", "retrying", "running", "succeeded"] == _states(cured)
        assert ["submitted", "running", "retrying", "running", "failed"] == _states(lost)
        assert "TimeLimitExceeded" in str(lost.history()[2].note)
        assert [[1, 2], [1, 2]] == [_begins(tmp_path, handle) for handle in (cured, lost)]
        assert "quick" == orchestra.submit("fleet.quick", {}).get(timeout=20)
        _settled(orchestra.app)
        assert agent.process.poll() is None

    def test_without_a_policy(self, agent: AgentProcess, orchestra: Orchestra, tmp_path: Path) -> None:
        """A task that declares no attempts fails with the first, once, and its errback is called once."""
        result = orchestra.app.send_task(
            "fleet.stuck", link_error=orchestra.app.signature("fleet.quick", immutable=True)
        )
        handle = orchestra.handle(result.id)

        with pytest.raises(TimeLimitExceeded):
            handle.get(timeout=30)

        _settled(orchestra.app)
        assert (["submitted", "running", "failed"], [1]) == (_states(handle), _begins(tmp_path, handle))
        wait_until(lambda: agent.says("'quick'"), what="the errback")
        assert 1 == agent.log.read_text().count("'quick'")

    def test_at_most_once(self, agent: AgentProcess, orchestra: Orchestra, tmp_path: Path) -> None:
        """A task that acknowledges early is settled by its policy as well: each attempt is a message of its own."""
        handle = orchestra.submit("fleet.once", {})

        with pytest.raises(TimeLimitExceeded):
            handle.get(timeout=30)
        assert [1, 2] == _begins(tmp_path, handle)
        _settled(orchestra.app)

    def test_for_one_call(self, agent: AgentProcess, orchestra: Orchestra, tmp_path: Path) -> None:
        """A call's own timeout holds, for each of its attempts."""
        handle = orchestra.submit("fleet.patient", {}, timeout=0.5)

        with pytest.raises(SoftTimeLimitExceeded):
            handle.get(timeout=40)
        assert [1, 2, 3] == _begins(tmp_path, handle)
        _settled(orchestra.app)

    def test_says_nothing(self, agent: AgentProcess) -> None:
        """Where timeouts hold there's nothing to warn of."""
        assert not agent.says("timeouts don't hold")


@pytest.mark.parametrize("pool", ["solo", "threads"])
class TestPoolsThatCannotKill:
    def test_soft_and_hard(self, fleet: Agents, orchestra: Orchestra, tmp_path: Path, pool: str) -> None:
        """Both limits are raised inside the task's Python code, and settled by the policy."""
        fleet.start("-c", "2", name="a", pool=pool)
        handles = [
            orchestra.submit("fleet.slow", {"cured": 1}),
            orchestra.submit("fleet.slow", {}),
            orchestra.submit("fleet.deaf", {}),
            orchestra.submit("fleet.patient", {}, timeout=0.5),
        ]

        assert 2 == handles[0].get(timeout=40)
        for handle, error in zip(
            handles[1:], (SoftTimeLimitExceeded, TimeLimitExceeded, SoftTimeLimitExceeded), strict=True
        ):
            with pytest.raises(error):
                handle.get(timeout=40)
        assert {TaskState.FAILED} == {handle.state for handle in handles[1:]}
        assert [[1, 2], [1, 2], [1, 2], [1, 2, 3]] == [_begins(tmp_path, handle) for handle in handles]
        _settled(orchestra.app)

    def test_warns(self, fleet: Agents, orchestra: Orchestra, pool: str) -> None:
        """The agent says at its start, once, for which tasks a timeout doesn't end in a killed process."""
        agent = fleet.start("-c", "1", name="a", pool=pool)

        assert 1 == agent.log.read_text().count("timeouts don't hold by force")
        assert agent.says("fleet.deaf, fleet.once, fleet.slow, fleet.stuck")
