"""Submitting and storing results while Redis is away, restarts, fails over or falls silent, against real servers."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
from celery import _state, chord
from celery.app.task import Context
from celery.backends import redis as celery_redis
from celery.exceptions import Reject
from celery.signals import worker_init, worker_shutting_down
from redis import Redis
from redis.exceptions import BusyLoadingError, RedisError

from orchestra.broker import SubmissionError
from orchestra.embedded import EmbeddedServer
from orchestra.orchestra import Orchestra
from orchestra.store import text_of
from orchestra.types import TaskState
from tests.fleets import agent_of, app_at, quick
from tests.processes import until
from tests.proxies import Proxy, proxy_to

pytestmark = pytest.mark.integration

LIST = "shop:nlp\x06\x166"


@pytest.fixture
def server() -> Iterator[EmbeddedServer]:
    """Give a server of the test's own, which keeps what it has over a crash."""
    with EmbeddedServer.start(append_only=True) as server:
        yield server


@pytest.fixture
def app(server: EmbeddedServer) -> Iterator[Any]:
    """Give an app that has connections to that server already."""
    with app_of(server.url) as app:
        app.tasks["shop.add"].delay(0, 0)
        app.store.command("DEL", LIST)
        yield app


@pytest.fixture
def proxy(server: EmbeddedServer) -> Iterator[Proxy]:
    """Give a way to the server that can fail."""
    with proxy_to(server.port) as proxy:
        yield proxy


@contextmanager
def app_of(url: str, *, seconds: float = 3.0) -> Iterator[Any]:
    """Give an app with a task, which submits with so much patience."""
    with app_at(url, settings=quick(connect_timeout_seconds=seconds)) as app:

        @app.task(name="shop.add", requires={"nlp"}, shared=False)
        def add(x: int, y: int) -> int:
            return x + y

        yield app


def one(app: Any) -> None:
    """Submit a task that the app knows."""
    app.tasks["shop.add"].delay(1, 2)


def by_name(app: Any) -> None:
    """Submit one by its name, which the fleet's catalogue is asked for."""
    app.catalogue.forget()
    app.send_task("shop.other", requires="nlp")


def many(app: Any) -> None:
    """Submit several in one round trip."""
    Orchestra(app).submit_many("shop.add", [{"x": 1, "y": 2}])


WAYS = pytest.mark.parametrize("submit", [one, by_name, many])


def after(seconds: float, act: Callable[[], object]) -> threading.Timer:
    """Do something in the background, later."""
    timer = threading.Timer(seconds, act)
    timer.start()
    return timer


def length(server: EmbeddedServer) -> int:
    """Count the messages that wait."""
    with Redis.from_url(server.url) as client:
        return int(str(client.llen(LIST)))


class TestAway:
    @WAYS
    def test_after_a_restart(self, app: Any, server: EmbeddedServer, submit: Callable[[Any], None]) -> None:
        """A process whose connections are from before a restart submits at once."""
        server.restart()

        submit(app)

        assert 1 == length(server)

    @WAYS
    def test_during_a_restart(self, app: Any, server: EmbeddedServer, submit: Callable[[Any], None]) -> None:
        """A submission waits for a server that comes back in time, and enqueues once."""
        server.kill()
        back = after(1.0, server.restart)

        submit(app)

        back.join()
        assert 1 == length(server)

    @WAYS
    @pytest.mark.parametrize("warm", [True, False])
    def test_for_good(self, server: EmbeddedServer, submit: Callable[[Any], None], warm: bool) -> None:
        """The bound holds for the whole submission, and the error is sure that nothing was enqueued."""
        with app_of(server.url, seconds=2.0) as app:
            if warm:
                submit(app)
            server.kill()
            started = time.monotonic()

            with pytest.raises(SubmissionError, match=r"cannot be reached: .*enqueued") as caught:
                submit(app)

            assert 1.8 < time.monotonic() - started < 10
            assert not caught.value.may_be_enqueued

    def test_flapping(self, app: Any, server: EmbeddedServer) -> None:
        """Whatever a server that dies again and again confirms, and no more, is there in the end."""
        stop = threading.Event()

        def flap() -> None:
            while not stop.wait(0.3):
                server.kill()
                server.restart()

        flapping = threading.Thread(target=flap)
        flapping.start()
        try:
            confirmed = [app.tasks["shop.add"].delay(1, 2).id for _ in range(300) if not stop.wait(0.005)]
        finally:
            stop.set()
            flapping.join()

        assert 300 == len(confirmed) == length(server)
        assert {TaskState.SUBMITTED} == {app.state.read(task_id).state for task_id in confirmed}


class TestFailover:
    @pytest.mark.parametrize("submit", [one, many])
    @pytest.mark.parametrize("stale", ["yes", "no"])
    def test_a_replica(self, app: Any, server: EmbeddedServer, submit: Callable[[Any], None], stale: str) -> None:
        """A server that takes no writes (READONLY), or no commands at all (MASTERDOWN), is waited for."""
        with Redis.from_url(server.url) as client:
            client.config_set("replica-serve-stale-data", stale)
            client.replicaof("127.0.0.1", "1")
            timer = after(0.7, lambda: client.replicaof("NO", "ONE"))

            submit(app)

            timer.join()
        assert 1 == length(server)

    @pytest.mark.parametrize("submit", [one, many])
    def test_a_server_that_loads(self, app: Any, server: EmbeddedServer, submit: Callable[[Any], None]) -> None:
        """A server that is still loading its data (LOADING) is waited for."""
        with (
            EmbeddedServer.start() as source,
            Redis.from_url(source.url) as master,
            Redis.from_url(server.url) as client,
        ):
            master.config_set("repl-diskless-sync-delay", 0)
            master.mset({f"key-{number}": "x" * 100 for number in range(2000)})
            client.config_set("masterauth", source.url.split("@")[0].rpartition(":")[2])
            client.config_set("key-load-delay", 500)  # µs
            client.config_set("loading-process-events-interval-bytes", 1024)  # how often it answers meanwhile
            client.replicaof("127.0.0.1", str(source.port))
            until(lambda: _is_loading(server))
            leader = threading.Thread(target=lambda: _lead(server))
            leader.start()

            submit(app)

            leader.join()
            assert 1 == length(server)


@contextmanager
def a_task_of(app: Any) -> Iterator[None]:
    """Be in the midst of a task, as an agent is when it stores a result."""

    @app.task(name="shop.midst", shared=False)
    def midst() -> None:
        """Do nothing."""

    stack: Any = vars(_state)["_task_stack"]
    stack.push(midst)
    midst.push_request(id="7", called_directly=False)
    try:
        yield
    finally:
        midst.pop_request()
        stack.pop()


def _is_loading(server: EmbeddedServer) -> bool:
    with Redis.from_url(server.url) as client:
        try:
            client.get("x")
        except BusyLoadingError:
            return True
    return False


def _lead(server: EmbeddedServer) -> None:
    """Make a replica a master, as soon as it has loaded."""

    def led() -> bool:
        with Redis.from_url(server.url) as client:
            try:
                client.get("x")
                return bool(client.replicaof("NO", "ONE"))
            except RedisError:
                return False

    until(led)


class TestSilence:
    @WAYS
    def test_a_half_open_connection(self, server: EmbeddedServer, proxy: Proxy, submit: Callable[[Any], None]) -> None:
        """Connections that say nothing any more are left for new ones, within ten seconds at the default settings."""
        with app_of(proxy.through(server.url), seconds=5.0) as app:
            submit(app)
            proxy.silence()
            started = time.monotonic()

            submit(app)

            assert time.monotonic() - started < 10
        assert 2 == length(server)

    def test_a_silent_server(self, server: EmbeddedServer, proxy: Proxy) -> None:
        """A server that answers nobody is given up in time; what was sent to it may be enqueued."""
        with app_of(proxy.through(server.url), seconds=5.0) as app:
            one(app)
            proxy.silent = True
            started = time.monotonic()

            with pytest.raises(SubmissionError, match="may have been enqueued") as caught:
                one(app)

            assert time.monotonic() - started < 10
            assert caught.value.may_be_enqueued


class TestResults:
    def test_a_result_waits_for_redis(self, app: Any, server: EmbeddedServer) -> None:
        """A result that can't be stored is tried again until Redis is back; nobody is told before that it is stored."""
        app.backend.store_result("1", 1, "SUCCESS")
        server.kill()
        stored = threading.Event()

        def store() -> None:
            with a_task_of(app):
                app.backend.mark_as_done("7", 5, request=Context(id="7", retries=0))
            stored.set()

        storing = threading.Thread(target=store)
        storing.start()
        assert not stored.wait(1.0)
        server.restart()
        storing.join(20)

        assert stored.is_set()
        assert 5 == app.AsyncResult("7").get(timeout=5)

    def test_a_result_waits_for_a_failover(self, app: Any, server: EmbeddedServer) -> None:
        """The same for a server that takes no writes."""
        with Redis.from_url(server.url) as client:
            client.replicaof("127.0.0.1", "1")
            timer = after(0.7, lambda: client.replicaof("NO", "ONE"))

            with a_task_of(app):
                app.backend.mark_as_done("7", 5, request=Context(id="7", retries=0))

            timer.join()
        assert 5 == app.AsyncResult("7").get(timeout=5)

    def test_a_stop_gives_the_task_back(self, app: Any, server: EmbeddedServer) -> None:
        """An agent that is to stop while Redis is away waits no longer than a submission would; its task goes back."""
        server.kill()
        worker_shutting_down.send(sender="agent@test", sig="SIGTERM", how="Warm", exitcode=0)
        started = time.monotonic()
        try:
            with pytest.raises(Reject) as caught, a_task_of(app):
                app.backend.mark_as_done("7", 5, request=Context(id="7", retries=0))
        finally:
            worker_init.send(sender="agent@test")

        given_back: Any = caught.value
        assert given_back.requeue
        assert 3.0 < time.monotonic() - started < 10

    @pytest.mark.parametrize("chosen", [True, False])
    def test_who_only_looks_does_not_wait(self, server: EmbeddedServer, chosen: bool) -> None:
        """Outside of a task, or where the project chose so, a result backend that is away is an error before long."""
        policy = {"retry_policy": {"max_retries": 1, "interval_start": 0}}
        changes = {"result_backend_always_retry": False} if chosen else {}
        with app_at(server.url, changes={"result_backend_transport_options": policy, **changes}) as app:
            server.kill()
            with a_task_of(app) if chosen else nullcontext(), pytest.raises(RedisError):
                app.backend.mark_as_done("7", 5)
            with pytest.raises(RedisError):
                _ = app.AsyncResult("7").state

    def test_a_chord_whose_last_count_is_lost(self, server: EmbeddedServer, proxy: Proxy) -> None:
        """A chord's body runs although the answer to its last part's count was lost, and the claim with it."""
        with Redis.from_url(server.url) as client, app_of(proxy.through(server.url), seconds=2.0) as app:
            last = threading.Event()

            @app.task(name="shop.last", requires={"nlp"}, shared=False)
            def wait_for_it() -> int:
                return 2 if last.wait(20) else 0

            @app.task(name="shop.total", requires={"nlp"}, shared=False)
            def total(numbers: list[int]) -> int:
                return sum(numbers)

            script: Any = vars(celery_redis)["CHORD_PART_RETURN_LUA"]
            sha = text_of(client.script_load(script))
            with agent_of(app, "nlp"):
                result = chord([app.tasks["shop.add"].s(0, 1), wait_for_it.s()])(total.s())
                until(lambda: list(client.scan_iter("*.j")))
                proxy.lose_reply(sha.encode())
                last.set()

                assert 3 == result.get(timeout=40)
        assert 1 == len(proxy.lost)
