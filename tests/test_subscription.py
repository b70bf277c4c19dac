"""Which queues a worker consumes from."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from orchestra.capabilities import CapabilitySet
from orchestra.subscription import Subscription, needed_queues, queues_of
from tests.fleets import app_at

NOWHERE = "redis://127.0.0.1:1/0"


@pytest.fixture
def app() -> Iterator[Any]:
    """Give an app with one task that requires something; nothing here needs its Redis."""
    with app_at(NOWHERE) as app:

        @app.task(name="shop.index", requires={"nlp"}, shared=False)
        def index() -> None: ...

        yield app


class Consumer:
    """What a subscription asks of Celery's consumer."""

    def __init__(self, *names: str) -> None:
        self.task_consumer: Any = SimpleNamespace(queues=[SimpleNamespace(name=name) for name in names])

    def add_task_queue(self, name: str) -> None:
        """Read a queue as well."""
        self.task_consumer.queues.append(SimpleNamespace(name=name))

    def cancel_task_queue(self, name: str) -> None:
        """Stop reading a queue."""
        self.task_consumer.queues = [queue for queue in self.task_consumer.queues if queue.name != name]


def subscription(app: Any, capabilities: str | None = "nlp,gpu") -> Subscription:
    """Return the subscription of a worker with these capabilities."""
    return Subscription(app, None if capabilities is None else CapabilitySet.parse(capabilities))


class TestNeeded:
    def test_own_tasks_and_general(self, app: Any) -> None:
        """The app's own tasks tell which queues there have to be; general work always."""
        assert {"general", "nlp"} <= needed_queues(app)  # tasks of other apps in this process are shared


class TestServe:
    def test_what_is_satisfied(self, app: Any) -> None:
        """Queues that the capabilities satisfy are served, and no others."""
        consumer = Consumer()

        subscription(app).serve(consumer, ("gpu", "gpu+mem_gb~ge~16", "lang~eq~fr"))

        assert ["shop:gpu", "shop:nlp"] == queues_of(consumer)

    def test_what_is_gone(self, app: Any) -> None:
        """A queue that the fleet has forgotten is left; those of a project's own stay."""
        consumer = Consumer("shop:gpu", "shop:nlp", "mine")

        subscription(app).serve(consumer, ())

        assert ["mine", "shop:nlp"] == queues_of(consumer)

    def test_between_two_connections(self, app: Any) -> None:
        """News of queues that arrive while there is no consumer are left; the next registration brings them again."""
        consumer = Consumer()
        consumer.task_consumer = None

        subscription(app).serve(consumer, ("nlp", "gpu"))

        assert [] == queues_of(consumer)

    def test_chosen_queues_alone(self, app: Any) -> None:
        """Without capabilities nothing is served beside what the command line chose."""
        consumer = Consumer("mine")

        subscription(app, None).serve(consumer, ("nlp", "general"))

        assert ["mine"] == queues_of(consumer)


class TestDrain:
    def test_everything_is_left(self, app: Any) -> None:
        """A worker that drains leaves its queues, a project's own too, and takes on none that appear."""
        consumer, drained = Consumer("shop:nlp", "mine"), subscription(app)

        assert ["mine", "shop:nlp"] == drained.drain(consumer)
        drained.serve(consumer, ("gpu", "nlp"))

        assert [] == queues_of(consumer)
        assert drained.draining

    def test_twice_is_once(self, app: Any) -> None:
        """Draining again changes nothing: what is to be served afterwards isn't forgotten."""
        consumer, drained = Consumer("mine"), subscription(app)

        drained.drain(consumer)
        drained.drain(consumer)

        assert ["mine", "shop:nlp"] == drained.resume(consumer)

    def test_resumed_with_the_news(self, app: Any) -> None:
        """A worker that resumes serves what it left and what has appeared meanwhile."""
        consumer, drained = Consumer("shop:nlp"), subscription(app)
        drained.drain(consumer)
        drained.serve(consumer, ("gpu", "nlp"))

        assert ["shop:gpu", "shop:nlp"] == drained.resume(consumer)
        assert not drained.draining

    def test_resumed_without_a_drain(self, app: Any) -> None:
        """A worker that wasn't drained goes on as it was."""
        consumer, working = Consumer("shop:nlp"), subscription(app)
        working.serve(consumer, ("nlp",))

        assert ["shop:nlp"] == working.resume(consumer)
