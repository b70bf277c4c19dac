"""Explanations, live: whatever is done to agents and to Redis, the first cause is the one to act on."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import chain, chord

from orchestra import Orchestra
from orchestra.config import load_settings
from orchestra.explanations import CauseKind, Explanation
from orchestra.types import TaskState
from tests.fleets import app_at
from tests.integration.agents import AgentProcess, Agents, wait_until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

QUICK = {"ORCHESTRA_BEAT_SECONDS": "0.2", "ORCHESTRA_LOST_AFTER_BEATS": "25"}  # lost after five seconds

# A held task says that it began, and ends when the test lets it.
FLEET = """
import os
import time
from pathlib import Path

from orchestra import Backoff, OrchestraCelery, PermanentError, RetryableError

app = OrchestraCelery("fleet")
HERE = Path(__file__).parent


@app.task
def add(*numbers):
    return len(numbers)


@app.task
def fail():
    raise PermanentError("the printer is on fire")


@app.task(max_attempts=2, backoff=Backoff(base_seconds=600, max_seconds=600, jitter="none"))
def flaky():
    raise RetryableError("the printer is warming up")


@app.task(rate_limit="1/h")
def seldom():
    return 1


def hold(name):
    (HERE / f"{name}.began").touch()
    while not (HERE / f"{name}.may-end").exists():
        time.sleep(0.02)


@app.task
def held(name):
    hold(name)


@app.task(acks_late=False)
def held_once(name):
    hold(name)
"""

# Agents of the same fleet whose code is another.
OTHERS = """
import time
from pathlib import Path

from orchestra import OrchestraCelery

app = OrchestraCelery("fleet")
HERE = Path(__file__).parent


@app.task
def other(name):
    (HERE / f"{name}.began").touch()
    while not (HERE / f"{name}.may-end").exists():
        time.sleep(0.02)
"""


class Asked:
    """A fleet that is acted on, and asked."""

    def __init__(self, folder: Path, agents: Agents, app: Any) -> None:
        self.folder = folder
        self.agents = agents
        self.app = app
        self.engine = Orchestra(app)

    def start(self, name: str, *options: str, **more: Any) -> AgentProcess:
        """Start an agent of one process, and wait until it takes tasks."""
        agent = self.agents.start("-c", "1", *options, name=name, **{**QUICK, **more})
        agent.wait_for(" ready.")
        return agent

    def send(self, task: str, *args: Any, **options: Any) -> str:
        """Send a task; return its id."""
        sent: str = self.app.send_task(f"fleet.{task}", args, **options).id
        return sent

    def hold(self, name: str, task: str = "fleet.held", **options: Any) -> str:
        """Have a task run that goes on until it may end, and the registry know of that; return its id."""
        sent: str = self.app.send_task(task, (name,), **options).id
        wait_until((self.folder / f"{name}.began").exists, what=f"the begin of {name}")
        running = self.engine.handle(sent).record()
        assert running is not None
        wait_until(lambda: any(one.running for one in self.engine.agents() if one.name == running.agent))
        return sent

    def let_end(self, name: str) -> None:
        """Let a held task end."""
        (self.folder / f"{name}.may-end").touch()

    def ended(self, task_id: str) -> None:
        """Wait until a task has come to its end."""
        wait_until(lambda: (state := self.engine.handle(task_id).state) is not None and state.finished)

    def is_lost(self, name: str) -> None:
        """Wait until an agent counts as lost."""
        wait_until(lambda: any(one.name == f"{name}@test" and not one.alive for one in self.engine.agents()))

    def why(self, about: str, kind: CauseKind) -> Explanation:
        """Ask, require the first cause, and return the explanation."""
        found = self.engine.explain(about)
        assert kind is found.causes[0].kind, str(found)
        return found


@pytest.fixture
def fleet(tmp_path: Path, redis_url: str, fleet: Agents) -> Iterator[Asked]:
    """Give a fleet without agents, and an app that knows none of its tasks."""
    fleet.write_app(FLEET)
    fleet.write_app(OTHERS, module="others")
    with app_at(redis_url, main="fleet", settings=load_settings(beat_seconds=0.2, lost_after_beats=25)) as app:
        yield Asked(tmp_path, fleet, app)


def test_where_no_agent_is(fleet: Asked) -> None:
    """Without any agent the reasons are told apart all the same."""
    fleet.why("6f7a1b9e-0b0c-4d57-8a6e-0f7e34c2d111", CauseKind.UNKNOWN)
    waiting = fleet.send("add", 1)
    later = fleet.send("add", 2, countdown=600)
    late = fleet.send("add", 3, expires=0.01)
    cancelled = fleet.engine.handle(fleet.send("add", 4))
    assert cancelled.cancel()

    found = fleet.why(waiting, CauseKind.NO_AGENT_ALIVE)
    assert (TaskState.SUBMITTED, "celery", "general", 1, 3) == (
        found.state,
        found.queue,
        found.requires,
        found.position,
        found.depth,
    )
    delayed = fleet.why(later, CauseKind.DELAYED)
    assert delayed.wait is not None
    assert 500 < delayed.wait.seconds < 600
    fleet.why(cancelled.id, CauseKind.CANCELLED)
    wait_until(lambda: fleet.engine.explain(late).causes[0].kind is not CauseKind.NO_AGENT_ALIVE)
    fleet.why(late, CauseKind.EXPIRED)
    fleet.app.control.purge()
    fleet.why(waiting, CauseKind.MESSAGE_GONE)
    fleet.why(later, CauseKind.MESSAGE_GONE)


def test_what_became_of_a_task(fleet: Asked) -> None:
    """What has ended, runs, waits for its next attempt or for a task before it."""
    fleet.start("one")
    done, failed, flaky = fleet.send("add"), fleet.send("fail"), fleet.send("flaky")
    expired = fleet.send("add", expires=-10)
    chained: Any = chain(
        *(fleet.app.signature(f"fleet.{name}", immutable=True) for name in ("fail", "add"))
    ).apply_async()
    for task_id in (done, failed, expired, chained.parent.id):
        fleet.ended(task_id)
    wait_until(lambda: fleet.engine.handle(flaky).state is TaskState.RETRYING)
    seldom = [fleet.send("seldom") for _ in range(2)]
    fleet.ended(seldom[0])
    wait_until(lambda: fleet.app.store.command("ZCOUNT", fleet.app.store.keys.leased("celery"), 1e12, 1e12))

    fleet.why(done, CauseKind.SUCCEEDED)
    assert "PermanentError: the printer is on fire" == fleet.why(failed, CauseKind.FAILED).causes[0].error
    fleet.why(expired, CauseKind.EXPIRED)
    retry = fleet.why(flaky, CauseKind.WAITS_FOR_RETRY)
    assert "RetryableError: the printer is warming up" == retry.causes[0].error
    assert retry.wait is not None
    assert 500 < retry.wait.seconds <= 600
    assert (chained.parent.id,) == fleet.why(chained.id, CauseKind.PARENT_ENDED).causes[0].tasks
    assert ("one@test",) == fleet.why(seldom[1], CauseKind.RATE_LIMITED).causes[0].agents


def test_what_waits_for_others(fleet: Asked) -> None:
    """Behind a task that runs: the next in the queue, the rest of a chain, the body of a chord."""
    fleet.start("one")
    add = fleet.app.signature("fleet.add", immutable=True)
    held = fleet.app.signature("fleet.held", ("member",), immutable=True)
    body: Any = chord([add.clone(), held], add.clone()).apply_async()
    wait_until((fleet.folder / "member.began").exists)
    first, member = (one.id for one in body.parent.results)
    fleet.ended(first)
    last: Any = chain(add.clone(), add.clone(), add.clone()).apply_async()
    wait_until(lambda: any(one.running for one in fleet.engine.agents()))

    assert ("one@test",) == fleet.why(member, CauseKind.RUNNING).causes[0].agents
    chorded = fleet.why(body.id, CauseKind.WAITS_FOR_CHORD)
    assert (member,) == chorded.causes[0].tasks
    assert "1 of 2 tasks" in chorded.causes[0].text
    assert (last.parent.id, last.parent.parent.id) == fleet.why(last.id, CauseKind.WAITS_FOR_PARENT).causes[0].tasks
    busy = fleet.why(last.parent.parent.id, CauseKind.ALL_BUSY)
    assert (1, 1) == (busy.position, busy.depth)
    assert busy.wait is not None
    assert "1st of 1, 1 agent with 1 process" in busy.wait.basis
    fleet.why("fleet.add", CauseKind.ALL_BUSY)
    fleet.let_end("member")
    fleet.ended(body.id)
    fleet.ended(last.id)
    fleet.why(last.id, CauseKind.SUCCEEDED)
    wait_until(lambda: not any(one.running for one in fleet.engine.agents()))
    fleet.why("fleet.add", CauseKind.ABOUT_TO_START)


def test_who_could_run_it(fleet: Asked) -> None:
    """Where agents live, and none of them takes the task."""
    fleet.start("other", "--capabilities", "nlp,mem_gb=24", module="others")
    fleet.start("chosen", "-Q", "elsewhere")
    fleet.start("gpu", "--capabilities", "gpu")
    fleet.start("killed", "--capabilities", "tpu").process.send_signal(signal.SIGKILL)
    fleet.start("stopped", "--capabilities", "fpga").stop()
    handed_on = fleet.send("add", requires="nlp")
    sent = {name: fleet.send("add", requires=name) for name in ("gpu,mem_gb>=40", "tpu", "fpga")}
    foreign = fleet.send("add", queue="reports")
    general = fleet.send("add")
    wait_until(lambda: any(one.name.endswith("@fleet.add") and one.depth for one in fleet.engine.queues()))
    fleet.engine.drain(["gpu"], timeout_seconds=20)
    drained = fleet.send("add", requires="gpu")
    fleet.hold("busy", "others.other", requires="nlp")
    unknown = fleet.send("add", requires="nlp")
    fleet.is_lost("killed")

    nobody = fleet.why(sent["gpu,mem_gb>=40"], CauseKind.NO_AGENT_SATISFIES)
    lacks = {agent.name: agent.lacks for agent in nobody.agents}
    assert {"other@test": ("gpu", "mem_gb>=40"), "gpu@test": ("mem_gb>=40",)} == {
        one: lacks[one] for one in ("other@test", "gpu@test")
    }
    assert ("killed@test",) == fleet.why(sent["tpu"], CauseKind.CAPABLE_AGENT_LOST).causes[0].agents
    assert ("stopped@test",) == fleet.why(sent["fpga"], CauseKind.CAPABLE_AGENT_STOPPED).causes[0].agents
    fleet.why(foreign, CauseKind.FOREIGN_QUEUE)
    assert ("chosen@test",) == fleet.why(general, CauseKind.NOT_SERVED).causes[0].agents
    assert ("gpu@test",) == fleet.why(drained, CauseKind.ALL_DRAINING).causes[0].agents
    assert ("other@test",) == fleet.why(handed_on, CauseKind.HANDED_ON).causes[0].agents
    assert ("other@test",) == fleet.why(unknown, CauseKind.TASK_NOT_KNOWN).causes[0].agents
    fleet.let_end("busy")


def test_an_agent_that_hangs_and_is_lost(fleet: Asked) -> None:
    """What an agent has fetched and not begun, what waits for one that hangs, and what becomes of it when it's lost."""
    idle, ahead = fleet.start("idle"), fleet.start("ahead", "--capabilities", "nlp")
    for sent in [fleet.send("add", requires="nlp") for _ in range(40)]:  # its tasks are short, so it fetches many ahead
        fleet.ended(sent)
    fleet.engine.drain(["ahead"], timeout_seconds=20)
    held = fleet.app.send_task("fleet.held", ("a",), requires="nlp").id
    fetched = [fleet.send("add", requires="nlp") for _ in range(3)]
    fleet.engine.resume(["ahead"])
    leased = fleet.app.store.keys.leased("fleet:nlp")
    wait_until(lambda: fleet.app.store.command("ZCARD", leased) == 1 + len(fetched))
    wait_until((fleet.folder / "a.began").exists)

    fleet.why(held, CauseKind.RUNNING)
    assert ("ahead@test",) == fleet.why(fetched[-1], CauseKind.FETCHED).causes[0].agents
    for agent in (idle, ahead):
        os.killpg(agent.process.pid, signal.SIGSTOP)
    wait_until(lambda: not fleet.app.store.command("INFO", "clients")["blocked_clients"])  # it waits for nothing more
    waiting = fleet.send("add")
    assert ("idle@test",) == fleet.why(waiting, CauseKind.ABOUT_TO_START).causes[0].agents

    fleet.is_lost("idle")
    fleet.is_lost("ahead")
    assert ("ahead@test",) == fleet.why(fetched[-1], CauseKind.FETCHED_BY_LOST_AGENT).causes[0].agents
    assert ("ahead@test",) == fleet.why(held, CauseKind.RUNNING_ON_LOST_AGENT).causes[0].agents
    nobody = fleet.why(waiting, CauseKind.NO_AGENT_ALIVE)
    assert [CauseKind.NO_AGENT_ALIVE, CauseKind.CAPABLE_AGENT_LOST] == [cause.kind for cause in nobody.causes]
    for agent in (idle, ahead):
        os.killpg(agent.process.pid, signal.SIGKILL)


def test_an_agent_that_is_killed_at_work(fleet: Asked) -> None:
    """A task that ran on it is told of, comes back with the next agent, and is lost if it runs at most once."""
    killed, twin = fleet.start("killed"), fleet.start("twin", "--capabilities", "once")
    held = fleet.hold("a")
    once = fleet.hold("b", "fleet.held_once", requires="once")
    assert ("twin@test",) == fleet.why(once, CauseKind.RUNNING).causes[0].agents
    for agent in (killed, twin):
        os.killpg(agent.process.pid, signal.SIGKILL)
    fleet.is_lost("killed")
    fleet.is_lost("twin")

    assert ("killed@test",) == fleet.why(held, CauseKind.RUNNING_ON_LOST_AGENT).causes[0].agents
    assert ("twin@test",) == fleet.why(once, CauseKind.RUNNING_ON_LOST_AGENT).causes[0].agents
    fleet.start("heir", "--capabilities", "once")
    wait_until(lambda: any(queue.depth for queue in fleet.engine.queues() if queue.name == "celery"))
    back = fleet.why(held, CauseKind.CAPABLE_AGENT_LOST)
    assert CauseKind.RUNNING_ON_LOST_AGENT is back.causes[-1].kind
    fleet.why(once, CauseKind.RUNNING_ON_LOST_AGENT)


def test_dead_letters(fleet: Asked) -> None:
    """A task that no agent has known for too long is among the dead letters, which is told before its failure."""
    fleet.start("other", "--capabilities", "nlp", module="others", ORCHESTRA_UNREGISTERED_AFTER_SECONDS="1")
    dead = fleet.send("add", requires="nlp")

    wait_until(lambda: fleet.engine.handle(dead).state is TaskState.FAILED)

    causes = fleet.why(dead, CauseKind.DEAD_LETTERED).causes
    assert ["unregistered", CauseKind.FAILED] == [causes[0].error, causes[1].kind]
