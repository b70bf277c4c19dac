"""Unroutable tasks, live: no false alarm while a fleet restarts, and what waited in vain is told of."""

import logging
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import Any

import pytest

from orchestra import Orchestra, OrchestraCelery, TaskState
from orchestra.exceptions import NoCapableAgentError
from orchestra.orchestra import TaskHandle
from tests.integration.agents import AgentProcess, Agents, wait_until

log = logging.getLogger(__name__)  # what was measured

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

APP = """
import os
from orchestra import OrchestraCelery

app = OrchestraCelery("fleet")

@app.task(name="fleet.where", requires={"gpu"})
def where() -> str:
    return os.environ["SELF"]

@app.task(name="fleet.plain", requires={"cpu"})
def plain() -> str:
    return os.environ["SELF"]
"""
NAMES = ("one", "two", "three")
BEATS = {"ORCHESTRA_BEAT_SECONDS": "0.3"}  # a sweep every three seconds


@pytest.fixture
def started(fleet: Agents) -> Callable[..., AgentProcess]:
    """Give a function that starts an agent."""
    fleet.write_app(APP)

    def start(name: str, capabilities: str = "gpu,cpu", *, wait: bool = False) -> AgentProcess:
        return fleet.start("--capabilities", capabilities, name=name, wait=wait, SELF=name, **BEATS)

    return start


class _Submitter:
    """Submits one task after the other, and keeps what comes of it."""

    def __init__(self, sender: OrchestraCelery) -> None:
        self._orchestra = Orchestra(sender)
        self._stop = Event()
        self.handles: list[TaskHandle] = []
        self.errors: list[Exception] = []

    def run(self) -> None:
        while not self._stop.wait(0.02):  # the pace
            try:
                self.handles.append(self._orchestra.submit("fleet.where", {}, on_unroutable="raise"))
            except Exception as error:  # noqa: BLE001  # each of them is a finding
                self.errors.append(error)

    @contextmanager
    def working(self) -> Iterator[None]:
        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(self.run)
            try:
                yield
            finally:
                self._stop.set()
            done.result(timeout=30)


@pytest.mark.parametrize("how", ["one by one", "all at once", "all killed at once"])
def test_a_restart_of_the_whole_fleet_is_no_alarm(
    started: Callable[..., AgentProcess], sender: OrchestraCelery, how: str
) -> None:
    """Whoever submits with `raise` while every agent is restarted gets no error, and every task runs."""
    agents = {name: started(name) for name in NAMES}
    for agent in agents.values():
        agent.wait_for("agent joined", seconds=60)
    submitter = _Submitter(sender)

    with submitter.working():
        if how == "one by one":
            for name, agent in agents.items():
                agent.stop()
                started(name).wait_for("agent joined", seconds=60)
        else:
            for agent in agents.values():
                agent.process.send_signal(signal.SIGKILL if "killed" in how else signal.SIGTERM)
            for agent in agents.values():
                agent.process.wait(30)
            sent = len(submitter.handles) + len(submitter.errors)
            wait_until(
                lambda: len(submitter.handles) + len(submitter.errors) > sent + 20, what="calls while none is up"
            )
            again = [started(name) for name in NAMES]
            for agent in again:
                agent.wait_for("agent joined", seconds=60)

    log.info("%s: %d submissions, %d refused", how, len(submitter.handles), len(submitter.errors))
    assert [] == submitter.errors
    assert len(submitter.handles) > 20
    wait_until(lambda: all(handle.result.ready() for handle in submitter.handles), seconds=60, what="all results")
    assert set(NAMES) >= {handle.get(timeout=5) for handle in submitter.handles}


def test_what_waited_in_vain_is_told_of(
    started: Callable[..., AgentProcess], sender: OrchestraCelery, redis_url: str
) -> None:
    """An agent moves exactly the messages whose time is up to the dead letters, and their waiters get the error."""
    agent = started("cpu", "cpu", wait=True)
    orchestra = Orchestra(sender)
    waits = orchestra.submit("fleet.where", {})
    long = orchestra.submit("fleet.where", {}, on_unroutable="dead_letter_after:600")
    short = orchestra.submit("fleet.where", {}, on_unroutable="dead_letter_after:1")
    served = orchestra.submit("fleet.plain", {}, on_unroutable="dead_letter_after:1")

    with pytest.raises(NoCapableAgentError, match=r"after 1 s .* satisfies gpu; 1 agent is known: cpu@test lacks gpu"):
        short.get(timeout=60)

    assert "cpu" == served.get(timeout=20)
    assert [TaskState.SUBMITTED, TaskState.SUBMITTED, TaskState.FAILED] == [one.state for one in (waits, long, short)]
    (letter,) = orchestra.dead_letters.list().letters
    assert ("unroutable", "fleet:gpu", short.id) == (letter.reason, letter.queue, letter.task_id)
    agent.wait_for("task dead")

    started("gpu", "gpu", wait=True)
    assert ["gpu", "gpu"] == [one.get(timeout=30) for one in (waits, long)]


def test_a_fallback_and_the_way_back(started: Callable[..., AgentProcess], sender: OrchestraCelery) -> None:
    """While no agent can do the first, the fallback's agents run the task; with one that can, it does."""
    started("cpu", "cpu", wait=True)
    orchestra = Orchestra(sender)

    def ran_by() -> Any:
        return orchestra.submit("fleet.where", {}, on_unroutable="fallback:cpu").get(timeout=30)

    assert "cpu" == ran_by()

    started("gpu", "gpu", wait=True)

    wait_until(lambda: ran_by() == "gpu", what="the way back")
