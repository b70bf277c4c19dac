"""The guide on error handling, logging, and resources."""

import importlib
import json
import logging
from collections.abc import Callable, Iterator
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

import orchestra
from orchestra.embedded import EmbeddedServer
from orchestra.exceptions import PermanentError, RetryableError
from orchestra.fleet import Fleet
from orchestra.testing_utils import FrozenClock
from orchestra.utils import TTLCache
from tests.guide.quoting import quotes, run


class TestErrorHandling:
    """Error Handling."""

    @quotes(
        """\
        from orchestra.exceptions import (
            AgentOrchestraException,    # Base exception
            RetryableError,             # Can be retried
            PermanentError,             # Should not be retried
            ValidationError,            # Input validation failed
            SecurityError               # Security violation
        )
        """
    )
    def test_hierarchy(self, quoted: str) -> None:
        """The first branching tells whether to try again; what can't help is permanent."""
        names = run(quoted)

        base = names["AgentOrchestraException"]
        assert issubclass(names["RetryableError"], base)
        assert issubclass(names["PermanentError"], base)
        assert issubclass(names["ValidationError"], names["PermanentError"])
        assert issubclass(names["SecurityError"], names["PermanentError"])

    RETRY = """\
        from orchestra.exceptions import handle_retry_logic

        for attempt in range(1, max_attempts + 1):
            try:
                result = risky_operation()
                break
            except Exception as e:
                retry_info = handle_retry_logic(e, attempt, max_attempts)

                if not retry_info['should_retry']:
                    raise

                time.sleep(retry_info['delay_seconds'])
        """

    @quotes(RETRY)
    def test_retry_until_it_works(self, quoted: str) -> None:
        """What may pass is tried again after a wait, and the wait an error names is kept."""
        waits: list[float] = []

        names = run(
            quoted,
            max_attempts=3,
            risky_operation=failing(RetryableError("busy", retry_after=7), ConnectionError("gone"), "done"),
            time=SimpleNamespace(sleep=waits.append),
        )

        assert ("done", 3) == (names["result"], names["attempt"])
        assert 7 == waits[0]
        assert 0 <= waits[1] <= 60

    @quotes(RETRY)
    @pytest.mark.parametrize(("error", "calls"), [(PermanentError("no"), 1), (RetryableError("busy"), 3)])
    def test_retry_ends(self, quoted: str, error: Exception, calls: int) -> None:
        """What can't help isn't tried again, and attempts come to an end."""
        operation = failing(*[error] * 5)

        with pytest.raises(type(error)):
            run(quoted, max_attempts=3, risky_operation=operation, time=SimpleNamespace(sleep=lambda _: None))

        assert calls == operation.calls  # type: ignore[attr-defined]

    @quotes(
        """\
        from orchestra.exceptions import ErrorContext, log_error_with_context

        try:
            dangerous_operation()
        except Exception as e:
            context = ErrorContext(
                operation="dangerous_operation",
                component="task_router",
                task_id=task.id
            )
            log_error_with_context(logger, e, context)
            raise
        """
    )
    def test_context(self, quoted: str, caplog: pytest.LogCaptureFixture) -> None:
        """The error is logged once, with what was going on, and goes on its way."""
        logger = logging.getLogger("guide")

        with pytest.raises(PermanentError, match="no such queue"):
            run(
                quoted,
                dangerous_operation=failing(PermanentError("no such queue")),
                task=SimpleNamespace(id="7c9e6679"),
                logger=logger,
            )

        (record,) = caplog.records
        assert ("dangerous_operation", "task_router", "7c9e6679") == (
            vars(record)["operation"],
            vars(record)["component"],
            vars(record)["task_id"],
        )


def failing(*outcomes: Any) -> Callable[[], Any]:
    """Return a function that raises or returns one outcome after the other, and counts."""
    left = list(outcomes)

    def operation() -> Any:
        operation.calls += 1  # type: ignore[attr-defined]
        outcome = left.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    operation.calls = 0  # type: ignore[attr-defined]
    return operation


class TestLogging:
    """Logging and Observability, and Debugging."""

    @quotes(
        """\
        from orchestra.logging_utils import setup_logging, create_specialized_loggers

        # Setup logging
        logger = setup_logging(level='INFO', format_type='json')

        # Use specialized loggers
        loggers = create_specialized_loggers(logger)
        loggers['performance'].log_operation_time('task_execution', duration)
        loggers['audit'].log_authorization('user1', 'tasks', 'create', True)
        """
    )
    def test_structured(self, quoted: str, logged: Callable[[], list[Any]]) -> None:
        """Both loggers write JSON, one object a line."""
        run(quoted, duration=0.25)

        timed, granted = logged()
        assert ("task_execution", 0.25) == (timed["operation"], timed["duration_seconds"])
        assert ("user1", "tasks", "create", True) == (
            granted["principal"],
            granted["resource"],
            granted["action"],
            granted["granted"],
        )

    @quotes(
        """\
        from orchestra.logging_utils import performance_logging

        @performance_logging(threshold_seconds=1.0)
        def slow_operation():
            # This will be logged if it takes > 1 second
            pass

        # Or use context manager
        with performance_logger.time_operation('database_query'):
            result = db.query(sql)
        """
    )
    def test_performance(self, quoted: str, logged: Callable[[], list[Any]]) -> None:
        """A fast call of the decorated function is silent; the timed block is told with its time."""
        utils = importlib.import_module("orchestra.logging_utils")
        logger = utils.setup_logging(level="DEBUG", format_type="json")
        performance_logger = utils.create_specialized_loggers(logger)["performance"]

        names = run(
            quoted, performance_logger=performance_logger, db=SimpleNamespace(query=lambda sql: [sql]), sql="select 1"
        )
        names["slow_operation"]()

        assert ["select 1"] == names["result"]
        assert ["database_query"] == [line["operation"] for line in logged()]

    @quotes(
        """\
        # Enable debug logging
        import logging
        logging.basicConfig(level=logging.DEBUG)

        # Or use structured logging
        from orchestra.logging_utils import setup_logging
        logger = setup_logging(level='DEBUG', format_type='json')
        """
    )
    def test_debugging(self, quoted: str, logged: Callable[[], list[Any]]) -> None:
        """After either, debug events are written; after the second as JSON, once."""
        run(quoted)["logger"].debug("looked closer", depth=3)

        (line,) = [line for line in logged() if line.get("depth")]
        assert ("looked closer", "debug") == (line["event"], line["level"])


@pytest.fixture
def logged(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], list[Any]]]:
    """Give what is written to standard error, as JSON of every line; leave Python's logging as it was."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    root.handlers = []
    yield lambda: [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    root.setLevel(level)
    root.handlers = handlers
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()


class TestResources:
    """Performance Considerations."""

    @quotes(
        "- Implement proper cleanup in `__enter__`/`__exit__` methods",
        "- Use context managers for resource handling",
    )
    def test_context_managers(self, quoted: str) -> None:
        """What holds a process or connections is a context manager."""
        for kind in (EmbeddedServer, Fleet, orchestra.OrchestraCelery, orchestra.Orchestra):
            assert hasattr(kind, "__enter__"), kind
            assert hasattr(kind, "__exit__"), kind

    @quotes("- Use TTL-based caching for dynamic data", "- Implement cache invalidation strategies")
    def test_cache(self, quoted: str) -> None:
        """The cache loads again when a value is too old, and when it is told that it's no longer right."""
        clock, numbers = FrozenClock(), count(1)
        cache: TTLCache[str, int] = TTLCache(lambda _: next(numbers), ttl_seconds=10, clock=clock)

        first, again = cache.get("a"), cache.get("a")
        clock.advance(11)
        late = cache.get("a")
        cache.invalidate("a")

        assert (1, 1, 2, 3) == (first, again, late, cache.get("a"))
