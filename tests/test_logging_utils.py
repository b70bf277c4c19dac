"""Events become ordinary log records."""

import logging
import sys

import pytest
import structlog

from orchestra.logging_utils import get_logger


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
        """An error that is being handled is written below its event."""
        try:
            sys.exit("no")
        except SystemExit:
            get_logger("orchestra.sample").exception("task failed", task_id="7c9e")

        (message,) = records.messages
        first, _, trace = message.partition("\n")
        assert "task failed: task_id=7c9e" == first
        assert trace.startswith("Traceback")
        assert "SystemExit: no" in trace

    def test_projects_own_structlog_is_untouched(self) -> None:
        """An app that configures structlog itself doesn't meet our settings there."""
        configured = structlog.get_config()

        get_logger("orchestra.sample").info("agent joined")

        assert configured == structlog.get_config()
