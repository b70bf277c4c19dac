"""Effects, live: a task that is run twice, since its agent was killed or frozen, has its effect once."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestra import Orchestra, TaskState
from tests.fleets import app_at
from tests.integration.agents import AgentProcess, Agents, wait_until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

QUICKLY: Any = {"ORCHESTRA_BEAT_SECONDS": "0.4"}  # a silent agent is lost after two seconds

# Each step is a file: <agent>.claimed, <agent>.committed; and each waits for a word: <agent>.commit, <agent>.end.
FLEET = """
import os
import time
from pathlib import Path

from orchestra import OrchestraCelery

app = OrchestraCelery("fleet")
FOLDER = Path(__file__).parent


def step(what, word):
    (FOLDER / f"{os.environ['RUNS_AS']}.{what}").touch()
    while not (FOLDER / f"{os.environ['RUNS_AS']}.{word}").exists():
        time.sleep(0.02)


@app.task(bind=True)
def pay(self):
    def effect(pipe):
        step("claimed", "commit")
        pipe.incr("balance")
        return os.environ["RUNS_AS"]

    by = self.once("pay", effect)
    step("committed", "end")
    return by
"""


class Payments:
    """A fleet whose agents pay step by step."""

    def __init__(self, folder: Path, fleet: Agents, app: Any) -> None:
        self._folder, self._fleet = folder, fleet
        self.app, self.agents = app, dict[str, AgentProcess]()
        fleet.write_app(FLEET)

    def start(self, name: str) -> None:
        """Start an agent."""
        self.agents[name] = self._fleet.start("-c", "1", name=name, pool="prefork", RUNS_AS=name, **QUICKLY)

    def strike(self, name: str, request: signal.Signals) -> None:
        """Send a signal to an agent and all its processes."""
        os.killpg(self.agents[name].process.pid, request)

    def let(self, name: str, *words: str) -> None:
        """Let an agent's task go on."""
        for word in words:
            (self._folder / f"{name}.{word}").touch()

    def reached(self, name: str, what: str) -> None:
        """Wait until an agent's task has come to a step."""
        wait_until((self._folder / f"{name}.{what}").exists, seconds=30, what=f"{name} has {what}")

    @property
    def balance(self) -> int:
        """How often it was paid."""
        return int(self.app.store.command("GET", "balance") or 0)


@pytest.fixture
def payments(tmp_path: Path, redis_url: str, fleet: Agents) -> Iterator[Payments]:
    """Give such a fleet, with its first agent."""
    with app_at(redis_url, main="fleet") as app:
        payments = Payments(tmp_path, fleet, app)
        payments.start("a")
        yield payments


@pytest.mark.parametrize("when", ["claimed", "committed"])
def test_killed(payments: Payments, when: str) -> None:
    """A run that is killed before its commit leaves the effect to the next; after it, its value."""
    handle = Orchestra(payments.app).submit("fleet.pay", {})
    payments.reached("a", "claimed")
    if when == "committed":
        payments.let("a", "commit")
        payments.reached("a", "committed")
    payments.strike("a", signal.SIGKILL)
    payments.let("b", "commit", "end")

    payments.start("b")

    assert ("b" if when == "claimed" else "a") == handle.get(timeout=40)
    assert 1 == payments.balance


def _overtaken(payments: Payments) -> Any:  # TaskHandle
    """Have an agent freeze with a claim, and another one claim after it."""
    handle = Orchestra(payments.app).submit("fleet.pay", {})
    payments.reached("a", "claimed")
    payments.strike("a", signal.SIGSTOP)
    payments.start("b")
    payments.reached("b", "claimed")
    return handle


def test_thawed_before_the_other_commits(payments: Payments) -> None:
    """A frozen run that thaws while a later one is about it commits nothing, and ends nothing."""
    handle = _overtaken(payments)
    payments.let("a", "commit", "end")
    payments.strike("a", signal.SIGCONT)
    payments.agents["a"].wait_for("later run of this task")
    assert (0, TaskState.RUNNING) == (payments.balance, handle.state)

    payments.let("b", "commit", "end")

    assert ("b", 1) == (handle.get(timeout=40), payments.balance)


def test_thawed_after_the_other_committed(payments: Payments) -> None:
    """A frozen run that thaws when a later one has done it finds its value, and repeats nothing."""
    handle = _overtaken(payments)
    payments.let("b", "commit", "end")
    assert "b" == handle.get(timeout=40)

    payments.let("a", "commit", "end")
    payments.strike("a", signal.SIGCONT)

    payments.reached("a", "committed")
    wait_until(lambda: payments.agents["a"].says("succeeded"), what="the end of the thawed run")
    assert ("b", 1) == (handle.get(timeout=5), payments.balance)
