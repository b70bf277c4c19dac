"""A suite by pytest-celery, as users write theirs: our image as its worker, and our Redis in place of its own."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pytest_celery import (  # type: ignore[import-untyped]  # it has no types
    DEFAULT_WORKER_CONTAINER_TIMEOUT,
    CeleryTestSetup,
    CeleryTestWorker,
    CeleryWorkerCluster,
    CeleryWorkerContainer,
    RedisContainer,
    RedisTestBroker,
)
from pytest_docker_tools import container, fxtr, volume  # type: ignore[import-untyped]  # as above

from orchestra.app import OrchestraCelery
from orchestra.orchestra import Orchestra
from orchestra.types import TaskState
from tests.integration.agents import wait_until

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1200)]


class Shop(CeleryTestSetup):  # type: ignore[misc]  # of a class without types
    """The sender's side: an app that knows the fleet by its name, and none of its tasks' code."""

    @classmethod
    def create_setup_app(cls, celery_setup_config: dict[str, Any], celery_setup_app_name: str) -> OrchestraCelery:
        """Make the app, by what pytest-celery found out of its containers."""
        app = OrchestraCelery(celery_setup_app_name, set_as_current=False)
        app.config_from_object(celery_setup_config)
        return app

    @classmethod
    def name(cls) -> str:
        """Return the app's name."""
        return "shop"

    def teardown(self) -> None:
        """Close the connections while Redis is there."""
        self.app.close()


class Redis(RedisContainer):  # type: ignore[misc]  # as above
    """A Redis that is also found where these tests run in a container themselves, beside it."""

    @property
    def host_url(self) -> str:
        """Return its address as this process has it."""
        self._wait_port("6379/tcp")
        host, port = self.get_addr("6379/tcp")
        return f"{self.prefix()}{host}:{port}/{self.vhost}"


class Agent(CeleryWorkerContainer):  # type: ignore[misc]  # as above
    """A container with an agent that can do what its class says."""

    capabilities = "general"

    @classmethod
    def command(cls, *args: str, debugpy: bool = False, wait_for_client: bool = True, **kwargs: Any) -> list[str]:
        """Return what the container runs."""
        options = ["--capabilities", cls.capabilities, "--pool", "solo", "--loglevel", "INFO"]
        return ["celery", "-A", "shop", "worker", "-n", f"{cls.worker_name()}@%h", *options, *args]

    @classmethod
    def worker_name(cls) -> str:
        """Return the first part of the agent's name."""
        return cls.capabilities


class TextAgent(Agent):
    """One that can work on texts."""

    capabilities = "nlp"


default_redis_broker = container(
    image="{images.redis}",
    ports=fxtr("default_redis_broker_ports"),
    network="{default_pytest_celery_network.name}",
    tmpfs={"/data": ""},  # else each container would leave a volume behind
    wrapper_class=Redis,
    timeout=DEFAULT_WORKER_CONTAINER_TIMEOUT,
    command=fxtr("default_redis_broker_command"),
)
app_files = volume(initial_content={"shop.py": Path(__file__).with_name("shop.py").read_bytes()})


def agent_in(kind: type[Agent]) -> Any:
    """Return the fixture of a container with an agent of this kind."""
    return container(
        image="{images.agent}",
        environment=fxtr("default_worker_env"),
        network="{default_pytest_celery_network.name}",
        volumes={"{app_files.name}": {"bind": "/app", "mode": "ro"}},
        wrapper_class=kind,
        timeout=DEFAULT_WORKER_CONTAINER_TIMEOUT,
        command=kind.command(),
    )


general_container = agent_in(Agent)
text_container = agent_in(TextAgent)


@pytest.fixture(autouse=True)
def plugin(request: pytest.FixtureRequest) -> None:
    """Skip where pytest-celery is off, as it is unless a command asks for it."""
    if not request.config.pluginmanager.hasplugin("celery"):
        pytest.skip("pytest-celery is off: run `make test-docker`, or give pytest -p docker_tools -p celery")


@pytest.fixture
def celery_broker(celery_redis_broker: RedisTestBroker) -> RedisTestBroker:
    """Test on Redis alone, not on every broker that kombu knows."""
    return celery_redis_broker


@pytest.fixture
def celery_backend_cluster() -> None:
    """Keep results in the broker's Redis, as the fleet does by default."""


@pytest.fixture
def celery_setup_cls() -> type[CeleryTestSetup]:
    """Make the app that sends an OrchestraCelery."""
    return Shop


@pytest.fixture
def general_agent(general_container: Agent, celery_setup_app: OrchestraCelery) -> CeleryTestWorker:
    """Give an agent without a particular skill."""
    return CeleryTestWorker(general_container, celery_setup_app)


@pytest.fixture
def text_agent(text_container: TextAgent, celery_setup_app: OrchestraCelery) -> CeleryTestWorker:
    """Give an agent for texts."""
    return CeleryTestWorker(text_container, celery_setup_app)


@pytest.fixture
def celery_worker_cluster(
    general_agent: CeleryTestWorker, text_agent: CeleryTestWorker
) -> Iterator[CeleryWorkerCluster]:
    """Give the two agents as the cluster that pytest-celery sets up."""
    cluster = CeleryWorkerCluster(general_agent, text_agent)
    yield cluster
    cluster.teardown()


@pytest.fixture
def engine_of_shop(celery_setup: CeleryTestSetup) -> Orchestra:
    """Give the engine over the app that sends, once both agents are there."""
    assert celery_setup.ready(control=True)
    return Orchestra(celery_setup.app)


class TestAgents:
    def test_run_a_task(self, engine_of_shop: Orchestra) -> None:
        """A task that the sender knows by name only runs in the container, and its result comes back."""
        handle = engine_of_shop.submit("shop.count_words", {"text": "one and two"})

        _, words = handle.get(timeout=30)

        assert 3 == words

    def test_get_what_they_can_do(
        self, engine_of_shop: Orchestra, general_agent: CeleryTestWorker, text_agent: CeleryTestWorker
    ) -> None:
        """Tasks that ask for a skill go to the agent that has it, and the others to the other one."""
        texts = [engine_of_shop.submit("shop.count_words", {"text": f"text {number}"}) for number in range(20)]
        totals = [engine_of_shop.submit("shop.total", {"prices": [1.5, number]}) for number in range(20)]

        assert {host_of(text_agent)} == {handle.get(timeout=30)[0] for handle in texts}
        assert {host_of(general_agent)} == {handle.get(timeout=30)[0] for handle in totals}

    def test_are_killed_and_nothing_is_lost(
        self, engine_of_shop: Orchestra, general_agent: CeleryTestWorker, text_agent: CeleryTestWorker
    ) -> None:
        """A task in the hands of a killed agent is run again once its agent is back; the others go on meanwhile."""
        handle = engine_of_shop.submit("shop.wait_for", {"key": "go"})
        wait_until(lambda: handle.state is TaskState.RUNNING, what="the task runs")

        text_agent.kill()

        wait_until(lambda: text_agent.hostname() not in alive(engine_of_shop), what="the loss is known")
        assert {general_agent.hostname()} == alive(engine_of_shop)
        assert 3.0 == engine_of_shop.submit("shop.total", {"prices": [1, 2]}).get(timeout=30)[1]
        assert handle.state is TaskState.RUNNING

        engine_of_shop.app.store.command("SET", "go", "1")
        text_agent.restart()

        assert host_of(text_agent) == handle.get(timeout=60)
        assert {general_agent.hostname(), text_agent.hostname()} == alive(engine_of_shop)


def host_of(agent: CeleryTestWorker) -> str:
    """Return what a container calls itself."""
    return str(agent.container.id[:12])


def alive(engine: Orchestra) -> set[str]:
    """Return the names of the live agents."""
    return {agent.name for agent in engine.agents() if agent.alive}
