"""What an agent does with a task that it doesn't know."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery.exceptions import NotRegistered
from redis import Redis

from orchestra.capabilities import Requirement
from orchestra.queues import CapabilityQueue
from orchestra.request import OrchestraConsumer
from orchestra.types import TaskState
from tests.fleets import agent_of, app_at, stock_at
from tests.processes import until


@pytest.fixture
def client(redis_url: str) -> Iterator[Redis]:
    """Give a client of the test's own."""
    with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def app(redis_url: str) -> Iterator[Any]:
    """Give an app that knows one task."""
    with app_at(redis_url) as app:

        @app.task(name="shop.index", requires={"nlp"}, shared=False)
        def index(number: int = 0) -> int:
            return number

        yield app


def _depths(app: Any, *names: str) -> list[int]:
    depths: list[int] = app.registry.depths(names, steps=app.priority_steps)
    return depths


class TestHandOn:
    def test_to_agents_that_know_the_task(self, app: Any, client: Redis, caplog: pytest.LogCaptureFixture) -> None:
        """A message that an agent can't run moves to a queue for its requirement and its task, and is in no other."""
        with agent_of(app, "nlp") as worker:
            assert isinstance(worker.consumer, OrchestraConsumer)
            unknown = app.send_task("shop.later", (3,), requires="nlp", urgency="high")
            until(lambda: _depths(app, "shop:nlp@shop.later") == [1], seconds=10)

            assert 7 == app.tasks["shop.index"].delay(7).get(timeout=10)  # the agent goes on
            until(lambda: client.hlen("unacked") == 0, seconds=10)
        assert [0] == _depths(app, "shop:nlp")
        assert 1 == client.llen("shop:nlp@shop.later\x06\x163")
        assert "nlp@shop.later" in app.registry.queues()
        assert "task handed on" in caplog.text
        assert TaskState.SUBMITTED is app.state.read(unknown.id).state

        @app.task(name="shop.later", shared=False)
        def later(number: int) -> int:
            return 10 * number

        with agent_of(app, "nlp"):  # the next version of the agent
            assert 30 == unknown.get(timeout=10)

    def test_general_work_too(self, app: Any) -> None:
        """The default queue is one of the fleet's: a general task waits for an agent that knows it."""
        with agent_of(app):
            app.send_task("shop.later", (3,))

            until(lambda: _depths(app, "shop:general@shop.later") == [1], seconds=10)

    def test_what_a_stock_producer_sent(self, app: Any, redis_url: str) -> None:
        """A message of a stock producer is handed on like any other."""
        with stock_at(redis_url) as stock, agent_of(app, "nlp"):
            stock.send_task("shop.later", (3,), queue="shop:nlp")

            until(lambda: _depths(app, "shop:nlp@shop.later") == [1], seconds=10)

    def test_queues_of_the_project_stay_celerys(self, app: Any) -> None:
        """In a queue that a project routes to itself an unknown task fails, as in Celery."""
        app.amqp.queues.select_add("mine")
        with agent_of(app):
            result = app.send_task("shop.later", queue="mine")

            with pytest.raises(NotRegistered):
                result.get(timeout=10)
        assert TaskState.FAILED is app.state.read(result.id).state

    def test_a_queue_of_handed_on_tasks_is_the_end(self, app: Any) -> None:
        """An agent that serves such a queue and doesn't know the task either fails it: nothing goes round."""
        queues = "shop:nlp@shop.later", "shop:GPU"  # no queue of ours is called like the second
        with agent_of(app, queues=list(queues)):
            for queue in queues:
                with pytest.raises(NotRegistered):
                    app.send_task("shop.later", queue=queue).get(timeout=10)

    def test_other_transports(self, app: Any) -> None:
        """A message that came by another transport than ours is left to Celery."""
        message = SimpleNamespace(channel=object(), delivery_info={"routing_key": "shop:nlp"})
        consumer = SimpleNamespace(app=app)

        assert OrchestraConsumer._source(consumer, message) is None  # type: ignore[arg-type]  # all that it asks for

    def test_a_delivery_that_was_lost(self, app: Any, client: Redis) -> None:
        """A message whose delivery was given to another agent is not handed on a second time."""
        with app.connection_for_read() as connection:
            app.send_task("shop.later", requires="nlp")
            queue = connection.SimpleQueue(app.amqp.queues["shop:nlp"])
            message = queue.get(timeout=5)
            client.delete("unacked")
            target = CapabilityQueue(Requirement.parse("nlp"), "shop.later")

            assert not message.channel.hand_on(message, target)
            queue.close()
        assert [0] == _depths(app, "shop:nlp@shop.later")
