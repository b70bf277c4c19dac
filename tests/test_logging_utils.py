"""Events become ordinary log records, and one call sends every record through one pipeline."""

import io
import json
import logging
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

from orchestra.exceptions import ConfigurationError
from orchestra.logging_utils import create_specialized_loggers, get_logger, setup_logging, wants_colours
from tests.logs import Output, Terminal, logging_left_alone


@pytest.fixture
def records(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Collect what is logged."""
    caplog.set_level(logging.INFO, logger="orchestra.sample")
    return caplog


class TestGetLogger:
    def test_event_is_a_line_with_its_fields(self, records: pytest.LogCaptureFixture) -> None:
        """An event reads as what happened, then its fields in the order given."""
        get_logger("orchestra.sample").info("task routed", task_id="7c9e", queue="shop:nlp")

        assert [("orchestra.sample", logging.INFO, "task routed: task_id=7c9e queue=shop:nlp")] == records.record_tuples

    def test_event_without_fields_is_the_event(self, records: pytest.LogCaptureFixture) -> None:
        """An event that has nothing to add stands alone, per cent signs included."""
        get_logger("orchestra.sample").warning("disk 100 %s full")

        assert ["disk 100 %s full"] == records.messages

    def test_bound_fields_come_first(self, records: pytest.LogCaptureFixture) -> None:
        """What was bound at the door is on every line behind it."""
        get_logger("orchestra.sample").bind(agent="text@a").info("task taken", task_id="7c9e")

        assert ["task taken: agent=text@a task_id=7c9e"] == records.messages

    def test_values_with_white_space_are_quoted(self, records: pytest.LogCaptureFixture) -> None:
        """A value from outside can't look like a further field, nor like a further line."""
        get_logger("orchestra.sample").info("task refused", task="a b\nc=d", empty="")

        assert ['task refused: task="a b\\nc=d" empty=""'] == records.messages

    def test_level_is_the_applications(self, records: pytest.LogCaptureFixture) -> None:
        """An app that sets levels through Python's logging is heard."""
        log = get_logger("orchestra.sample")
        log.debug("beat sent")
        logging.getLogger("orchestra.sample").setLevel(logging.ERROR)
        log.info("agent joined")
        log.error("agent lost")

        assert ["agent lost"] == records.messages

    def test_error_brings_its_traceback(self, records: pytest.LogCaptureFixture) -> None:
        """An error that is being handled is written below its event, once, by whatever writes the record."""
        try:
            sys.exit("no")
        except SystemExit:
            get_logger("orchestra.sample").exception("task failed", task_id="7c9e")

        assert ["task failed: task_id=7c9e"] == records.messages
        assert 1 == records.text.count("Traceback")
        assert records.text.endswith("SystemExit: no\n")

    def test_projects_own_structlog_is_untouched(self) -> None:
        """An app that configures structlog itself doesn't meet our settings there."""
        configured = structlog.get_config()

        get_logger("orchestra.sample").info("agent joined")

        assert configured == structlog.get_config()


@pytest.fixture
def output() -> Iterator[Output]:
    """Give a stream to write to, and leave Python's logging and structlog as they were."""
    with logging_left_alone():
        yield Output()


class TestSetupLogging:
    @pytest.mark.parametrize(
        "log",
        [
            lambda: get_logger("shop").warning("sold"),
            lambda: structlog.get_logger("shop").warning("sold"),
            lambda: logging.getLogger("shop").warning("sold"),
        ],
        ids=["ours", "structlog", "stdlib"],
    )
    def test_every_record_passes_it(self, log: Callable[[], None], output: Output) -> None:
        """Whoever logs, by whichever library, the record is written in the one format."""
        setup_logging("INFO", "json", stream=output)

        log()

        assert ("sold", "shop", "warning") == tuple(output.line[name] for name in ("event", "logger", "level"))

    def test_warnings_are_records(self, output: Output) -> None:
        """What Python would write to standard error by itself is logged."""
        setup_logging("INFO", "json", stream=output)

        with warnings.catch_warnings():
            warnings.simplefilter("always")
            logging.captureWarnings(capture=False)
            logging.captureWarnings(capture=True)
            warnings.warn("old", stacklevel=1)

        assert "py.warnings" == output.line["logger"]
        assert "UserWarning: old" in output.line["event"]

    def test_gives_a_logger(self, output: Output) -> None:
        """The logger takes fields, and can be bound."""
        logger = setup_logging("INFO", "json", stream=output)

        logger.bind(shelf=3).info("sold", price=2)

        assert {"event": "sold", "shelf": 3, "price": 2} == output.fields

    @pytest.mark.parametrize("level", ["WARNING", "warning", logging.WARNING])
    def test_level(self, level: str | int, output: Output) -> None:
        """What lies below the level isn't written; Python's numbers name levels too."""
        logger = setup_logging(level, "json", stream=output)

        logger.info("sold")
        logging.getLogger("shop").info("sold")
        logger.warning("sold out")

        assert "sold out" == output.line["event"]

    def test_second_call_takes_the_place_of_the_first(self, output: Output) -> None:
        """However often it's called, a record is written once, as the last call says."""
        first = Output()
        setup_logging("DEBUG", "console", stream=first)
        setup_logging("INFO", "json", stream=output)
        logger = setup_logging("INFO", "json", stream=output)

        logger.debug("seen")
        logger.info("sold")

        assert "sold" == output.line["event"]
        assert "" == first.getvalue()

    def test_console_for_people(self, output: Output) -> None:
        """The other format is one for reading; a stream that is no terminal gets no colours."""
        setup_logging(format_type="console", stream=output).info("sold", price=2)

        assert output.getvalue().endswith("info     sold price=2\n")
        assert "\x1b" not in output.getvalue()

    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            ({"level": "LOUD"}, "level is 'LOUD'; it must be one of: DEBUG, INFO, WARNING, ERROR, CRITICAL."),
            ({"level": 15}, "level is 15; it must be one of: DEBUG, INFO, WARNING, ERROR, CRITICAL."),
            ({"format_type": "xml"}, "format_type is 'xml'; it must be one of: console, json."),
        ],
    )
    def test_refuses(self, given: dict[str, Any], expected: str, output: Output) -> None:
        """What is no level or format is an error that names what is allowed, and changes nothing."""
        before = list(logging.getLogger().handlers)

        with pytest.raises(ConfigurationError) as caught:
            setup_logging(**given, stream=output)

        assert expected == str(caught.value)
        assert list(given) == [caught.value.variable]
        assert before == logging.getLogger().handlers

    def test_replaces_what_writes_to_the_same_terminal(self, output: Output, capsys: Any) -> None:
        """After `basicConfig`, a record isn't written twice; handlers that lead elsewhere stay."""
        elsewhere = logging.StreamHandler(io.StringIO())
        logging.getLogger().handlers = [logging.StreamHandler(), logging.StreamHandler(sys.stdout), elsewhere]

        setup_logging("INFO", "json", stream=output).info("sold")

        assert ("", "") == capsys.readouterr()
        assert "sold" == output.line["event"]
        assert "sold\n" == elsewhere.stream.getvalue()

    def test_standard_error_unless_told_otherwise(self) -> None:
        """A program's own output isn't mixed with its log."""
        code = (
            "import logging; logging.basicConfig(level=logging.DEBUG)\n"
            "from orchestra.logging_utils import setup_logging\n"
            "setup_logging(level='DEBUG', format_type='json').debug('seen')\n"
            "logging.basicConfig(level=logging.DEBUG); logging.getLogger('shop').debug('sold')"
        )

        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

        assert ["seen", "sold"] == [json.loads(line)["event"] for line in done.stderr.splitlines()]
        assert "" == done.stdout


class TestWantsColours:
    def test_on_a_terminal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nobody else reads colours."""
        monkeypatch.delenv("NO_COLOR", raising=False)

        assert [True, False, False] == [wants_colours(stream) for stream in (Terminal(), Output(), None)]

    def test_unless_asked_not_to(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """NO_COLOR, set to anything, is heard."""
        monkeypatch.setenv("NO_COLOR", "1")

        assert not wants_colours(Terminal())


class TestSpecializedLoggers:
    def test_are_named_below_the_given_logger(self, output: Output) -> None:
        """So each can have a level and handlers of its own; what is bound goes with them."""
        loggers = create_specialized_loggers(setup_logging("INFO", "json", stream=output).bind(service="shop"))

        loggers["performance"].log_operation_time("task_execution", 0.25)
        loggers["audit"].log_authorization("user1", "tasks", "create", True)

        assert ["orchestra.performance", "orchestra.audit"] == [line["logger"] for line in output.lines]
        assert ["shop", "shop"] == [line["service"] for line in output.lines]


class TestAuditLogger:
    @pytest.mark.parametrize(
        ("granted", "level", "event"),
        [(True, "info", "authorization granted"), (False, "warning", "authorization denied")],
    )
    def test_log_authorization(self, output: Output, granted: bool, level: str, event: str) -> None:
        """Who may do what to what is told; a refusal is a warning."""
        audit = create_specialized_loggers(setup_logging("INFO", "json", stream=output))["audit"]

        audit.log_authorization("user1", "tasks", "create", granted, roles=["viewer"])

        assert level == output.line["level"]
        assert {
            "event": event,
            "principal": "user1",
            "resource": "tasks",
            "action": "create",
            "roles": ["viewer"],
            "granted": granted,
        } == output.fields

    @pytest.mark.parametrize(
        ("given", "level", "expected"),
        [
            (
                {"principal": "user1", "granted": True},
                "info",
                {"event": "authentication granted", "principal": "user1", "granted": True},
            ),
            (
                {"principal": None, "granted": False, "source_ip": "192.0.2.7", "reason": "unknown key", "via": "key"},
                "warning",
                {
                    "event": "authentication denied",
                    "principal": None,
                    "granted": False,
                    "source_ip": "192.0.2.7",
                    "reason": "unknown key",
                    "via": "key",
                },
            ),
        ],
    )
    def test_log_authentication(
        self, output: Output, given: dict[str, Any], level: str, expected: dict[str, Any]
    ) -> None:
        """Who came in, or why not and from where; what isn't known isn't told."""
        audit = create_specialized_loggers(setup_logging("INFO", "json", stream=output))["audit"]

        audit.log_authentication(**given)

        assert level == output.line["level"]
        assert expected == output.fields
