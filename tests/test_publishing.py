"""How a task's message is sent: in one step, once however often it is attempted, and put by until it's due."""

import json
from base64 import b64decode
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from kombu import Exchange, Queue
from redis import Redis

from orchestra.broker import SubmissionError
from orchestra.embedded import EmbeddedServer
from orchestra.orchestra import Orchestra
from orchestra.publishing import LostBatchError, PublishId
from orchestra.store import load_script, text_of
from orchestra.types import TaskState
from tests.fleets import app_at, commands_at, quick
from tests.proxies import Proxy, proxy_to

LIST = "shop:nlp\x06\x166"
DELAYED = "orchestra:{shop}:delayed:shop:nlp"


@pytest.fixture
def app(redis_url: str) -> Iterator[Any]:
    """Give an app with one task."""
    with app_at(redis_url) as app:
        _declare(app)
        yield app


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:  # Redis, whose types have every answer awaitable as well
    """Give a client of the test's own."""
    with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def proxy(redis_server: EmbeddedServer) -> Iterator[Proxy]:
    """Give a way to the server that can lose replies."""
    with proxy_to(redis_server.port) as proxy:
        yield proxy


@pytest.fixture
def far_app(redis_url: str, proxy: Proxy) -> Iterator[Any]:
    """Give an app behind the proxy, which has sent a message already."""
    with app_at(proxy.through(redis_url), settings=quick(connect_timeout_seconds=1.0)) as app:
        _declare(app).delay(0, 0)
        app.store.command("DEL", LIST)
        yield app


def _declare(app: Any) -> Any:
    @app.task(name="shop.add", requires={"nlp"}, shared=False)
    def add(x: int, y: int) -> int:
        return x + y

    return add


def _keys(client: Any) -> set[str]:
    return {text_of(key) for key in client.keys("*")}


class TestStep:
    def test_warm_submit_is_one_command(self, app: Any, redis_url: str) -> None:
        """Message, record and the queue's registration are written in one round trip, delayed or not."""
        add = app.tasks["shop.add"]
        add.delay(1, 2)
        add.apply_async((1, 2), countdown=60)

        with commands_at(redis_url) as commands:
            add.delay(1, 2)
            add.apply_async((1, 2), countdown=60)

        assert ["EVALSHA"] * 2 == [command.split()[0] for command in commands]

    def test_what_is_written(self, app: Any, client: Any) -> None:
        """The queue's list, a word for an idle agent, the record, and the table of queues, and nothing else."""
        result = app.tasks["shop.add"].delay(1, 2)

        record = app.state.read(result.id)
        assert {
            LIST,
            f"orchestra:{{shop}}:task:{result.id}",
            "orchestra:{shop}:queues",
            "orchestra:{shop}:queues:version",
            "orchestra:{shop}:wake:shop:nlp",
        } == _keys(client)
        assert ("shop.add", "nlp", "shop:nlp", TaskState.SUBMITTED) == (
            record.name,
            record.requires,
            record.queue,
            record.state,
        )

    def test_one_agent_is_woken(self, app: Any, client: Any) -> None:
        """One word is enough for messages that come together."""
        for _ in range(3):
            app.tasks["shop.add"].delay(1, 2)

        assert 1 == client.llen("orchestra:{shop}:wake:shop:nlp")

    def test_a_server_that_forgot_the_script(self, app: Any, client: Any) -> None:
        """The script is sent again, for one message and for many."""
        client.script_flush()
        app.tasks["shop.add"].delay(1, 2)
        client.script_flush()
        Orchestra(app).submit_many("shop.add", [{"x": 1, "y": 2}] * 3)

        assert 4 == client.llen(LIST)

    def test_messages_that_are_no_tasks(self, app: Any, client: Any) -> None:
        """Control messages and replies go kombu's way, and leave no record."""
        app.control.broadcast("shutdown", reply=False)
        with app.connection_for_write() as connection, connection.SimpleQueue("letters") as letters:
            letters.put({"hello": "world"})

        assert not any("task" in key for key in _keys(client))
        assert 1 == client.llen("letters")

    @pytest.mark.parametrize("prefix", ["", "pre:"])
    @pytest.mark.parametrize("batch", [False, True])
    def test_queues_that_expire(self, redis_url: str, client: Any, prefix: str, batch: bool) -> None:
        """A queue's `x-expires` is renewed with every message, in a batch and behind a key prefix as well."""
        queue = Queue("brief", Exchange(""), routing_key="brief", queue_arguments={"x-expires": 60_000})
        with app_at(redis_url, changes={"broker_transport_options": {"global_keyprefix": prefix}}) as app:
            app.amqp.queues.add(queue)
            with app.producer_pool.acquire() as producer:
                if batch:
                    with producer.batch():
                        app.send_task("celery.any", queue="brief", producer=producer)
                else:
                    app.send_task("celery.any", queue="brief", producer=producer)

        assert 0 < int(str(client.pttl(f"{prefix}brief\x06\x166"))) <= 60_000

    def test_urgency_is_the_step(self, app: Any, client: Any) -> None:
        """Each urgency has the list of its own step; kombu looks into step 0 first."""
        for urgency in ("critical", "high", "normal", "low"):
            app.tasks["shop.add"].apply_async((1, 2), urgency=urgency)

        steps = [key.partition("shop:nlp")[2] for key in sorted(_keys(client)) if key.startswith("shop:nlp")]
        assert ["", "\x06\x163", "\x06\x166", "\x06\x169"] == steps

    def test_numbers_and_empty_lists_keep_their_form(self, app: Any, client: Any) -> None:
        """No script rewrites a message: an empty list stays one, a float stays a float."""
        app.send_task("celery.any", ([], {}, 1.0, 12345678901234567890))

        raw = client.lindex("celery\x06\x166", 0)
        assert "[[], {}, 1.0, 12345678901234567890]" in b64decode(json.loads(raw)["body"]).decode()


class TestDelay:
    def test_a_message_that_is_not_due(self, app: Any, client: Any) -> None:
        """It waits in its queue's set, by its time, with the list that it's for; the record tells before when."""
        moment = datetime.now(UTC) + timedelta(hours=1)
        result = app.tasks["shop.add"].apply_async((1, 2), eta=moment, urgency="high")

        ((value, score),) = client.zrange(DELAYED, 0, -1, withscores=True)
        queue, target, raw = value.split(b"\n", 2)
        assert (b"shop:nlp", b"shop:nlp\x06\x163") == (queue, target)
        assert result.id == json.loads(raw)["headers"]["id"]
        assert moment.timestamp() == pytest.approx(score, abs=1e-5)
        assert [(b"shop:nlp", score)] == client.zrange("orchestra:{shop}:due", 0, -1, withscores=True)
        assert not client.exists("shop:nlp\x06\x163", "orchestra:{shop}:wake:shop:nlp")
        assert app.state.read(result.id).history[0].note.startswith("not before 20")

    def test_its_record_outlives_the_wait(self, app: Any, client: Any) -> None:
        """The time that a record is kept counts from when the task is due, so that it can be cancelled until then."""
        kept = app.settings.state_ttl_seconds

        result = app.tasks["shop.add"].apply_async((1, 2), countdown=2 * kept)

        assert 3 * kept - 60 < client.ttl(f"orchestra:{{shop}}:task:{result.id}") <= 3 * kept

    def test_the_first_of_several(self, app: Any, client: Any) -> None:
        """The table of queues has the time of the first message that is due."""
        for countdown in (50, 10, 90):
            app.tasks["shop.add"].apply_async((1, 2), countdown=countdown)

        first = client.zrange(DELAYED, 0, 0, withscores=True)[0][1]
        assert [(b"shop:nlp", first)] == client.zrange("orchestra:{shop}:due", 0, -1, withscores=True)

    def test_a_message_that_is_due(self, app: Any, client: Any) -> None:
        """A time that is past by Redis's clock is no delay, nor is one that can't be read."""
        app.tasks["shop.add"].apply_async((1, 2), eta=datetime.now(UTC) - timedelta(seconds=1))
        app.send_task("shop.add", (1, 2), eta="tomorrow")

        assert 2 == client.llen(LIST)
        assert not client.exists(DELAYED, "orchestra:{shop}:due")

    def test_a_queue_of_the_projects_own(self, app: Any, client: Any) -> None:
        """Any queue's delayed tasks wait the same way."""
        app.send_task("celery.any", queue="billing", countdown=60)

        assert 1 == client.zcard("orchestra:{shop}:delayed:billing")
        assert not client.exists("billing\x06\x166")

    def test_behind_a_prefix(self, redis_url: str, client: Any) -> None:
        """With `global_keyprefix` the set is behind it, and so is the list that the message is for."""
        with app_at(redis_url, changes={"broker_transport_options": {"global_keyprefix": "pre:"}}) as app:
            _declare(app).apply_async((1, 2), countdown=60)

        (value,) = client.zrange(f"pre:{DELAYED}", 0, -1)
        assert value.startswith(f"shop:nlp\npre:{LIST}\n".encode())

    def test_in_a_batch(self, app: Any, client: Any) -> None:
        """A batch's delayed messages wait as well."""
        Orchestra(app).submit_many("shop.add", [{"x": 1, "y": 2}] * 3, countdown=60)

        assert 3 == client.zcard(DELAYED)
        assert not client.exists(LIST)


class TestOnce:
    def test_a_lost_reply(self, far_app: Any, proxy: Proxy, client: Any) -> None:
        """A message that was enqueued, and whose answer was lost, is sent again and enqueued once, readable as ever."""
        proxy.lose_reply(load_script("submit").sha.encode())

        result = far_app.tasks["shop.add"].delay(1, 2)

        assert 1 == len(proxy.lost)
        (raw,) = client.lrange(LIST, 0, -1)
        assert [[1, 2], {}] == json.loads(b64decode(json.loads(raw)["body"]))[:2]
        assert 1 == len(far_app.state.read(result.id).history)

    def test_many_lost_replies(self, far_app: Any, proxy: Proxy, client: Any) -> None:
        """However often that happens."""
        proxy.lose_reply(load_script("submit").sha.encode(), times=4)

        far_app.tasks["shop.add"].delay(1, 2)

        assert 4 == len(proxy.lost)
        assert 1 == client.llen(LIST)

    def test_kombus_own_repetition(self, far_app: Any, proxy: Proxy, client: Any) -> None:
        """A number of attempts that the caller chose is kombu's to carry out, and enqueues once as well."""
        proxy.lose_reply(load_script("publish").sha.encode())

        far_app.tasks["shop.add"].apply_async((1, 2), retry_policy={"max_retries": 2, "interval_start": 0})

        assert 1 == len(proxy.lost)
        assert 1 == client.llen(LIST)

    def test_a_connection_lost_before_the_message(self, far_app: Any, proxy: Proxy, client: Any) -> None:
        """A message whose queue kombu had to declare on a new connection goes out there, on a channel that's open."""
        proxy.lose_reply(b"_kombu.binding.letters")

        far_app.send_task("celery.any", queue="letters")

        assert 1 == len(proxy.lost)
        assert 1 == client.llen("letters\x06\x166")

    def test_a_producer_of_kombus(self, far_app: Any, proxy: Proxy, client: Any) -> None:
        """Whoever publishes a task's message by a plain producer has it repeated safely too."""
        proxy.lose_reply(load_script("publish").sha.encode())
        with far_app.connection_for_write() as connection:
            producer = connection.Producer()
            producer.publish(
                [[], {}, {}],
                routing_key="billing",
                headers={"id": "7", "task": "any"},
                retry=True,
                retry_policy={"max_retries": 2, "interval_start": 0},
            )

        assert 1 == len(proxy.lost)
        assert 1 == client.llen("billing")

    def test_a_batch(self, far_app: Any, proxy: Proxy, client: Any) -> None:
        """A batch's lost answer makes the whole batch be sent again, and nothing be enqueued twice."""
        proxy.lose_reply(load_script("submit").sha.encode(), times=2)

        Orchestra(far_app).submit_many("shop.add", [{"x": 1, "y": 2}] * 5)

        assert 2 == len(proxy.lost)
        assert 5 == client.llen(LIST)

    def test_the_same_task_again(self, app: Any, client: Any) -> None:
        """Who sends a task a second time, with its id, publishes anew."""
        for _ in range(2):
            app.tasks["shop.add"].apply_async((1, 2), task_id="7")

        assert 2 == client.llen(LIST)

    def test_a_message_that_is_sent_on(self, app: Any, client: Any) -> None:
        """A message that was read and is published with the properties that it had, tag included, isn't a repeat."""
        app.tasks["shop.add"].delay(1, 2)
        raw = client.lindex(LIST, 0)
        read = json.loads(raw)
        properties = {name: read["properties"][name] for name in ("delivery_tag", "correlation_id")}
        with app.connection_for_write() as connection:
            connection.Producer().publish([[], {}, {}], routing_key="shop:nlp", headers=read["headers"], **properties)

        assert 2 == client.llen("shop:nlp") + client.llen(LIST)

    def test_what_is_remembered(self, app: Any, client: Any) -> None:
        """The record has the last three publishes of its task, also after the task has come to its end."""
        for number in range(4):
            app.tasks["shop.add"].apply_async((1, 2), task_id="7")
            if number == 1:
                app.state.advance("7", TaskState.SUCCEEDED)
        tags = [json.loads(raw)["properties"]["delivery_tag"] for raw in client.lrange(LIST, 0, -1)]

        assert " ".join(tags[:3]) == text_of(client.hget("orchestra:{shop}:task:7", "published"))


class TestUncertainty:
    def test_answers_that_never_come(self, far_app: Any, proxy: Proxy) -> None:
        """A submission that was sent and never confirmed says so, with the id by which the task is found."""
        proxy.lose_reply(load_script("submit").sha.encode(), times=1000)

        with pytest.raises(SubmissionError, match="may have been enqueued: look it up by its id") as caught:
            far_app.tasks["shop.add"].delay(1, 2)

        assert caught.value.may_be_enqueued
        assert far_app.state.read(str(caught.value.task_id)) is not None

    def test_without_repetition(self, far_app: Any, proxy: Proxy) -> None:
        """With `retry=False` there is one attempt, and the same honesty."""
        proxy.lose_reply(load_script("publish").sha.encode())

        with pytest.raises(SubmissionError) as caught:
            far_app.tasks["shop.add"].apply_async((1, 2), task_id="7", retry=False)

        assert 1 == len(proxy.lost)
        assert ("7", True) == (caught.value.task_id, caught.value.may_be_enqueued)

    def test_a_batch(self, far_app: Any, proxy: Proxy) -> None:
        """A batch says that some may be enqueued."""
        proxy.lose_reply(load_script("submit").sha.encode(), times=1000)

        with pytest.raises(SubmissionError, match="some may have been enqueued") as caught:
            Orchestra(far_app).submit_many("shop.add", [{"x": 1, "y": 2}] * 2)

        assert caught.value.may_be_enqueued

    def test_a_refusal(self, app: Any, client: Any) -> None:
        """An answer that refuses a message is certain and isn't waited out: nothing of it was carried out."""
        client.set(app.store.keys.task("7"), "no record")

        with pytest.raises(SubmissionError, match=r"refused the message: WRONGTYPE.*it was not enqueued") as caught:
            app.tasks["shop.add"].apply_async((1, 2), task_id="7")

        assert not caught.value.may_be_enqueued
        assert not client.exists(LIST)

    def test_a_refusal_in_a_batch(self, app: Any, client: Any) -> None:
        """The others of its batch are enqueued, and the error says that some may be."""
        client.set(app.store.keys.task("7"), "no record")

        with pytest.raises(LostBatchError, match="WRONGTYPE") as caught, app.producer_pool.acquire() as producer:
            _send_together(app, producer, ["6", "7", "8"])

        assert caught.value.may_be_enqueued
        assert 2 == client.llen(LIST)


def _send_together(app: Any, producer: Any, task_ids: list[str]) -> None:
    with producer.batch():
        for task_id in task_ids:
            app.tasks["shop.add"].apply_async((1, 2), task_id=task_id, producer=producer)


class TestBatches:
    def test_nothing_is_sent_before_the_end(self, app: Any, redis_url: str, client: Any) -> None:
        """A `Producer.batch()` of kombu's buffers our script's calls, and sends all in one go, without its text."""
        add = app.tasks["shop.add"]
        add.delay(0, 0)
        with commands_at(redis_url) as commands, app.producer_pool.acquire() as producer, producer.batch():
            results = [add.apply_async((number, 1), producer=producer) for number in range(3)]
            assert 1 == client.llen(LIST)

        assert 3 == sum(command.startswith("EVALSHA ") for command in commands)
        assert {TaskState.SUBMITTED} == {app.state.read(result.id).state for result in results}
        assert 4 == client.llen(LIST)

    def test_round_trips(self, app: Any, client: Any) -> None:
        """A batch is sent whenever it's full."""
        add = app.tasks["shop.add"]
        with app.producer_pool.acquire() as producer, producer.batch(2):
            lengths = []
            for _ in range(5):
                add.apply_async((1, 1), producer=producer)
                lengths.append(client.llen(LIST))

        assert [0, 2, 2, 4, 4] == lengths
        assert 5 == client.llen(LIST)

    def test_an_error_in_between(self, app: Any, client: Any) -> None:
        """What a batch that failed hasn't sent isn't sent."""

        def fail() -> None:
            with app.producer_pool.acquire() as producer, producer.batch():
                app.tasks["shop.add"].apply_async((1, 1), producer=producer)
                raise LookupError

        with pytest.raises(LookupError):
            fail()

        assert not client.exists(LIST)

    def test_with_other_messages(self, app: Any, client: Any) -> None:
        """Messages that are no tasks go along, by kombu's own way."""
        with app.producer_pool.acquire() as producer, producer.batch():
            app.tasks["shop.add"].apply_async((1, 1), producer=producer)
            producer.publish({"hello": "world"}, routing_key="letters", exchange="")

        assert (1, 1) == (client.llen(LIST), client.llen("letters"))


class TestPublishId:
    def test_travels_as_text(self) -> None:
        """In a message it is a string like any other."""
        publish_id = PublishId.new()

        assert json.loads(json.dumps(publish_id)) == publish_id
        assert not isinstance(json.loads(json.dumps(publish_id)), PublishId)
        assert publish_id != PublishId.new()
