"""Errors, their classification, the waits between attempts, and how they are logged."""

import copy
import io
import json
import logging
import pickle
import urllib.error
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.message import Message
from email.utils import format_datetime
from typing import Any

import pytest
import redis.exceptions
import structlog
from hypothesis import given
from hypothesis import strategies as st

from orchestra import exceptions
from orchestra.exceptions import (
    AgentNameTakenError,
    AgentOrchestraException,
    Backoff,
    BrokerUnavailableError,
    ConfigurationError,
    ErrorContext,
    FieldError,
    PayloadError,
    PermanentError,
    RetryableError,
    SecurityError,
    UnknownTaskError,
    ValidationError,
    classify,
    handle_retry_logic,
    log_error_with_context,
)

ALL_ERRORS = [
    kind for kind in vars(exceptions).values() if isinstance(kind, type) and issubclass(kind, AgentOrchestraException)
]
NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


class Response:
    """An answer as the clients for HTTP give it."""

    def __init__(self, status_code: int, headers: dict[str, str] | None = None) -> None:
        self.status_code = status_code
        self.headers = headers or {}


class HTTPStatusError(Exception):
    """An error that carries its response."""

    def __init__(self, status_code: int, headers: dict[str, str] | None = None) -> None:
        super().__init__(f"status {status_code}")
        self.response = Response(status_code, headers)


class TestHierarchy:
    @pytest.mark.parametrize(
        ("kind", "parent"),
        [
            (BrokerUnavailableError, RetryableError),
            (ValidationError, PermanentError),
            (UnknownTaskError, ValidationError),
            (PayloadError, ValidationError),
            (SecurityError, PermanentError),
            (ConfigurationError, PermanentError),
            (AgentNameTakenError, PermanentError),
        ],
    )
    def test_every_error_answers_whether_to_try_again(self, kind: type[Exception], parent: type[Exception]) -> None:
        """The first branching below the root is retryable or permanent."""
        assert issubclass(kind, parent)
        assert issubclass(parent, (RetryableError, PermanentError))

    @pytest.mark.parametrize("kind", ALL_ERRORS)
    def test_errors_are_made_again_from_their_args(self, kind: type[AgentOrchestraException]) -> None:
        """Celery rebuilds an error from its args: message and type survive, and named evidence has a default."""
        error = kind("what happened", task_id="7")

        again = kind(*error.args)

        assert ("what happened", kind) == (str(again), type(again))
        assert {"task_id"} >= vars(error).keys() - {*vars(again), *dir(kind)}

    @pytest.mark.parametrize("remake", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])
    @pytest.mark.parametrize("kind", ALL_ERRORS)
    def test_errors_survive_copy_and_pickle(
        self, kind: type[AgentOrchestraException], remake: Callable[[Any], Any]
    ) -> None:
        """A copied or pickled error still carries its evidence."""
        error = kind("what happened", missing=("gpu",))

        again = remake(error)

        assert (type(error), error.args, vars(error)) == (type(again), again.args, vars(again))

    def test_evidence_becomes_attributes(self) -> None:
        """Evidence is given by keyword and read as an attribute."""
        errors = [FieldError("text", "Input should be a valid string", "42")]

        error = UnknownTaskError("no such task", errors=errors, task_type="a.b", nearest=("a.c",))

        assert (tuple(errors), "a.b", ("a.c",)) == (error.errors, error.task_type, error.nearest)
        assert 3.0 == RetryableError("later", retry_after=3.0).retry_after
        assert RetryableError("later").retry_after is None


class TestClassify:
    @pytest.mark.parametrize(
        "error",
        [
            RetryableError("x"),
            BrokerUnavailableError("x"),
            ConnectionRefusedError(),
            BrokenPipeError(),
            TimeoutError(),
            redis.exceptions.ConnectionError(),
            redis.exceptions.TimeoutError(),
            urllib.error.URLError("no route"),
            HTTPStatusError(429),
            HTTPStatusError(503),
        ],
        ids=repr,
    )
    def test_what_may_pass_is_retryable(self, error: Exception) -> None:
        """Failed connections, timeouts, 429 and 503 may pass, whichever library raises them."""
        assert classify(error).retryable

    @pytest.mark.parametrize(
        "error",
        [
            ValueError("x"),
            ValidationError("x"),
            SecurityError("x"),
            redis.exceptions.AuthenticationError(),
            HTTPStatusError(404),
            HTTPStatusError(500),
            MemoryError(),
            KeyboardInterrupt(),
            FileNotFoundError(),
        ],
        ids=repr,
    )
    def test_the_rest_is_permanent(self, error: BaseException) -> None:
        """Whatever isn't known to pass is permanent."""
        assert (False, None) == classify(error)

    def test_a_task_extends_the_table(self) -> None:
        """What a task names is retried, unless it names it as never to be."""
        assert classify(KeyError(), retry_on=[LookupError]).retryable
        assert not classify(KeyError(), retry_on=[LookupError], never_retry=[KeyError]).retryable
        assert not classify(RetryableError("x"), never_retry=[RetryableError]).retryable

    def test_a_broad_class_does_not_make_a_permanent_error_retryable(self) -> None:
        """A PermanentError is retried only if its own kind is named."""
        assert not classify(SecurityError("x"), retry_on=[Exception]).retryable
        assert classify(SecurityError("x"), retry_on=[SecurityError]).retryable

    @pytest.mark.parametrize(
        ("header", "expected"),
        [
            ("30", 30.0),
            (" 0 ", 0.0),
            (format_datetime(NOW + timedelta(seconds=90), usegmt=True), 90.0),
            (format_datetime(NOW - timedelta(seconds=90), usegmt=True), 0.0),
            ("999999999", 86_400.0),
            ("soon", None),
            ("-3", None),
            ("", None),
        ],
    )
    def test_retry_after_header_is_read(self, header: str, expected: float | None) -> None:
        """Retry-After holds seconds or a date; nonsense is no wish, and nobody waits more than a day."""
        error = HTTPStatusError(429, {"retry-after": header})

        assert (True, expected) == classify(error, now=lambda: NOW)

    def test_the_standard_library_is_read_too(self) -> None:
        """The error of urllib carries status and headers itself."""
        headers = Message()
        headers["Retry-After"] = "7"

        busy = urllib.error.HTTPError("http://localhost", 503, "busy", headers, io.BytesIO())
        absent = urllib.error.HTTPError("http://localhost", 404, "absent", headers, io.BytesIO())

        assert (True, 7.0) == classify(busy)
        assert (False, None) == classify(absent)
        busy.close()
        absent.close()

    def test_a_property_that_raises_is_passed_over(self) -> None:
        """An error whose attributes can't be read is judged by its type."""

        class Shy(Exception):  # noqa: N818
            @property
            def response(self) -> None:
                raise RuntimeError

        assert not classify(Shy()).retryable

    @pytest.mark.parametrize("wish", [float("nan"), float("inf"), "3"])
    def test_a_wish_that_is_no_time_is_none(self, wish: Any) -> None:
        """A retry_after that can't be waited leaves the wait to the backoff."""
        assert (True, None) == classify(RetryableError("x", retry_after=wish))


class TestBackoff:
    @given(st.integers(1, 10_000), st.floats(0, 1e6), st.floats(0, 1e6))
    def test_waits_stay_between_zero_and_the_bound(self, attempt: int, base: float, bound: float) -> None:
        """However many attempts there were, a wait is never negative and never above the bound."""
        delay = Backoff(base_seconds=base, max_seconds=bound).delay_seconds(attempt)

        assert 0 <= delay <= bound

    def test_waits_double_up_to_the_bound(self) -> None:
        """Without jitter a wait is the figure itself."""
        backoff = Backoff(base_seconds=1, max_seconds=5, jitter="none")

        assert [1, 2, 4, 5, 5] == [backoff.delay_seconds(attempt) for attempt in range(1, 6)]

    def test_full_jitter_draws_from_zero_to_the_figure(self) -> None:
        """With full jitter a wait is drawn between 0 and the figure."""
        drawn: list[tuple[float, float]] = []

        def draw(low: float, high: float) -> float:
            drawn.append((low, high))
            return high

        assert 4.0 == Backoff(base_seconds=1).delay_seconds(3, random=draw)
        assert [(0.0, 4.0)] == drawn

    @pytest.mark.parametrize(
        "wrong", [{"base_seconds": -1}, {"max_seconds": float("nan")}, {"max_seconds": "5"}, {"jitter": "some"}]
    )
    def test_nonsense_is_refused(self, wrong: dict[str, Any]) -> None:
        """A backoff is made of times and a known jitter."""
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            Backoff(**wrong)


class TestHandleRetryLogic:
    def test_the_guides_loop_works(self) -> None:
        """The loop of the development guide tries again until the attempts are used up."""
        max_attempts, attempts = 3, []
        delays: list[float] = []

        def risky_operation() -> None:
            attempts.append(1)
            raise ConnectionResetError

        def loop() -> None:
            for attempt in range(1, max_attempts + 1):
                try:
                    risky_operation()
                    break
                except Exception as e:
                    retry_info = handle_retry_logic(e, attempt, max_attempts)

                    if not retry_info["should_retry"]:
                        raise

                    delays.append(retry_info["delay_seconds"])

        with pytest.raises(ConnectionResetError):
            loop()

        assert (3, 2) == (len(attempts), len(delays))

    def test_a_permanent_error_is_not_retried(self) -> None:
        """A permanent error ends at the first attempt, and the reason says so."""
        decision = handle_retry_logic(ValueError("x"), 1, 3)

        assert (False, 0.0) == (decision["should_retry"], decision["delay_seconds"])
        assert "ValueError is permanent" in decision["reason"]

    def test_the_last_attempt_is_the_last(self) -> None:
        """An error that may pass isn't retried when no attempt is left."""
        decision = handle_retry_logic(TimeoutError(), 3, 3)

        assert not decision["should_retry"]
        assert "attempt 3 of 3" in decision["reason"]

    def test_an_errors_own_wish_wins(self) -> None:
        """The wait that an error asks for is kept, also above the backoff's bound."""
        decision = handle_retry_logic(RetryableError("x", retry_after=600.0), 1, 3, backoff=Backoff(max_seconds=1))

        assert 600.0 == decision["delay_seconds"]

    @pytest.mark.parametrize(("attempt", "max_attempts"), [(0, 3), (1, 0), (-1, 3)])
    def test_attempts_count_from_one(self, attempt: int, max_attempts: int) -> None:
        """Attempts count from 1; another count is a mistake of the caller."""
        with pytest.raises(ValidationError, match="count from 1"):
            handle_retry_logic(TimeoutError(), attempt, max_attempts)


class TestErrorContext:
    def test_fields_leave_out_what_is_not_there(self) -> None:
        """Without a task there is no task_id; extra fields stand beside the others."""
        context = ErrorContext("index", "router", queue="workers:nlp")

        assert {"operation": "index", "component": "router", "queue": "workers:nlp"} == context.fields()

    def test_secrets_are_masked(self) -> None:
        """Neither fields nor repr show what is named like a secret or stands in a URL."""
        context = ErrorContext(
            "index", "router", password="hunter2", url="redis://:hunter2@h/0", nest={"token": "hunter2"}
        )

        assert "hunter2" not in repr(context)
        assert "hunter2" not in str(context.fields())
        assert "redis://:***@h/0" == context.fields()["url"]


def fail() -> None:
    """Raise an error whose text and evidence hold secrets."""
    raise BrokerUnavailableError("redis://:hunter2@host:6379 said no", api_key="hunter2", host="host")


def failed() -> Exception:
    """Return an error with a traceback."""
    with pytest.raises(BrokerUnavailableError) as caught:
        fail()
    return caught.value


class TestLogErrorWithContext:
    def test_standard_loggers_get_text_and_fields(self, caplog: pytest.LogCaptureFixture) -> None:
        """One record at level error holds operation, component, task, error and traceback, and the fields."""
        context = ErrorContext("index", "router", task_id="7", name="taken", queue="q")

        log_error_with_context(logging.getLogger("orchestra.test"), failed(), context)

        (record,) = caplog.records
        assert "ERROR" == record.levelname
        assert "index failed in router for task 7: BrokerUnavailableError" in record.getMessage()
        assert "Traceback" in record.getMessage()
        fields = vars(record)
        assert ("7", "q", "taken", "host", True) == tuple(
            fields[name] for name in ("task_id", "queue", "name_", "host", "retryable")
        )
        assert "hunter2" not in caplog.text + str(fields)

    def test_adapters_are_standard_loggers(self, caplog: pytest.LogCaptureFixture) -> None:
        """A LoggerAdapter logs the same text."""
        adapter = logging.LoggerAdapter(logging.getLogger("orchestra.test"), {})

        log_error_with_context(adapter, failed(), ErrorContext("index", "router"))

        assert "index failed in router: BrokerUnavailableError" in caplog.text

    def test_structlog_loggers_get_fields(self) -> None:
        """A logger of structlog's kind gets an event with fields, traceback included, all of which JSON can hold."""
        with structlog.testing.capture_logs() as events:
            context = ErrorContext("index", "router", task_id="7", event="taken")
            log_error_with_context(structlog.get_logger(), failed(), context)

        (event,) = events
        assert ("operation failed", "error", "index", "7", "taken", "host") == tuple(
            event[name] for name in ("event", "log_level", "operation", "task_id", "event_", "host")
        )
        assert "Traceback" in event["exception"]
        assert "hunter2" not in json.dumps(event)
