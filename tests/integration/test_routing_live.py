"""Routing, live: each task runs on an agent that satisfies it and knows it, or waits, and nowhere else."""

import random
from collections import Counter
from itertools import chain
from pathlib import Path

import pytest
from celery.exceptions import NotRegistered

from orchestra import Orchestra, OrchestraCelery, TaskState
from orchestra.capabilities import CapabilitySet, Requirement
from orchestra.embedded import EmbeddedServer
from tests.integration.agents import Agents, wait_until

pytestmark = pytest.mark.integration

PROMPT_SECONDS = 8  # the promise is two; but other tests may run beside these

# Each agent imports only the tasks that its environment names, so agents differ in what they know, too.
APP = """
import os
from orchestra import OrchestraCelery

app = OrchestraCelery("fleet")
for name in os.environ.get("KNOWS", "t0").split(","):
    @app.task(name=name, requires={"general"})
    def where(number: int) -> int:
        return os.getpid()
"""

CAPABILITIES = (
    "gpu",
    "nlp",
    "lang=fr",
    "lang=en",
    "mem_gb=8",
    "mem_gb=64",
    "cuda=v11.8",
    "cuda=v12.4",
    "spot",
    "general",
)
TERMS = ("gpu", "nlp", "lang=fr", "lang=en", "mem_gb>=16", "mem_gb<16", "cuda>=v12", "!spot", "spot", "general")
TASKS = tuple(f"t{number}" for number in range(5))


def test_every_task_runs_where_it_may_and_nowhere_else(fleet: Agents, sender: OrchestraCelery) -> None:
    """Twelve agents with random capabilities and tasks, 200 random requirements: the process id tells who ran what."""
    dice = random.Random(20261122)
    fleet.write_app(APP)
    able = {}
    for number in range(12):
        capabilities = ",".join(sorted(dice.sample(CAPABILITIES, dice.randint(1, 5))))
        knows = sorted(dice.sample(TASKS, dice.randint(1, 4)))
        name = f"agent{number}"
        fleet.start("--capabilities", capabilities, name=name, wait=False, KNOWS=",".join(knows))
        able[f"{name}@test"] = (CapabilitySet.parse(capabilities), frozenset(knows))
    orchestra = Orchestra(sender)
    wait_until(lambda: sum(agent.alive for agent in orchestra.agents()) == 12, seconds=90, what="twelve live agents")
    pids = {agent.pid: agent.name for agent in orchestra.agents()}

    sent = []
    for number in range(200):
        task = dice.choice(TASKS)
        requirement = _random_requirement(dice)
        sent.append((task, requirement, orchestra.submit(task, {"number": number}, requires=requirement)))
    may_run = [
        [name for name, (can, knows) in able.items() if requirement.satisfied_by(can) and task in knows]
        for task, requirement, _ in sent
    ]
    runnable = sum(bool(names) for names in may_run)
    wait_until(
        lambda: sum(handle.result.ready() for *_, handle in sent) >= runnable, seconds=60, what=f"{runnable} results"
    )
    wait_until(lambda: sum(queue.depth for queue in orchestra.queues()) == 200 - runnable, what="the rest waiting")

    ran: Counter[str] = Counter()
    waiting, wrong = 0, []
    for (task, requirement, handle), names in zip(sent, may_run, strict=True):
        if handle.result.ready():
            agent = pids[handle.get(timeout=5)]
            ran[agent] += 1
            if agent not in names:
                wrong.append((task, requirement.text, agent))
        else:
            waiting += 1
            if names:
                wrong.append((task, requirement.text, "waits, though it could run"))

    assert [] == wrong
    assert (runnable, 200 - runnable) == (ran.total(), waiting)
    assert runnable > 60
    assert waiting > 20
    assert len(ran) > 6


def _random_requirement(dice: random.Random) -> Requirement:
    while True:
        terms = dice.sample(TERMS, dice.randint(1, 3))
        try:
            return Requirement.parse(terms)
        except Exception:  # noqa: BLE001  # a contradiction, such as spot and !spot: draw again
            continue


def test_an_agent_that_joins_late_takes_what_waits(fleet: Agents, sender: OrchestraCelery) -> None:
    """An agent that joins later picks up what waits within two seconds of joining."""
    fleet.write_app(APP)
    fleet.start("--capabilities", "general", name="first")
    orchestra = Orchestra(sender)
    handles = [orchestra.submit("t0", {"number": number}, requires={"gpu", "mem_gb>=16"}) for number in range(5)]

    late = fleet.start("--capabilities", "gpu,mem_gb=64", name="late")

    seconds = wait_until(lambda: all(handle.result.ready() for handle in handles), seconds=20)
    assert {late.process.pid} == {handle.get(timeout=5) for handle in handles}
    assert seconds < PROMPT_SECONDS


def test_a_requirement_first_seen_at_run_time_is_subscribed(fleet: Agents, sender: OrchestraCelery) -> None:
    """A running agent subscribes to a requirement that nobody had within two seconds, and again after a flush."""
    fleet.write_app(APP)
    agent = fleet.start("--capabilities", "gpu,mem_gb=64", name="big")
    orchestra = Orchestra(sender)
    wait_until(lambda: "t0" in sender.catalogue.names())

    for requirement in ("gpu,mem_gb>=32", "mem_gb>=48"):
        handle = orchestra.submit("t0", {"number": 1}, requires=requirement)
        seconds = wait_until(handle.result.ready, seconds=20)
        assert agent.process.pid == handle.get(timeout=5)
        assert seconds < PROMPT_SECONDS

    sender.store.command("FLUSHALL")
    wait_until(lambda: [one.name for one in orchestra.agents() if one.alive] == ["big@test"], what="registered again")
    wait_until(sender.registry.catalogue, what="catalogue again")
    for requirement in ("gpu,mem_gb>=32", "gpu,mem_gb>=33"):
        handle = orchestra.submit("t0", {"number": 1}, requires=requirement)
        assert wait_until(handle.result.ready, seconds=20) < 2


def test_subscriptions_survive_reconnects(fleet: Agents, sender: OrchestraCelery) -> None:
    """After every connection was cut, the agent serves the queues that it had, those found at run time as well."""
    fleet.write_app(APP)
    fleet.start("--capabilities", "gpu,mem_gb=64", name="big")
    orchestra = Orchestra(sender)
    orchestra.submit("t0", {"number": 1}, requires="mem_gb>=48").get(timeout=20)

    for kind in ("normal", "pubsub"):
        sender.store.command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
    handles = [orchestra.submit("t0", {"number": 1}, requires=text) for text in ("mem_gb>=48", "gpu", "mem_gb>=50")]

    wait_until(lambda: all(handle.result.ready() for handle in handles), seconds=30)


def test_registration_and_queues_survive_a_restart_of_redis(fleet: Agents, tmp_path: Path) -> None:
    """A server that comes back empty is told again who lives, what they know and which queues there are."""
    fleet.write_app(APP)
    with EmbeddedServer.start(directory=tmp_path / "data") as server:
        app = OrchestraCelery("fleet", broker=server.url, set_as_current=False)
        fleet.start("--capabilities", "gpu,mem_gb=64", name="big", ORCHESTRA_BROKER_URL=server.url)
        orchestra = Orchestra(app)
        assert orchestra.submit("t0", {"number": 1}, requires="mem_gb>=48").get(timeout=20)

        server.kill()
        server.restart()

        wait_until(lambda: [True] == [agent.alive for agent in orchestra.agents()], seconds=40, what="an agent again")
        wait_until(lambda: "t0" in app.catalogue.names(), what="the catalogue again")
        handles = [orchestra.submit("t0", {"number": 1}, requires=text) for text in ("mem_gb>=48", "gpu", "mem_gb>=9")]
        wait_until(lambda: all(handle.result.ready() for handle in handles), seconds=30)
        fleet.close()
        app.close()


def test_two_fleets_on_one_redis_do_not_see_each_other(fleet: Agents, sender: OrchestraCelery, redis_url: str) -> None:
    """Queues, registry, catalogue and state live under the app's name."""
    fleet.write_app(APP)
    fleet.start("--capabilities", "gpu", name="mine")
    other = OrchestraCelery("other", broker=redis_url, set_as_current=False)
    try:
        handle = Orchestra(sender).submit("t0", {"number": 1}, requires="gpu")
        foreign = other.send_task("t0", kwargs={"number": 1}, requires="gpu")
        handle.get(timeout=20)

        assert [] == Orchestra(other).agents()
        assert [] == other.catalogue.names()
        assert None is Orchestra(other).handle(handle.id).state
        assert not foreign.ready()
        assert ["mine@test"] == [agent.name for agent in Orchestra(sender).agents()]
        assert set(chain.from_iterable(queue.agents for queue in Orchestra(other).queues())) == set()
    finally:
        other.close()


def test_a_rolling_deploy_loses_nothing(fleet: Agents, sender: OrchestraCelery) -> None:
    """A task that the fleet's old agents don't know yet waits for the first new one, and is not dropped."""
    fleet.write_app(APP)
    old = fleet.start("--capabilities", "gpu", name="old", KNOWS="t0")
    wait_until(lambda: "t0" in sender.catalogue.names())
    unknown = [sender.send_task("t1", kwargs={"number": n}, requires="gpu") for n in range(5)]
    old.wait_for("task handed on")

    new = fleet.start("--capabilities", "gpu", name="new", KNOWS="t0,t1")

    assert {new.process.pid} == {result.get(timeout=20) for result in unknown}
    assert old.process.poll() is None


def test_a_task_that_nobody_knows_becomes_a_dead_letter(fleet: Agents, sender: OrchestraCelery) -> None:
    """After a bound, a task that no live agent knows fails with its reason, and its message is kept."""
    fleet.write_app(APP)
    fleet.start(
        "--capabilities", "gpu", name="old", KNOWS="t0",
        ORCHESTRA_UNREGISTERED_AFTER_SECONDS="1", ORCHESTRA_BEAT_SECONDS="0.2",
    )  # fmt: skip
    result = sender.send_task("gone", kwargs={"number": 1}, requires="gpu")

    with pytest.raises(NotRegistered):
        result.get(timeout=30)

    assert TaskState.FAILED is Orchestra(sender).handle(result.id).state
    letter = Orchestra(sender).dead_letters.show(result.id)
    assert ("unregistered", "gone", "gpu") == (letter.reason, letter.task, letter.requires)
    wait_until(lambda: ["celery", "fleet:gpu"] == [queue.name for queue in Orchestra(sender).queues()])
