"""Bad input, at every door: a clear error that says what, where and what to do, and nothing left behind."""

import socket
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from pydantic import BaseModel

from orchestra import Orchestra, OrchestraCelery, ValidationError
from orchestra.broker import SubmissionError
from orchestra.config import load_settings
from orchestra.embedded import EmbeddedServer
from orchestra.exceptions import ConfigurationError, PayloadError, UnknownTaskError
from tests.integration.agents import Agents, wait_until

pytestmark = pytest.mark.integration


class Document(BaseModel):
    """What the tests' task takes."""

    title: str
    pages: int


@pytest.fixture
def app(redis_url: str) -> Iterator[OrchestraCelery]:
    """Give an app with one strict task and one that declares nothing."""
    app = OrchestraCelery("doors", broker=redis_url, set_as_current=False)

    @app.task(name="doors.index", requires={"nlp"}, shared=False)
    def index(document: Document, limit: int = 10, tags: list[str] | None = None) -> None: ...

    @app.task(name="doors.plain", shared=False)
    def plain(x: Any, y: int = 1) -> None: ...

    yield app
    app.close()


@pytest.fixture
def orchestra(app: OrchestraCelery) -> Iterator[Orchestra]:
    """Give the engine, and make sure that nothing was left in Redis."""
    yield Orchestra(app)
    assert [] == app.store.command("KEYS", "*")


GOOD = {"title": "a", "pages": 1}


class TestArguments:
    """What a task takes."""

    def test_every_field_is_named(self, orchestra: Orchestra) -> None:
        """Missing, wrong and extra arguments are all in one error."""
        with pytest.raises(ValidationError) as caught:
            orchestra.submit("doors.index", {"document": {"title": 1}, "limit": "ten", "lines": 3})

        text = str(caught.value)
        assert "doors.index was not submitted" in text
        assert {"document.title", "document.pages", "limit", "lines"} <= {error.field for error in caught.value.errors}

    def test_delay_checks_too(self, app: OrchestraCelery, orchestra: Orchestra) -> None:
        """`.delay()`, `apply_async` and a signature refuse what `submit` refuses."""
        task = app.tasks["doors.index"]

        for call in (
            lambda: task.delay(42),
            lambda: task.apply_async((GOOD,), {"limit": None}),
            lambda: task.s(GOOD, tags=[1]).apply_async(),
            lambda: app.send_task("doors.index"),
        ):
            with pytest.raises(ValidationError, match=r"doors\.index was not submitted"):
                call()

    def test_unknown_tasks(self, orchestra: Orchestra) -> None:
        """The nearest names are told."""
        with pytest.raises(UnknownTaskError, match=r"doors\.index") as caught:
            orchestra.submit("doors.indx", {})

        assert "doors.index" in caught.value.nearest

    @pytest.mark.parametrize("name", ["", "no spaces here", "x" * 600, None, 7])
    def test_names_that_are_none(self, orchestra: Orchestra, name: Any) -> None:
        """A task's name is text of a certain form."""
        with pytest.raises(ValidationError):
            orchestra.submit(name, {})

    @pytest.mark.parametrize("payload", [None, [], "text", 3])
    def test_payloads_that_are_no_mapping(self, orchestra: Orchestra, payload: Any) -> None:
        """The payload holds arguments by name."""
        with pytest.raises(ValidationError, match="mapping"):
            orchestra.submit("doors.index", payload)


class TestPayloads:
    """What may travel."""

    def test_too_large(self, orchestra: Orchestra) -> None:
        """The limit is 1 MiB, and the error says both sizes."""
        with pytest.raises(PayloadError, match=r"1048576|1,048,576|1 MiB"):
            orchestra.submit("doors.index", {"document": {"title": "a" * 1_100_000, "pages": 1}})

    def test_too_deep(self, orchestra: Orchestra) -> None:
        """Nesting has a bound."""
        deep: list[Any] = []
        for _ in range(100):
            deep = [deep]

        with pytest.raises(PayloadError):
            orchestra.submit("doors.plain", {"x": deep})

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1: 2}, {"a": {3}}.keys()])
    def test_values_that_json_cannot_hold(self, orchestra: Orchestra, value: Any) -> None:
        """They are named with their place."""
        with pytest.raises(PayloadError, match="x"):
            orchestra.submit("doors.plain", {"x": value})

    def test_one_bad_payload_of_many(self, orchestra: Orchestra) -> None:
        """None of a batch is sent when one is wrong, and the error tells which."""
        with pytest.raises(ValidationError, match="Payload 1 of 3"):
            orchestra.submit_many("doors.index", [{"document": GOOD}, {"document": 3}, {"document": GOOD}])


class TestOptions:
    """How a task is to be run."""

    @pytest.mark.parametrize("requires", ["gpu>=>3", "GPU", "", "mem>=16,<abc", "a" * 600, {"gpu", "!gpu"}, 7])
    def test_requirements(self, orchestra: Orchestra, requires: Any) -> None:
        """A requirement that can't be read is refused with its term and the grammar."""
        with pytest.raises(ValidationError):
            orchestra.submit("doors.index", {"document": GOOD}, requires=requires)

    @pytest.mark.parametrize(
        "options",
        [
            {"timeout": -1},
            {"timeout": 0},
            {"timeout": 1e12},
            {"timeout": float("nan")},
            {"timeout": "soon"},
            {"countdown": -5},
            {"countdown": float("inf")},
            {"urgency": "asap"},
            {"expires": -1},
        ],
    )
    def test_times_and_urgencies(self, orchestra: Orchestra, options: dict[str, Any]) -> None:
        """Negative, huge and unreadable values are refused by name."""
        with pytest.raises(ValidationError):
            orchestra.submit("doors.index", {"document": GOOD}, **options)

    def test_a_requirement_beside_a_queue(self, app: OrchestraCelery, orchestra: Orchestra) -> None:
        """Both can't decide."""
        with pytest.raises(ValidationError, match="exclude each other"):
            app.send_task("doors.index", (GOOD,), requires="gpu", queue="celery")

    @pytest.mark.parametrize(
        "options",
        [
            {"requires": "gpu>=>1"},
            {"urgency": "now"},
            {"timeout": -1},
            {"max_attempts": 0},
            {"max_attempts": 3, "max_retries": 2},
            {"backoff": 3},
            {"retry_on": ("ValueError",)},
        ],
    )
    def test_declarations(self, app: OrchestraCelery, orchestra: Orchestra, options: dict[str, Any]) -> None:
        """What a task declares wrongly is refused where it is declared, naming task and option."""
        with pytest.raises(ConfigurationError, match=r"doors\.bad"):
            app.task(name="doors.bad", shared=False, **options)(print)


class TestRedis:
    """A broker that isn't there, or doesn't let us in."""

    def test_an_unreachable_server(self) -> None:
        """It fails within the configured time, names host and port, and never the password."""
        app = OrchestraCelery("doors", broker="redis://:hush-hush@127.0.0.1:1/0", set_as_current=False)
        started = time.monotonic()

        with pytest.raises(SubmissionError, match=r"127\.0\.0\.1:1") as caught:
            app.send_task("celery.backend_cleanup")

        assert time.monotonic() - started < app.settings.connect_timeout_seconds + 1
        assert "hush-hush" not in str(caught.value)
        assert not Orchestra(app).health().ok
        assert "hush-hush" not in str(Orchestra(app).health())

    def test_a_server_that_never_answers(self) -> None:
        """A connection that is accepted and then silent is given up within the configured time."""
        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = silent.getsockname()[1]
            url = f"redis://:hush-hush@127.0.0.1:{port}/0"
            settings = load_settings(broker_url=url, connect_timeout_seconds=1.0)
            app = OrchestraCelery("doors", broker=url, set_as_current=False, settings=settings)
            started = time.monotonic()

            with pytest.raises(SubmissionError, match=str(port)):
                app.send_task("celery.backend_cleanup")

            assert time.monotonic() - started < 10

    def test_a_wrong_password(self, redis_server: EmbeddedServer) -> None:
        """It says so, and shows neither the right one nor the wrong one."""
        port = urlsplit(redis_server.url).port
        app = OrchestraCelery("doors", broker=f"redis://:hush-hush@127.0.0.1:{port}/0", set_as_current=False)

        with pytest.raises(ConfigurationError, match=f"127.0.0.1:{port} refused") as caught:
            app.send_task("celery.backend_cleanup")
        health = Orchestra(app).health()

        assert "hush-hush" not in str(caught.value)
        assert "hush-hush" not in str(health)
        assert "refused" in health.problems[0]


class TestAgents:
    """Starting an agent."""

    APP = "from orchestra import OrchestraCelery\napp = OrchestraCelery('doors')\n"

    def test_bad_capabilities(self, fleet: Agents) -> None:
        """They are refused at start with the exact term and the grammar, and exit code 2."""
        fleet.write_app(self.APP)
        for options, environment in (
            (("--capabilities", "nlp,mem_gb=="), {}),
            ((), {"ORCHESTRA_CAPABILITIES": "nlp,MEM"}),
        ):
            agent = fleet.start(*options, name="bad", wait=False, **environment)

            assert agent.process.wait(30) != 0
            assert agent.says("mem_gb==") or agent.says("MEM")
            assert not agent.says("Traceback")

    def test_two_agents_of_one_name(self, fleet: Agents) -> None:
        """The second is refused, and the first goes on; after a kill -9 the name is free again."""
        fleet.write_app(self.APP)
        first = fleet.start(name="twin")
        second = fleet.start(name="twin", wait=False)

        assert second.process.wait(30) != 0
        assert second.says("is alive on")
        assert not second.says("Traceback")
        assert first.process.poll() is None
        first.process.kill()
        first.process.wait()
        fleet.start(name="twin")

    def test_redis_absent_at_start(self, fleet: Agents, tmp_path: Any) -> None:
        """An agent waits and says so; it joins when Redis comes, and shows no password."""
        fleet.write_app(self.APP)
        with EmbeddedServer.start(directory=tmp_path / "data") as server:
            server.kill()
            agent = fleet.start(name="early", wait=False, ORCHESTRA_BROKER_URL=server.url)
            agent.wait_for("Cannot connect to redis://")
            password = urlsplit(server.url).password or "-"
            assert not agent.says(password)

            server.restart()
            agent.wait_for("agent joined", seconds=40)
            agent.stop()

    def test_a_changed_invariant(self, fleet: Agents) -> None:
        """A setting that correctness rests on can't be overridden after configuration."""
        fleet.write_app(f"{self.APP}app.conf.task_reject_on_worker_lost\napp.conf.task_reject_on_worker_lost = False\n")
        agent = fleet.start(name="loose", wait=False)

        assert agent.process.wait(30) != 0
        assert agent.says("task_reject_on_worker_lost")
        assert not agent.says("Traceback")

    def test_pickle(self) -> None:
        """An app that uses pickle gets an error that says what to change."""
        app = OrchestraCelery("doors", set_as_current=False, changes={"task_serializer": "pickle"})

        with pytest.raises(ConfigurationError, match="task_serializer names pickle"):
            app.conf.task_serializer  # noqa: B018  # reading it configures the app


def test_nothing_hangs_behind_a_lost_agent(fleet: Agents, redis_url: str) -> None:
    """An agent killed with SIGKILL is not alive after five silent beats."""
    fleet.write_app(TestAgents.APP)
    app = OrchestraCelery("doors", broker=redis_url, set_as_current=False)
    agent = fleet.start(name="victim")
    assert [True] == [one.alive for one in Orchestra(app).agents()]

    agent.process.kill()

    wait_until(lambda: [False] == [one.alive for one in Orchestra(app).agents()], seconds=10)
