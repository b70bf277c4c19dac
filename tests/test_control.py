"""Draining and resuming live agents."""

from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest

from orchestra.agent import AgentManager
from orchestra.exceptions import ValidationError
from orchestra.orchestra import Orchestra
from tests.fleets import agent_of, app_at
from tests.processes import until

ABOUT = {"capabilities": "nlp", "host": "box", "pid": 1, "pool": "solo", "concurrency": 1, "version": "1"}


@pytest.fixture
def app(redis_url: str) -> Iterator[Any]:
    """Give an app with a task that requires something."""
    with app_at(redis_url) as app:

        @app.task(name="shop.index", requires={"nlp"}, shared=False)
        def index(number: int) -> int:
            return number

        yield app


class TestDrain:
    def test_takes_no_more_and_resumes(self, app: Any) -> None:
        """A drained agent lives, serves nothing and leaves tasks where they are, until it resumes."""
        orchestra = Orchestra(app)
        with agent_of(app, "nlp", name="text@test"):
            assert {"text@test": 0} == orchestra.drain(["text"])
            (agent,) = orchestra.agents()
            assert (True, True, ()) == (agent.alive, agent.draining, agent.queues)

            waiting = orchestra.submit("shop.index", {"number": 4})
            # A look at the queues that was under way takes it once more, and puts it back.
            until(lambda: 1 == sum(queue.depth for queue in orchestra.queues()))
            assert ["text@test"] == orchestra.resume(["text@test"])

            assert 4 == waiting.get(timeout=10)
            until(lambda: ("shop:nlp",) == orchestra.agents()[0].queues)
            assert not orchestra.agents()[0].draining

    def test_by_celerys_command(self, app: Any) -> None:
        """`celery control` knows both commands; an agent answers with what it left, and with what it serves."""
        with agent_of(app, "nlp", name="text@test"):
            drained = app.control.broadcast("drain", reply=True, timeout=5, limit=1)
            resumed = app.control.broadcast("resume", reply=True, timeout=5, limit=1)

        assert [{"text@test": {"ok": "left shop:nlp"}}] == drained
        assert [{"text@test": {"ok": "serves shop:nlp"}}] == resumed


class TestNamed:
    def test_nobody(self, app: Any) -> None:
        """Where no agent runs the error says so."""
        with pytest.raises(ValidationError, match=r"No live agent is named 'text': none is running\."):
            AgentManager(app).drain(["text"])

    def test_nearest(self, app: Any) -> None:
        """A name that is nearly right gets the right one."""
        with agent_of(app, "nlp", name="text@test"):
            manager = AgentManager(app)

            with pytest.raises(ValidationError, match=r"named 'texd@test': there are text@test\."):
                manager.resume(["texd@test"])

            for name in ("text", "text@test", "t*", "*"):
                assert ["text@test"] == [agent.name for agent in manager.named([name])]

    def test_a_deadline(self, app: Any) -> None:
        """What isn't drained in time is told with what it has in hand, which is something while it hasn't heard."""
        app.registry.register("deaf@test", "1", about=ABOUT, tasks={}, queues=[])
        ticks = count()

        held = AgentManager(app).drain(["deaf"], timeout_seconds=9, clock=lambda: next(ticks), sleep=lambda _: None)

        assert {"deaf@test": 1} == held
        assert next(ticks) < 40

    def test_one_that_left(self, app: Any) -> None:
        """An agent that leaves the fleet while it's waited for has nothing in hand any more."""
        app.registry.register("text@test", "1", about=ABOUT, tasks={}, queues=[])

        held = AgentManager(app).drain(["text"], sleep=lambda _: app.registry.retire("text@test", "1"))

        assert {"text@test": 0} == held
