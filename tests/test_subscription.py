"""Which queues a worker consumes from."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from orchestra.capabilities import CapabilitySet
from orchestra.leases import Lease, LeaseHolder
from orchestra.subscription import Subscription, hand_back, needed_queues, queues_of
from tests.fleets import app_at
from tests.readers import LETTERS, Reader, put, reader_at
from tests.transit import Transit, transit_at

NOWHERE = "redis://127.0.0.1:1/0"


@pytest.fixture
def app() -> Iterator[Any]:
    """Give an app with one task that requires something; nothing here needs its Redis."""
    with app_at(NOWHERE) as app:

        @app.task(name="shop.index", requires={"nlp"}, shared=False)
        def index() -> None: ...

        yield app


@pytest.fixture
def transit(redis_url: str) -> Iterator[Transit]:
    """Give the shop's messages."""
    with transit_at(redis_url) as transit:
        yield transit


class Consumer:
    """What a subscription asks of Celery's consumer."""

    def __init__(self, *names: str) -> None:
        self.in_hand: set[int] = set()  # numbers of leases
        qos = SimpleNamespace(forget=self._forget)
        queues = [SimpleNamespace(name=name) for name in names]
        self.task_consumer: Any = SimpleNamespace(queues=queues, channel=SimpleNamespace(qos=qos))
        self.controller = SimpleNamespace(lease_holder=LeaseHolder(agent="text@a"))

    def _forget(self, numbers: set[int]) -> None:
        self.in_hand -= numbers

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


class TestHandingBack:
    @pytest.fixture
    def app(self, redis_url: str) -> Iterator[Any]:
        """Give an app on an empty server."""
        with app_at(redis_url) as app:
            yield app

    def test_what_has_not_started(self, app: Any, transit: Transit) -> None:
        """A worker that drains gives back what hasn't started, for others to take; what runs stays in its hand."""
        consumer = Consumer("shop:nlp")
        holder = consumer.controller.lease_holder
        running, waiting = transit.lease(holder, "at work"), transit.lease(holder, "in wait")
        transit.start(running)
        consumer.in_hand = {running.number, waiting.number}

        subscription(app).drain(consumer)

        assert ["in wait"] == transit.waiting()
        assert {running.number} == consumer.in_hand

    def test_once_more(self, app: Any, transit: Transit) -> None:
        """What a fetch brought that was under way when the worker was drained goes back when it's told again."""
        consumer, drained = Consumer("shop:nlp"), subscription(app)
        drained.drain(consumer)
        transit.lease(consumer.controller.lease_holder, "letter")

        drained.drain(consumer)

        assert ["letter"] == transit.waiting()

    @pytest.mark.parametrize("ending", [False, True])
    def test_before_the_end(self, app: Any, transit: Transit, ending: bool) -> None:
        """A worker that is about to stop fetches nothing more; one that merely drains may be resumed."""
        consumer = Consumer("shop:nlp")
        holder = consumer.controller.lease_holder
        session = holder.next_session()

        subscription(app).drain(consumer, ending=ending)

        assert ending == (transit.fetch(holder, session=session) is None)

    def test_between_two_connections(self, app: Any, transit: Transit) -> None:
        """A worker that has no connection to consume by gives back all the same."""
        consumer = Consumer()
        consumer.task_consumer = None
        transit.lease(consumer.controller.lease_holder, "letter")

        assert [] == subscription(app).drain(consumer)

        assert ["letter"] == transit.waiting()

    def test_all_at_the_end(self, app: Any, transit: Transit) -> None:
        """Who leaves for good gives back what runs as well; what was acknowledged until then isn't given back."""
        holder = LeaseHolder(agent="text@a")
        leases = [transit.lease(holder, letter) for letter in ("at work", "in wait", "done")]
        transit.start(leases[0])
        holder.say("settle", leases[2])

        assert {leases[0].number, leases[1].number} == hand_back(app, holder, leaving=True)
        assert ["at work", "in wait"] == transit.waiting()

    def test_where_nobody_can_be_told(self, caplog: pytest.LogCaptureFixture) -> None:
        """An agent whose Redis is away drains all the same; what it holds, the others find by its silence."""
        holder = LeaseHolder(agent="text@a")
        holder.say("settle", Lease(holder.name, 1, LETTERS))
        with app_at(NOWHERE) as app:
            assert set() == hand_back(app, holder)

        assert "tasks not given back" in caplog.text
        assert 1 == holder.untold


class TestDoing:
    def test_done_when_redis_knows(self, redis_url: str) -> None:
        """A worker that drains has something to do until Redis knows the end of all that it fetched."""
        with app_at(redis_url) as app, reader_at(app, slots=2) as reader:
            put(app, "a")
            reader.consume()
            reader.read(1)
            working, worker = subscription(app), self._worker(reader)
            assert (0, False) == self._doing(working, worker)
            working.drain(worker)
            reader.messages[0].ack()  # of a lease that was given back: there's a word to tell all the same

            assert (1, True) == self._doing(working, worker)
            reader.settle()
            assert (0, True) == self._doing(working, worker)

    def test_how_long_tasks_take(self, redis_url: str) -> None:
        """What the leases go by is told to the fleet as well."""
        with app_at(redis_url) as app, reader_at(app, slots=2) as reader:
            reader.consume()
            working, worker = subscription(app), self._worker(reader)
            assert working.doing(worker).mean_seconds is None
            reader.holder.pace.note(0.5)

            assert 0.5 == working.doing(worker).mean_seconds

    @staticmethod
    def _doing(working: Subscription, worker: Any) -> tuple[int, bool]:
        doing = working.doing(worker)
        return doing.running, doing.draining

    @staticmethod
    def _worker(reader: Reader) -> Any:
        """Return what a subscription asks of Celery's consumer, over a true connection."""
        return SimpleNamespace(
            task_consumer=reader.consumers[LETTERS],
            controller=SimpleNamespace(lease_holder=reader.holder),
            cancel_task_queue=reader.cancel,
        )
