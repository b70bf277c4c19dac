"""What an agent makes of the messages that it fetched, and does with a task that it doesn't know."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
from billiard.einfo import ExceptionInfo
from celery.exceptions import NotRegistered, Reject
from celery.worker import request as celery_request
from celery.worker import state as worker_state
from kombu import Message
from redis import Redis

from orchestra.capabilities import Requirement
from orchestra.exceptions import PermanentError
from orchestra.queues import CapabilityQueue
from orchestra.request import OrchestraConsumer, OrchestraRequest, lease_holder_of
from orchestra.store import Keys
from orchestra.task import OrchestraTask
from orchestra.types import TaskState
from tests.dead import letters_in
from tests.fleets import agent_of, app_at, stock_at
from tests.processes import until
from tests.readers import Reader, reader_at

KEYS = Keys("orchestra", "shop")
QUEUE = "shop:nlp"


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
            (lease,) = client.scan_iter("*:leases:*")
            client.delete(lease)
            target = CapabilityQueue(Requirement.parse("nlp"), "shop.later")

            assert not message.channel.hand_on(message, target)
            queue.close()
        assert [0] == _depths(app, "shop:nlp@shop.later")


class Pool:
    """What requests ask of Celery's pool."""

    def __init__(self, *, can_end_tasks: bool = True) -> None:
        self.applied: list[dict[str, Any]] = []
        self.ended: list[int] = []
        self._can_end_tasks = can_end_tasks

    def apply_async(self, target: object, **options: Any) -> None:
        """Take a task."""
        self.applied.append(options)

    def terminate_job(self, pid: int, signal: object) -> None:
        """End a task, as the prefork pool does and the others can't."""
        if not self._can_end_tasks:
            raise NotImplementedError
        self.ended.append(pid)


def _failed(error: Exception) -> ExceptionInfo:
    try:
        raise error
    except type(error):
        return ExceptionInfo()


class TestRequest:
    @pytest.fixture
    def reader(self, app: Any) -> Iterator[Reader]:
        """Give an agent's reader of the shop's queue."""
        with reader_at(app, slots=1) as reader:
            reader.consume(QUEUE)
            yield reader

    @pytest.fixture
    def make(self, app: Any, reader: Reader) -> Iterator[Callable[..., Any]]:
        """Give what sends a task, fetches its message and makes the request that the agent's worker would."""
        derive = vars(celery_request)["create_request_cls"]  # which celery-types doesn't know
        requests: list[Any] = []

        def make(*, acks_late: bool = True, **options: Any) -> Any:
            task = app.tasks["shop.index"]
            task.acks_late = acks_late
            task.apply_async((7,), **options)
            known = len(reader.messages)
            reader.until(lambda: len(reader.messages) > known)
            message = reader.messages[-1]
            made = derive(OrchestraRequest, task, Pool(), "text@a", None, app=app)
            acknowledging = {"on_ack": message.ack_log_error, "on_reject": message.reject_log_error}
            requests.append(made(message, app=app, task=task, hostname="text@a", **acknowledging))
            return requests[-1]

        yield make
        for request in requests:
            worker_state.task_ready(request)  # which Celery counts for the whole process

    @staticmethod
    def said(reader: Reader) -> list[str]:
        """Return what there is to tell of the reader's leases."""
        return [word.kind for word in reader.holder.news()]

    def test_a_delayed_one_has_waited(self, make: Callable[..., Any]) -> None:
        """A message with an eta comes when it's due, and no timer of the worker's has it wait again."""
        request = make(eta=datetime(2020, 1, 1, tzinfo=UTC))

        assert request.request_dict["eta"].startswith("2020")
        assert request.eta is None

    def test_one_of_another_transport(self, app: Any) -> None:
        """Where nobody leases, the worker's timer has it wait, and nothing is noted."""
        headers = {"id": "1", "task": "shop.index", "eta": "2020-01-01T00:00:00+00:00"}
        message = Message(
            body="[[], {}, {}]", headers=headers, content_type="application/json", content_encoding="utf8"
        )
        request = OrchestraRequest(message, app=app, hostname="text@a")

        assert datetime(2020, 1, 1, tzinfo=UTC) == request.eta
        request.note_run_time(1.0)
        request.let_acknowledgement_wait()

    def test_at_most_once_is_in_hand_while_it_runs(self, make: Callable[..., Any], reader: Reader) -> None:
        """Its lease ends with its start, not with its acceptance by a process; the hand lets it go with its end."""
        request = make(acks_late=False)

        request.on_accepted(4711, 0.0)
        assert (1, [], False) == (reader.channel.qos.in_hand, self.said(reader), request.acknowledged)

        request.on_success((0, "7", 0.1))
        assert (0, ["settle"], True) == (reader.channel.qos.in_hand, self.said(reader), request.acknowledged)

    @pytest.mark.parametrize("end", ["failure", "time limit", "failed success"])
    def test_at_most_once_is_let_go_by_every_end(self, make: Callable[..., Any], reader: Reader, end: str) -> None:
        """Whatever its end is, it's no longer in hand afterwards."""
        request = make(acks_late=False)
        request.on_accepted(4711, 0.0)

        if end == "failure":
            request.on_failure(_failed(PermanentError("no")))
        elif end == "time limit":
            request.on_timeout(False, 1.0)
        else:
            request.on_success((1, _failed(PermanentError("no")), 0.1))

        assert (0, ["settle"]) == (reader.channel.qos.in_hand, self.said(reader))

    def test_at_most_once_that_did_not_begin(self, make: Callable[..., Any], reader: Reader) -> None:
        """One whose start was refused goes back to its queue, and isn't taken for done."""
        request = make(acks_late=False)
        request.on_accepted(4711, 0.0)

        request.on_failure(_failed(Reject("not now", requeue=True)))

        assert (0, ["release"]) == (reader.channel.qos.in_hand, self.said(reader))

    def test_a_soft_time_limit_is_no_end(self, make: Callable[..., Any], reader: Reader) -> None:
        """A task that was reminded of its time runs on."""
        request = make(acks_late=False)
        request.on_accepted(4711, 0.0)

        request.on_timeout(True, 1.0)

        assert (1, []) == (reader.channel.qos.in_hand, self.said(reader))

    @pytest.mark.parametrize(
        ("chord", "failed", "urgent"), [(False, False, False), (False, True, True), (True, False, True)]
    )
    def test_which_acknowledgements_may_wait(
        self, make: Callable[..., Any], reader: Reader, chord: bool, failed: bool, urgent: bool
    ) -> None:
        """That of a success does, which its record tells of; not a failure's, nor that of a part of a chord."""
        request = make(chord={"task": "shop.total", "options": {}} if chord else None)

        request.on_success((1, _failed(PermanentError("no")), 0.1) if failed else (0, "7", 0.1))

        assert (["settle"], urgent) == (self.said(reader), reader.holder.hurry)

    @pytest.mark.parametrize(("stored", "word"), [(True, "settle"), (False, "release")])
    def test_an_end_by_another_server(
        self, make: Callable[..., Any], reader: Reader, app: Any, stored: bool, word: str
    ) -> None:
        """What began by a server that is gone is done with once this one has its result, and else runs again."""
        request = make()
        reader.holder.changed_server("second")
        if stored:
            app.backend.store_result(request.id, 7, "SUCCESS")

        request.on_success((0, "7", 0.1))

        assert [word] == self.said(reader)

    def test_an_end_without_a_result(self, make: Callable[..., Any], reader: Reader) -> None:
        """Of a task that stores none, nothing is looked for."""
        request = make(ignore_result=True)
        reader.holder.changed_server("second")

        request.on_success((0, "7", 0.1))

        assert ["settle"] == self.said(reader)

    def test_an_end_where_nobody_can_be_asked(self, make: Callable[..., Any], reader: Reader, app: Any) -> None:
        """While the result can't be looked for, it isn't taken for granted."""
        request = make()
        reader.holder.changed_server("second")
        with app_at("redis://127.0.0.1:1/0") as nowhere:
            request.task.backend = nowhere.backend

            request.on_success((0, "7", 0.1))

        assert ["release"] == self.said(reader)

    def test_run_times_are_noted(self, make: Callable[..., Any], reader: Reader) -> None:
        """The time that a task took sizes the next fetches, whether it succeeded or failed."""
        assert 1 == reader.holder.bound()

        make().on_success((0, "7", 0.125))
        assert (0.125, 1 + 2) == (reader.holder.pace.mean_seconds, reader.holder.bound())
        make().on_success((1, _failed(PermanentError("no")), 0.125 + 8))
        assert 0.125 + 1 == reader.holder.pace.mean_seconds
        make().on_success((0, "7", None))  # Celery doesn't know it of one that succeeded before its process was lost
        assert 0.125 + 1 - 1.125 / 8 == reader.holder.pace.mean_seconds

    @pytest.mark.parametrize("can_end_tasks", [True, False])
    def test_a_cold_stop(self, make: Callable[..., Any], can_end_tasks: bool) -> None:
        """A pool that can end a task does; with another one the task goes on."""
        pool, request = Pool(can_end_tasks=can_end_tasks), make()
        request.on_accepted(4711, 0.0)

        request.cancel(pool)

        assert ([4711] if can_end_tasks else []) == pool.ended


class TestHolder:
    def test_of_a_worker(self, app: Any) -> None:
        """An agent's holder follows its pool's size, and knows whether a task runs and whether it's to stop."""
        worker = SimpleNamespace(hostname="text@a", app=app, consumer=SimpleNamespace(pool=SimpleNamespace()))
        holder = lease_holder_of(worker)
        worker.consumer.pool.num_processes = 3
        assert ("text@a", 3) == (holder.agent, holder.bound())
        worker.max_concurrency = 8  # what it may grow to
        assert 8 == holder.bound()

        assert (False, False) == (holder.busy(), holder.stopping())
        flags: Any = worker_state
        flags.should_stop = 0  # an exit code
        try:
            assert holder.stopping()
        finally:
            flags.should_stop = None

    def test_nothing_ahead_where_celery_is_told_so(self, redis_url: str) -> None:
        """`worker_disable_prefetch` keeps an agent from holding more than it runs."""
        with app_at(redis_url, changes={"worker_disable_prefetch": True}) as app:
            worker = SimpleNamespace(hostname="text@a", app=app, consumer=None)

            assert 0 == lease_holder_of(worker).pace.most_ahead


class TestDeadLetters:
    @pytest.mark.parametrize(
        ("message", "error"),
        [
            ({"headers": {}, "body": "{}"}, "no task's message"),
            ({"headers": None, "body": "[1]"}, "no task's message"),
            ({"headers": {}, "body": "{no json"}, "DecodeError"),
            ({"headers": {"id": "1", "task": "shop.index"}, "body": "{no json"}, "DecodeError"),
            ({"headers": {"id": "1", "task": "shop.index", "eta": "soon"}, "body": "[[], {}, {}]"}, "Error"),
            ({"headers": {"id": "1", "task": "shop.index"}, "body": "[[], {}]"}, "Error"),
            ({"headers": {"id": "1", "task": "shop.index"}, "body": "[{}, [], {}]"}, "Error"),
            ({"headers": {"id": 1, "task": "shop.index"}, "body": "[[], {}, {}]"}, "Error"),
            ({"headers": {"id": "1", "task": "shop.index", "timelimit": 5}, "body": "[[], {}, {}]"}, "Error"),
            ({"headers": {"id": "1", "task": ["shop.index"]}, "body": "[[], {}, {}]"}, "Error"),
            (
                {"headers": {"id": "1", "task": "shop.index"}, "body": "x", "content-type": "application/x-python"},
                "",
            ),
        ],
    )
    def test_what_no_agent_could_run(self, app: Any, client: Any, message: dict[str, Any], error: str) -> None:
        """What isn't a task's message, can't be read or breaks the rules goes to the dead letters, whole."""
        properties = {"delivery_tag": "1", "delivery_info": {"exchange": "", "routing_key": QUEUE}, "priority": 0}
        plain = {"content-type": "application/json", "content-encoding": "utf-8", "properties": properties}
        raw = json.dumps({**plain, **message})
        with agent_of(app, "nlp"):
            client.lpush(QUEUE, raw)
            until(lambda: client.zcard(KEYS.dead_letters), seconds=10)

            assert 7 == app.tasks["shop.index"].delay(7).get(timeout=10)  # the agent goes on
        (letter,) = letters_in(client, KEYS)
        assert (QUEUE, "undecodable", raw.encode()) == (letter.queue, letter.reason, letter.message)
        assert error in str(letter.error)
        assert 0 == client.exists(KEYS.leased(QUEUE), QUEUE)


class TestWhatWaits:
    def test_for_its_rate_limit(self, app: Any, client: Any) -> None:
        """A task that waits at an agent for its rate limit stays there: an idle one would only wait with it."""
        ran: list[int] = []

        @app.task(name="shop.paced", rate_limit="1/h", shared=False)
        def paced(number: int) -> None:
            ran.append(number)

        with agent_of(app, name="one@test"):
            for number in (1, 2):
                paced.delay(number)
            until(lambda: [1e12] == _scores(client), seconds=10)
            assert [1] == ran
        assert 1 == client.llen("celery\x06\x166")  # given back by the agent that left

    def test_a_call_of_its_own(self, app: Any) -> None:
        """A task that may start itself without our word is nobody else's from the moment when it's handed over."""
        ran, again = [], Event()

        class Own(OrchestraTask):
            abstract = True

            def __call__(self, *args: Any, **kwargs: Any) -> Any:
                ran.append(args)
                if len(ran) > 1:
                    again.set()
                again.wait(2.0)  # in which an idle agent would take it over
                return self.run(*args, **kwargs)

        @app.task(name="shop.own", base=Own, shared=False)
        def own(number: int) -> int:
            return number

        with agent_of(app, name="one@test"), agent_of(app, name="two@test"):
            assert 3 == own.delay(3).get(timeout=10)

        assert [(3,)] == ran


def _scores(client: Any) -> list[float]:
    return [score for _, score in client.zrange(KEYS.leased("celery"), 0, -1, withscores=True)]
