"""What an agent makes of a hard time limit, and what it says of pools that can't hold one."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from billiard import Process
from billiard.exceptions import TimeLimitExceeded
from celery import signals
from celery.exceptions import SoftTimeLimitExceeded
from celery.worker import request as celery_request
from celery.worker import state as worker_state

from orchestra.broker import SubmissionError
from orchestra.exceptions import Backoff
from orchestra.request import OrchestraRequest
from orchestra.task import check_declaration
from orchestra.timeouts import GRACE_SECONDS, deadlines_for, end_process
from orchestra.types import TaskState
from tests.fleets import agent_of, app_at
from tests.processes import alive, until
from tests.readers import Reader, reader_at

QUEUE = "shop:nlp"


def _wait() -> None:
    time.sleep(60)


REFUSALS: list[bool] = []  # whether to refuse, one for each publish


def _route(*_: Any, **__: Any) -> None:
    if REFUSALS and REFUSALS.pop():
        raise SubmissionError("no publishing now")


@pytest.fixture
def app(redis_url: str) -> Iterator[Any]:
    """Give an app with a task that has two attempts."""
    with app_at(redis_url, changes={"task_routes": [_route]}) as app:

        @app.task(name="shop.index", requires={"nlp"}, max_attempts=2, backoff=Backoff(base_seconds=0), shared=False)
        def index(number: int, *, words: int = 0) -> int:
            return number

        yield app


@pytest.fixture
def reader(app: Any) -> Iterator[Reader]:
    """Give an agent's reader of the queue."""
    with reader_at(app, slots=1) as reader:
        reader.consume(QUEUE)
        yield reader


class Pool:
    """A pool as far as a request needs one."""

    def apply_async(self, *_: Any, **__: Any) -> None:
        """Stand for what nothing is handed to here."""


@pytest.fixture
def running(app: Any, reader: Reader) -> Iterator[Callable[..., Any]]:
    """Give what sends a task, fetches it, and makes the request of an attempt that a pool process has begun."""
    derive = vars(celery_request)["create_request_cls"]  # which celery-types doesn't know
    requests: list[Any] = []

    def make(**options: Any) -> Any:
        task = app.tasks["shop.index"]
        if not reader.messages:
            task.apply_async((7,), {"words": 3}, **options)
        known = len(requests)
        reader.until(lambda: len(reader.messages) > known)
        message = reader.messages[-1]
        acknowledging = {"on_ack": message.ack_log_error, "on_reject": message.reject_log_error}
        request = derive(OrchestraRequest, task, Pool(), "text@a", None, app=app)(
            message, app=app, task=task, hostname="text@a", **acknowledging
        )
        request.on_accepted(4711, 0.0)
        app.state.advance(request.id, TaskState.RUNNING, agent="text@a", attempt=len(requests) + 1)
        requests.append(request)
        return request

    yield make
    for request in requests:
        worker_state.task_ready(request)  # which Celery counts for the whole process


def said(reader: Reader) -> list[str]:
    """Return what there is to tell of the reader's leases, and have it told."""
    words = [word.kind for word in reader.holder.news()]
    reader.channel.flush_news()
    return words


def states_of(app: Any, request: Any) -> list[str]:
    """List the states that a task went through."""
    return [entry.state.value for entry in app.state.read(request.id).history]


class TestHardLimit:
    def test_leads_to_another_attempt(self, app: Any, reader: Reader, running: Callable[..., Any]) -> None:
        """The retry is published with the arguments and limits that the task had, and then the message settled."""
        first = running(soft_time_limit=7, time_limit=9)
        told: list[Any] = []
        signals.task_retry.connect(lambda **given: told.append(given["reason"].exc), weak=False, dispatch_uid="told")

        first.on_timeout(False, 9)

        assert ["settle"] == said(reader)
        second = running()
        signals.task_retry.disconnect(dispatch_uid="told")
        assert (first.id, [7], {"words": 3}, [9, 7]) == (second.id, second.args, second.kwargs, second.time_limits)
        assert 1 == second.request_dict["retries"]
        assert ["submitted", "running", "retrying", "running"] == states_of(app, first)
        assert [TimeLimitExceeded] == [type(error) for error in told]
        assert first not in worker_state.active_requests

    def test_leads_to_the_end(self, app: Any, reader: Reader, running: Callable[..., Any]) -> None:
        """When no attempt is left the task has failed, once, with the limit as its error."""
        failures: list[Any] = []
        signals.task_failure.connect(lambda **given: failures.append(given), weak=False, dispatch_uid="failures")
        for _ in range(2):
            request = running()
            request.on_failure(_TimedOut())
            request.on_timeout(False, 9)
            assert ["settle"] == said(reader)
        signals.task_failure.disconnect(dispatch_uid="failures")

        record = app.state.read(request.id)
        assert (TaskState.FAILED, 2) == (record.state, record.attempt)
        with pytest.raises(TimeLimitExceeded):
            app.AsyncResult(request.id).get(timeout=5)
        assert 1 == len(failures)

    @pytest.mark.parametrize("end", ["succeeded", "sent again"])
    def test_after_the_end(self, app: Any, reader: Reader, running: Callable[..., Any], end: str) -> None:
        """An attempt that had come to its end when its process was killed is done with, and not tried again."""
        request = running()
        if end == "succeeded":
            app.backend.mark_as_done(request.id, 7, request=request._context)
        else:
            task = app.tasks["shop.index"]
            task.signature_from_request(request._context, request.args, request.kwargs, retries=1).apply_async()
        before = states_of(app, request)

        request.on_timeout(False, 9)

        assert (before, ["settle"]) == (states_of(app, request), said(reader))
        depth = app.registry.depths([QUEUE], steps=app.priority_steps)[0]
        assert (1 if end == "sent again" else 0) == depth

    def test_with_nothing_to_publish_by(self, app: Any, reader: Reader, running: Callable[..., Any]) -> None:
        """When the retry can't be published, the message goes back to its queue, and nothing is lost."""
        request = running()
        REFUSALS.append(True)

        with pytest.raises(SubmissionError):
            request.on_timeout(False, 9)

        assert ["release"] == said(reader)
        assert ["submitted", "running"] == states_of(app, request)

    def test_at_a_cold_stop(self, app: Any, reader: Reader, running: Callable[..., Any]) -> None:
        """An agent that stops cold gives the task back, as it does with all that it ends then."""
        request, flags = running(), vars(worker_state)
        flags["should_terminate"] = 0
        try:
            request.on_timeout(False, 9)
        finally:
            flags["should_terminate"] = None

        assert ["release"] == said(reader)

    def test_never_retry(self, app: Any) -> None:
        """Who names the soft limit among errors that are final means the hard one as well."""
        task = app.task(name="shop.final", max_attempts=3, never_retry=(SoftTimeLimitExceeded,), shared=False)(_wait)

        assert TimeLimitExceeded in task.retry_policy.never_retry
        check_declaration("shop.final", {"never_retry": (SoftTimeLimitExceeded,)})


class _TimedOut:
    """What the pool hands over with a hard limit, before it says that it's one."""

    exception = TimeLimitExceeded(9)


class TestEndProcess:
    def test_kills_a_process_of_the_pool(self) -> None:
        """A pool's process is killed at once, and isn't asked first."""
        process: Any = Process(target=_wait)
        process.start()

        end_process(process.pid)

        process.join(timeout=30)
        assert not alive(process.pid)

    @pytest.mark.parametrize("which", ["this one", "another", "none"])
    def test_kills_nothing_else(self, which: str) -> None:
        """A number that is no pool process's, as with pools of threads, is left alone."""
        command = [sys.executable, "-c", "input()"]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as other:
            end_process({"this one": os.getpid(), "another": other.pid, "none": None}[which])

            assert alive(other.pid)
            other.communicate(b"\n", timeout=30)
        assert 0 == other.returncode


class TestPools:
    @pytest.mark.parametrize(
        ("pool", "interrupts", "then"),
        [
            ("prefork", False, None),
            ("solo", True, "interrupted"),
            ("thread", True, "interrupted"),
            ("gevent", False, "not stopped"),
        ],
    )
    def test_what_they_hold(
        self, app: Any, caplog: pytest.LogCaptureFixture, pool: str, interrupts: bool, then: str | None
    ) -> None:
        """Whether an agent interrupts tasks itself, and what it says of timeouts, follows from its pool."""
        limited = app.task(name="shop.limited", timeout=5, shared=False)(_wait)

        assert interrupts == (deadlines_for(pool, [limited, app.tasks["shop.index"]]) is not None)

        assert (then or "") in caplog.text
        assert (then is not None) == ("tasks=shop.limited" in caplog.text)

    def test_nothing_to_say(self, app: Any, caplog: pytest.LogCaptureFixture) -> None:
        """Where no task declares a timeout there's nothing to warn of."""
        deadlines_for("solo", [app.tasks["shop.index"]])

        assert "timeouts" not in caplog.text

    def test_in_a_thread_of_this_process(self, app: Any) -> None:
        """A local agent interrupts its tasks too, by the call's own timeout and for each attempt."""
        attempts: list[int] = []

        @app.task(name="shop.slow", bind=True, max_attempts=2, backoff=Backoff(base_seconds=0), shared=False)
        def slow(self: Any) -> None:
            attempts.append(self.request.retries)
            until(lambda: False, seconds=60)

        with agent_of(app):
            result = slow.apply_async(soft_time_limit=0.2, time_limit=0.2 + GRACE_SECONDS)
            with pytest.raises(SoftTimeLimitExceeded):
                result.get(timeout=30)
        assert [0, 1] == attempts
