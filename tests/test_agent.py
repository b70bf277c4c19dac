"""Agents: what a worker serves, how it joins its fleet and leaves, and what is known of it."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from celery.bootsteps import RUN  # type: ignore[attr-defined]  # celery-types leaves it out
from celery.concurrency.solo import TaskPool
from celery.exceptions import NotRegistered, WorkerShutdown
from redis import Redis

from orchestra.agent import Agent, AgentManager, AgentStep, CapabilityStep, _fail, _sweep_of
from orchestra.capabilities import CapabilitySet, Requirement
from orchestra.exceptions import ConfigurationError, ValidationError
from orchestra.leases import LeaseHolder
from orchestra.subscription import Subscription, needed_queues
from orchestra.sweep import Buried
from orchestra.types import TaskState
from tests.fleets import agent_of, app_at, quick
from tests.processes import until


@pytest.fixture
def app(redis_url: str) -> Iterator[Any]:
    """Give an app whose tasks ask for different things."""
    with app_at(redis_url) as app:
        _declare(app)
        yield app


@pytest.fixture
def client(redis_url: str) -> Iterator[Redis]:
    """Give a client of the test's own."""
    with Redis.from_url(redis_url) as client:
        yield client


def _declare(app: Any) -> None:
    @app.task(name="shop.index", requires={"nlp"}, urgency="high", shared=False)
    def index(number: int = 0) -> int:
        return number

    @app.task(name="shop.train", requires={"gpu", "mem_gb>=16"}, shared=False)
    def train(number: int = 0) -> int:
        return number

    @app.task(name="shop.plain", shared=False)
    def plain(number: int = 0) -> int:
        return number


def _served(app: Any) -> tuple[str, ...]:
    """Return the queues of the only agent, once it has told of them."""
    agents = AgentManager(app).agents()
    assert 1 == len(agents)
    return agents[0].queues


class TestQueues:
    """Which queues an agent serves from its first moment on."""

    @pytest.mark.parametrize(
        ("capabilities", "queues"),
        [
            (None, {"celery"}),
            ("general", {"celery"}),
            ("nlp", {"shop:nlp"}),
            ("nlp,general", {"celery", "shop:nlp"}),
            ("gpu,mem_gb=64", {"shop:gpu+mem_gb~ge~16"}),
            ("gpu,mem_gb=8", set()),
        ],
    )
    def test_by_capabilities(self, app: Any, capabilities: str | None, queues: set[str]) -> None:
        """An agent serves every queue whose requirement it satisfies; without capabilities, general work."""
        worker = _worker(app, capabilities)

        assert queues == set(app.amqp.queues.consume_from)
        assert CapabilitySet.parse(capabilities or "general") == worker.capabilities

    def test_from_the_environment(self, redis_url: str) -> None:
        """`ORCHESTRA_CAPABILITIES` says what `--capabilities` doesn't."""
        with app_at(redis_url, settings=quick(capabilities="nlp")) as app:
            _declare(app)
            _worker(app, None)
            assert {"shop:nlp"} == set(app.amqp.queues.consume_from)
        with app_at(redis_url, settings=quick(capabilities="nlp")) as app:
            _declare(app)
            _worker(app, "general")
            assert {"celery"} == set(app.amqp.queues.consume_from)

    def test_named_queues(self, app: Any) -> None:
        """`-Q` without capabilities: those queues alone, now and later."""
        app.amqp.queues.select(["mine"])

        worker = _worker(app, None)

        assert {"mine"} == set(app.amqp.queues.consume_from)
        assert "" == str(worker.capabilities)

    def test_named_queues_and_capabilities(self, app: Any) -> None:
        """`-Q` with capabilities: both."""
        app.amqp.queues.select(["mine"])

        _worker(app, "nlp")

        assert {"mine", "shop:nlp"} == set(app.amqp.queues.consume_from)

    def test_nonsense(self, app: Any) -> None:
        """Capabilities that can't be read stop the start."""
        with pytest.raises(ValidationError, match="NLP"):
            _worker(app, "NLP")

    def test_changed_invariants(self, app: Any) -> None:
        """So does a setting that was overridden."""
        assert ["json"] == app.conf.accept_content
        app.conf.accept_content = ["json", "yaml"]

        with pytest.raises(ConfigurationError, match="accept_content"):
            _worker(app, "nlp")

    def test_needed(self, app: Any) -> None:
        """The app's own tasks tell which queues there have to be; general work always."""
        assert {"general", "nlp", "gpu+mem_gb~ge~16"} <= needed_queues(app)


def _worker(app: Any, capabilities: str | None) -> Any:
    """Take a worker's first step."""
    app.finalize()
    worker = SimpleNamespace(app=app, hostname="a@test", pool_cls=TaskPool)
    CapabilityStep(worker, capabilities=capabilities)
    return worker


class TestMembership:
    """An agent joins, serves what appears, and leaves."""

    def test_what_is_known(self, app: Any) -> None:
        """An agent tells who and where it is, what it can and what it serves; times are Redis's."""
        with agent_of(app, "nlp,mem_gb=64", name="text@test"):
            (agent,) = AgentManager(app).agents()

        assert ("text@test", "mem_gb=64,nlp", "solo", 1) == (
            agent.name,
            agent.capabilities,
            agent.pool,
            agent.concurrency,
        )
        assert (socket.gethostname(), os.getpid(), "0.1.0") == (agent.host, agent.pid, agent.version)
        assert (("shop:nlp",), 0, True) == (agent.queues, agent.running, agent.alive)
        assert {"shop.index", "shop.train", "shop.plain"} <= agent.tasks
        assert timedelta(0) <= agent.last_beat_at - agent.started_at < timedelta(seconds=5)
        assert abs(datetime.now(UTC) - agent.started_at) < timedelta(seconds=10)

    def test_it_leaves(self, app: Any) -> None:
        """A clean stop takes the agent off the list."""
        with agent_of(app):
            assert 1 == len(AgentManager(app).agents())

        assert [] == AgentManager(app).agents()

    def test_it_publishes_its_tasks(self, app: Any) -> None:
        """The catalogue tells senders without the code what a task requires and takes; Celery's own say nothing."""
        with agent_of(app):
            catalogue = app.registry.catalogue()

        index = catalogue["shop.index"]
        assert ("nlp", "high", True) == (index.requires, index.urgency, index.enforced)
        assert "number" in str(index.arguments)
        assert not catalogue["shop.plain"].enforced
        assert catalogue["celery.chain"].arguments is None

    def test_a_requirement_that_appears(self, app: Any) -> None:
        """A queue that somebody asks for while the agent runs is served within two beats, and left when it is gone."""
        with agent_of(app, "nlp,gpu,mem_gb=64"):
            assert 3 == app.tasks["shop.plain"].apply_async((3,), requires="mem_gb>=32").get(timeout=10)
            until(lambda: "shop:mem_gb~ge~32" in _served(app), seconds=10)

            assert app.registry.prune(
                "mem_gb~ge~32", "shop:mem_gb~ge~32", steps=app.priority_steps, registered_before=2e9 * 2
            )

            until(lambda: "shop:mem_gb~ge~32" not in _served(app), seconds=10)
            assert {"shop:nlp", "shop:gpu+mem_gb~ge~16"} == set(_served(app))

    def test_named_queues_stay_alone(self, app: Any) -> None:
        """An agent that was started with `-Q` alone takes no capability queue on."""
        with agent_of(app, queues=["mine"]):
            app.tasks["shop.plain"].apply_async(requires="gpu")

            assert 5 == app.tasks["shop.plain"].apply_async((5,), queue="mine").get(timeout=10)
            assert ("mine",) == _served(app)

    def test_control_and_events_go_on(self, app: Any) -> None:
        """Celery's remote control answers as ever, and its events are sent."""
        seen: list[Any] = []
        with app.connection_for_read() as connection, agent_of(app, name="text@test", task_events=True):
            receiver = app.events.Receiver(connection, handlers={"task-succeeded": seen.append})
            with receiver.consumer_context(wakeup=False) as (listening, _, _):
                _drain(listening)  # subscribes, before anything is sent
                app.tasks["shop.plain"].delay(3).get(timeout=10)
                until(lambda: _drain(listening) and seen, seconds=10)
            (pong,) = app.control.ping(timeout=5, limit=1)

        assert {"text@test": {"ok": "pong"}} == pong
        assert "3" == seen[0]["result"]

    def test_a_name_that_is_taken(self, app: Any, caplog: pytest.LogCaptureFixture) -> None:
        """Another live agent keeps its name: the second one stops, with a word of why."""
        with _joined(app, "twin@test"):
            step = AgentStep(_consumer(app, "twin@test"))

            with pytest.raises(WorkerShutdown):
                step.start(_consumer(app, "twin@test"))
            step.stop(_consumer(app, "twin@test"))
        assert "An agent named twin@test is alive on" in caplog.text

    def test_a_lost_redis(self) -> None:
        """Celery answers a ConnectionError by connecting anew, so that is what a failed registration becomes."""
        with app_at("redis://127.0.0.1:1/0") as app:
            consumer = _consumer(app, "a@test")
            step = AgentStep(consumer)

            with pytest.raises(ConnectionError, match=r"127\.0\.0\.1:1"):
                step.start(consumer)
            step.stop(consumer)

    def test_stopping_twice(self, app: Any) -> None:
        """Celery stops a step on a lost connection and again at the end, and may start it in between."""
        consumer = _consumer(app, "a@test")
        step = AgentStep(consumer)

        step.start(consumer)
        step.stop(consumer)
        step.stop(consumer)
        step.start(consumer)

        assert ["a@test"] == [agent.name for agent in AgentManager(app).agents()]
        step.shutdown(consumer)
        assert [] == AgentManager(app).agents()


def _drain(connection: Any) -> bool:
    with suppress(TimeoutError):
        connection.drain_events(timeout=0.1)
    return True


def _consumer(app: Any, name: str) -> Any:
    """Return what an agent's last step asks of Celery's consumer."""
    can = CapabilitySet.parse("nlp")
    worker = SimpleNamespace(
        capabilities=can,
        subscription=Subscription(app, can),
        pool_cls=TaskPool,
        concurrency=1,
        hub=None,
        semaphore=None,
        lease_holder=LeaseHolder(agent=name),
    )
    return SimpleNamespace(
        blueprint=SimpleNamespace(state=RUN),
        app=app,
        hostname=name,
        controller=worker,
        task_consumer=None,
        call_soon=lambda act, *args: act(*args),
    )


@contextmanager
def _joined(app: Any, name: str) -> Iterator[None]:
    consumer = _consumer(app, name)
    step = AgentStep(consumer)
    step.start(consumer)
    try:
        yield
    finally:
        step.stop(consumer)


class TestAgentManager:
    def test_who_can(self, app: Any) -> None:
        """The live agents that satisfy a requirement, whatever form it is written in."""
        manager = AgentManager(app)
        with _joined(app, "a@test"), _joined(app, "b@test"):
            assert ["a@test", "b@test"] == [agent.name for agent in manager.capable_of({"nlp"})]
            assert [] == manager.capable_of("gpu")
            assert 2 == len(manager.capable_of(Requirement.parse("!gpu")))

    def test_lost_agents(self, app: Any) -> None:
        """An agent that was silent for five beats isn't alive, but is remembered."""
        app.registry.register("lost@test", "1", about=_ABOUT, tasks={}, queues=[])
        manager = AgentManager(app)

        until(lambda: [False] == [agent.alive for agent in manager.agents()], seconds=5)

        assert [] == manager.capable_of("nlp")

    def test_an_agent_that_can_nothing(self) -> None:
        """An agent of named queues has no capabilities, and satisfies only what asks for none."""
        agent = Agent(
            name="a@h",
            capabilities="",
            host="h",
            pid=1,
            pool="solo",
            concurrency=1,
            queues=("mine",),
            tasks=frozenset(),
            running=0,
            draining=False,
            version="1",
            started_at=datetime.now(UTC),
            last_beat_at=datetime.now(UTC),
            alive=True,
        )

        assert not agent.satisfies(Requirement.parse("nlp"))
        assert agent.satisfies(Requirement.parse("!nlp"))


_ABOUT = {"capabilities": "nlp", "host": "h", "pid": 1, "pool": "solo", "concurrency": 1, "version": "1"}


class TestSweep:
    def test_whoever_waits_is_told(self, app: Any, client: Redis, caplog: pytest.LogCaptureFixture) -> None:
        """A task that went to the dead letters has failed, and its caller hears so."""
        result = app.send_task("shop.gone", requires="gpu")
        raw: Any = client.lindex("shop:gpu\x06\x166", 0)

        _fail(app, Buried("shop.gone", [raw]))

        with pytest.raises(NotRegistered):
            result.get(timeout=10)
        assert TaskState.FAILED is app.state.read(result.id).state
        assert f"task dead: task=shop.gone task_id={result.id} reason=unregistered" in caplog.text

    def test_results_that_cannot_be_stored(self, caplog: pytest.LogCaptureFixture) -> None:
        """The others' waiters are told all the same."""
        raws = [json.dumps({"headers": {"id": task_id}}).encode() for task_id in ("one", "two")]
        options = {"result_backend_transport_options": {"retry_policy": {"max_retries": 0}}}
        with app_at("redis://127.0.0.1:1/0", changes=options) as app:
            _fail(app, Buried("shop.gone", raws))

        assert 2 == caplog.text.count("result not stored")

    def test_an_agents_sweep(self, app: Any) -> None:
        """An agent tidies up with the app's own names and bounds; what is young stays."""
        app.send_task("shop.gone", requires="gpu")

        _sweep_of(app)()

        assert {"gpu"} == set(app.registry.queues())
