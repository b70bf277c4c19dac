"""Real agents in threads of this process."""

import logging
from collections.abc import Iterator
from threading import Event, Thread, current_thread
from typing import Any

import pytest
from celery import current_app
from redis import Redis

from orchestra import Orchestra
from orchestra.embedded import EmbeddedServer
from orchestra.exceptions import ConfigurationError, PermanentError, ValidationError
from orchestra.local_agents import LocalAgent
from tests.fleets import app_at
from tests.processes import until


@pytest.fixture
def app(redis_url: str) -> Iterator[Any]:
    """Give an app with a task for each of two kinds of agents, which returns the name of its thread."""
    with app_at(redis_url) as app:
        for name in ("nlp", "gpu"):
            app.task(name=f"t.{name}", requires=name, shared=False)(_thread_name)
        yield app


def _thread_name() -> str:
    return current_thread().name


def alive(app: Any) -> list[str]:
    """List the live agents."""
    return [agent.name for agent in Orchestra(app).agents() if agent.alive]


def _waiting(client: Any, command: str) -> set[int]:
    """Return the ids of the connections that wait within a command."""
    found = client.client_list()
    return {int(one["id"]) for one in found if one["cmd"] == command and "b" in one["flags"]}


def _of_the_test() -> list[Any]:
    proxy: Any = current_app  # celery-types takes it for the app itself
    root = logging.getLogger()
    return [proxy._get_current_object(), root.level, *root.handlers]


class TestStart:
    def test_is_a_real_agent(self, app: Any) -> None:
        """It has joined when `start` returns, serves what its capabilities satisfy, and runs what is sent."""
        with LocalAgent.start(app, "nlp,mem_gb=64", name="text@here") as agent:
            (known,) = Orchestra(app).agents()

            assert ("text@here", "mem_gb=64,nlp", ("shop:nlp",)) == (agent.name, known.capabilities, known.queues)
            assert "text@here" == app.tasks["t.nlp"].delay().get(timeout=10)
        assert [] == alive(app)

    def test_general_is_the_default(self, app: Any) -> None:
        """Without capabilities it serves general work, and options are Celery's own."""
        with LocalAgent.start(app, concurrency=3):
            assert [("general", 3)] == [(one.capabilities, one.concurrency) for one in Orchestra(app).agents()]

    def test_several_side_by_side(self, app: Any) -> None:
        """Agents of one app run together, and one may leave before the others."""
        with LocalAgent.start(app, "nlp", name="a@here"), LocalAgent.start(app, "gpu", name="b@here") as b:
            results = [app.tasks[name].delay() for name in ("t.gpu", "t.nlp", "t.gpu", "t.nlp")]
            assert ["b@here", "a@here", "b@here", "a@here"] == [result.get(timeout=10) for result in results]

            b.stop()

            assert ["a@here"] == alive(app)
            assert "a@here" == app.tasks["t.nlp"].delay().get(timeout=10)
            waiting = app.tasks["t.gpu"].delay()
        assert not waiting.ready()

    def test_their_tasks_say_who_ran_them(self, app: Any) -> None:
        """A task's record names its agent, as that of an agent of its own process does."""
        with LocalAgent.start(app, "nlp", name="a@here"), LocalAgent.start(app, "gpu", name="b@here"):
            results = [app.tasks[name].delay() for name in ("t.gpu", "t.nlp")]
            for result in results:
                result.get(timeout=10)

        assert ["b@here", "a@here"] == [app.state.read(result.id).agent for result in results]

    def test_one_after_the_other(self, app: Any) -> None:
        """An agent leaves nothing behind that the next one trips over."""
        for _ in range(3):
            with LocalAgent.start(app, "gpu"):
                assert "agent@local" == app.tasks["t.gpu"].delay().get(timeout=10)

    def test_the_tests_own_things_stay(self, app: Any) -> None:
        """Neither the current app nor the test's logging is touched."""
        before = _of_the_test()

        with LocalAgent.start(app):
            pass

        assert before == _of_the_test()

    def test_capabilities_that_cannot_be_read(self, app: Any) -> None:
        """Wrong text is refused before anything is started."""
        with pytest.raises(ValidationError, match="'gpu!' is no capability"):
            LocalAgent.start(app, "gpu!")
        assert [] == alive(app)

    @pytest.mark.parametrize("option", ["pool", "pool_cls"])
    @pytest.mark.parametrize("pool", ["threads", "prefork", None])
    def test_another_pool(self, app: Any, option: str, pool: str | None) -> None:
        """A pool that would never run a task is refused before anything is started."""
        options: dict[str, Any] = {option: pool}
        with pytest.raises(ConfigurationError, match=rf"can't have {option}={pool!r}: it runs tasks in its own thread"):
            LocalAgent.start(app, "nlp", name="a@here", **options)
        assert [] == alive(app)

    def test_the_pool_that_it_has(self, app: Any) -> None:
        """Its own pool may be named."""
        with LocalAgent.start(app, "nlp", pool="solo"):
            assert "agent@local" == app.tasks["t.nlp"].delay().get(timeout=10)

    def test_a_name_that_is_taken(self, app: Any, caplog: pytest.LogCaptureFixture) -> None:
        """An agent that can't join says so, and the one that is there goes on."""
        with LocalAgent.start(app, "nlp", name="a@here"):
            with pytest.raises(PermanentError, match="Agent a@here did not start"):
                LocalAgent.start(app, "nlp", name="a@here")

            assert "a@here" == app.tasks["t.nlp"].delay().get(timeout=10)
        assert "An agent named a@here is alive" in caplog.text


class TestStop:
    def test_lets_the_task_in_hand_end(self, app: Any) -> None:
        """A task that has begun is finished before the agent leaves."""
        begun, go_on = Event(), Event()

        @app.task(name="t.long", requires="nlp", shared=False)
        def long() -> str:
            begun.set()
            assert go_on.wait(10)
            return "done"

        with LocalAgent.start(app, "nlp"):
            result = long.delay()
            assert begun.wait(10)
            go_on.set()

        assert "done" == result.get(timeout=10)

    def test_what_is_done_stays_done(self, app: Any, redis_url: str) -> None:
        """Whoever has a result may stop its agent at once: the message is acknowledged, and comes to no other agent."""
        with Redis.from_url(redis_url) as client:
            for _ in range(10):
                with LocalAgent.start(app, "nlp"):
                    app.tasks["t.nlp"].delay().get(timeout=10)

                assert (0, 0) == (client.hlen("unacked"), client.llen("shop:nlp"))

    def test_twice(self, app: Any) -> None:
        """Stopping what has stopped does no harm."""
        agent = LocalAgent.start(app)

        agent.stop()
        agent.stop()

        assert [] == alive(app)

    def test_leaves_no_connection(self, app: Any, redis_url: str) -> None:
        """Once agent and app are closed, the server has no client but the one that asks."""
        with LocalAgent.start(app, "nlp"):
            app.tasks["t.nlp"].delay().get(timeout=10)
        app.close()

        with Redis.from_url(redis_url) as client:
            assert 1 == len(client.client_list())

    @pytest.mark.parametrize("command", ["blpop", "brpop"])
    def test_ends_looks_at_queues(self, app: Any, redis_url: str, command: str) -> None:
        """An agent that leaves doesn't wait out its look at an empty queue, by whichever command it looks."""
        with Redis.from_url(redis_url) as client, Redis.from_url(redis_url) as looking, LocalAgent.start(app) as agent:
            known = looking.client_id()
            look = Thread(target=getattr(looking, command), args=(["nothing"], 60), daemon=True)
            look.start()
            until(lambda: known in _waiting(client, command))

            agent.stop()

            look.join(10)
            assert not look.is_alive()

    def test_without_a_server(self) -> None:
        """An agent whose server is gone is stopped as well."""
        told = {"worker_cancel_long_running_tasks_on_connection_loss": True}  # else Celery warns
        with EmbeddedServer.start() as server, app_at(server.url, changes=told) as app:
            agent = LocalAgent.start(app)
            server.kill()

            agent.stop()

            assert not agent.running
