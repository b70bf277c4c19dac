"""Submissions that return once replicas have their tasks: `confirm_replicas`."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from redis import Redis

from orchestra.broker import SubmissionError
from orchestra.embedded import EmbeddedServer
from orchestra.orchestra import Orchestra
from tests.fleets import app_at, commands_at, quick
from tests.processes import stopped, until
from tests.servers import replicated

pytestmark = pytest.mark.timeout(120)

LIST = "shop:nlp\x06\x166"
PATIENCE_SECONDS = 2.0


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[EmbeddedServer, EmbeddedServer]]:
    """Give a master and its replica."""
    with replicated() as servers:
        yield servers


@pytest.fixture
def app(servers: tuple[EmbeddedServer, EmbeddedServer]) -> Iterator[Any]:
    """Give an app that wants one replica to have each task, with one task sent and taken away."""
    master, _ = servers
    settings = quick(confirm_replicas=1, connect_timeout_seconds=PATIENCE_SECONDS)
    with Redis.from_url(master.url) as client, app_at(master.url, settings=settings) as app:
        client.flushall()

        @app.task(name="shop.add", requires={"nlp"}, shared=False)
        def add(x: int, y: int) -> int:
            return x + y

        add.delay(0, 0)
        client.delete(LIST)
        yield app


@contextmanager
def held_up(replica: EmbeddedServer) -> Iterator[None]:
    """Have a replica take nothing for the block."""
    pid = replica.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        until(lambda: stopped(pid))
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def waiting(server: EmbeddedServer) -> int:
    """Count the messages that a server has."""
    with Redis.from_url(server.url) as client:
        return int(str(client.llen(LIST)))


class TestConfirmed:
    def test_a_replica_has_it(self, app: Any, servers: tuple[EmbeddedServer, EmbeddedServer]) -> None:
        """When a submission has returned, a replica has its task."""
        for number in range(20):
            app.tasks["shop.add"].delay(number, 1)

            assert number + 1 == waiting(servers[1])

    def test_costs_no_further_round_trip(self, app: Any, servers: tuple[EmbeddedServer, EmbeddedServer]) -> None:
        """The wait rides behind the message, on its connection."""
        with commands_at(servers[0].url) as commands:
            app.tasks["shop.add"].delay(1, 2)

        assert ["EVALSHA", "WAIT"] == [command.split()[0] for command in commands if command.split()[0] != "REPLCONF"]

    def test_a_server_that_forgot_the_script(self, app: Any, servers: tuple[EmbeddedServer, EmbeddedServer]) -> None:
        """What is sent anew with the script is waited for as well."""
        with Redis.from_url(servers[0].url) as client:
            client.script_flush()

        app.tasks["shop.add"].delay(1, 2)

        assert 1 == waiting(servers[1])

    def test_a_batch_waits_once(self, app: Any, servers: tuple[EmbeddedServer, EmbeddedServer]) -> None:
        """All messages of a flush are confirmed by one wait."""
        with commands_at(servers[0].url) as commands:
            Orchestra(app).submit_many("shop.add", [{"x": number, "y": 1} for number in range(7)])

        assert 7 == waiting(servers[1])
        assert 1 == sum(command.startswith("WAIT") for command in commands)

    def test_a_retry_is_not_waited_for(self, app: Any, servers: tuple[EmbeddedServer, EmbeddedServer]) -> None:
        """What is sent before a task's own message is acknowledged reaches a replica before that end does."""
        with held_up(servers[1]):
            app.tasks["shop.add"].apply_async((1, 2), retries=1)

        assert 1 == waiting(servers[0])

    def test_none_is_waited_for_by_default(self, servers: tuple[EmbeddedServer, EmbeddedServer]) -> None:
        """Without the setting a submission returns though no replica has its task."""
        with held_up(servers[1]), app_at(servers[0].url) as app:
            app.send_task("shop.add", (1, 2), requires="nlp")


class TestUnconfirmed:
    def test_is_told(self, app: Any, servers: tuple[EmbeddedServer, EmbeddedServer]) -> None:
        """Without its replica a submission raises, and says that the task may be there: the master has it, once."""
        with held_up(servers[1]), pytest.raises(SubmissionError) as caught:
            app.tasks["shop.add"].apply_async((1, 2), task_id="7")

        location = f"127.0.0.1:{servers[0].port}"
        assert (
            f"shop.add was not confirmed: Redis at {location} has too few replicas in reach: 0 of 1 replica confirmed "
            "the message in time; it may have been enqueued: look it up by its id 7 before sending it again."
        ) == str(caught.value)
        assert ("7", True) == (caught.value.task_id, caught.value.may_be_enqueued)
        assert 1 == waiting(servers[0])

    def test_without_repetition(self, app: Any, servers: tuple[EmbeddedServer, EmbeddedServer]) -> None:
        """With `retry=False` there is one wait, and the same honesty."""
        with held_up(servers[1]), commands_at(servers[0].url) as commands, pytest.raises(SubmissionError) as caught:
            app.tasks["shop.add"].apply_async((1, 2), retry=False)

        assert caught.value.may_be_enqueued
        assert 1 == sum(command.startswith("WAIT") for command in commands)

    def test_a_batch(self, app: Any, servers: tuple[EmbeddedServer, EmbeddedServer]) -> None:
        """A batch says that some may be enqueued, and each is there once."""
        with held_up(servers[1]), pytest.raises(SubmissionError, match="some may have been enqueued") as caught:
            Orchestra(app).submit_many("shop.add", [{"x": 1, "y": 2}] * 3)

        assert caught.value.may_be_enqueued
        assert 3 == waiting(servers[0])

    def test_what_another_submission_has(self, app: Any, servers: tuple[EmbeddedServer, EmbeddedServer]) -> None:
        """A submission whose key another one has is confirmed like that one, once a replica has its task."""
        orchestra, payload = Orchestra(app), {"x": 1, "y": 2}
        with held_up(servers[1]):
            for _ in range(2):
                with pytest.raises(SubmissionError, match="too few replicas"):
                    orchestra.submit("shop.add", payload, idempotency_key="once")

        assert orchestra.submit("shop.add", payload, idempotency_key="once").id
        assert 1 == waiting(servers[1])

    def test_a_replica_that_comes_back(self, servers: tuple[EmbeddedServer, EmbeddedServer]) -> None:
        """A submission goes on as soon as a replica has its task."""
        settings = quick(confirm_replicas=1, connect_timeout_seconds=60.0)
        with (
            ThreadPoolExecutor(1) as thread,
            Redis.from_url(servers[0].url) as client,
            app_at(servers[0].url, settings=settings) as app,
        ):
            client.flushall()
            with held_up(servers[1]):
                sent = thread.submit(app.send_task, "shop.add", (1, 2), requires="nlp")
                until(lambda: waiting(servers[0]))
                assert not sent.done()

            assert sent.result(timeout=30).id
            assert 1 == waiting(servers[1])
