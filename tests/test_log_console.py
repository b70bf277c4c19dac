"""Lines for people: what they say, what they leave out, and that nobody can forge one."""

import logging
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from structlog.contextvars import bound_contextvars

from orchestra.log_pipeline import PipelineFormatter
from tests.logs import TRACE, Written, fail


@pytest.fixture
def shown() -> Written:
    """Give loggers that write for people."""
    return Written("console")


class TestConsole:
    def test_line(self, shown: Written) -> None:
        """Time of day, level, what happened, the fields, and who says so."""
        shown.structlog.warning("task routed", task="a b", n=1, on=True, tags=["x"], about={"é": None})

        assert re.match(r"\d\d:\d\d:\d\d\.\d{3} ", shown.text)
        assert shown.shown == ('warning  task routed task="a b" n=1 on=True tags=["x"] about={"é": null} [shop]')

    def test_dates(self) -> None:
        """In a file that is kept, the date stands before the time."""
        kept = Written("console", dates=True)
        kept.structlog.info("sold")

        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} info     sold \[shop\]\n", kept.text)

    @pytest.mark.parametrize("name", ["celery.worker.strategy", "orchestra.agent", "celery", "orchestra"])
    def test_own_loggers_arent_named(self, name: str) -> None:
        """What Celery and Orchestra say tells by itself where it comes from."""
        record = logging.makeLogRecord({"name": name, "levelname": "INFO", "msg": "agent joined"})

        assert PipelineFormatter("console").format(record).endswith("info     agent joined")

    def test_says_nothing_twice(self) -> None:
        """Left out is what the text says, what every line of the process would, and that an attempt is the first."""
        own = Written("console", fields={"agent": "text@a"})
        with bound_contextvars(task_id="7c9e", task="shop.index", attempt=1, agent="text@a"):
            own.structlog.info("Task shop.index[7c9e] received")

        assert "info     Task shop.index[7c9e] received [shop]" == own.shown

    def test_says_what_differs(self) -> None:
        """Another agent than this one is named, and so are a later attempt and a task that the text doesn't name."""
        own = Written("console", fields={"agent": "text@a"})
        own.structlog.info("took over", agent="text@b", attempt=2, task_id="7c9e")

        assert "info     took over agent=text@b attempt=2 task_id=7c9e [shop]" == own.shown

    def test_error_stands_below(self, shown: Written) -> None:
        """The trace is indented, and tells the error's kind and words."""
        fail(shown.structlog.exception, "failed", n=1)

        first, second, *_, last = shown.shown.splitlines()
        assert ["error    failed n=1 [shop]", f"    {TRACE}", "    SystemExit: token=***"] == [first, second, last]

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("two\nlines\n", "info     two [shop]\n    lines"),
            ("\x1b[31mred", "info     \\x1b[31mred [shop]"),
            ("turned \u202e round", "info     turned \\u202e round [shop]"),
            ("half \ud800", "info     half \\ud800 [shop]"),
            ("a\tb é", "info     a\tb é [shop]"),
        ],
    )
    def test_text_commands_no_terminal(self, shown: Written, text: str, expected: str) -> None:
        """What a terminal would obey is shown as an escape; further lines are indented."""
        shown.stdlib.info(text)

        assert expected == shown.shown

    @given(st.text(), st.text())
    @example("a\n00:00:00.000 info     forged", "\u2028\x85\r\x1b")
    def test_nothing_looks_like_another_record(self, event: str, value: str) -> None:
        """Whatever text is logged, all lines but the first are indented."""
        log = Written("console")
        log.stdlib.info("%s", event, extra={"value": value})

        first, *further = log.text.splitlines()
        assert re.match(r"\d\d:\d\d:\d\d", first)
        assert all(line.startswith("    ") for line in further)

    @pytest.mark.parametrize(
        ("level", "expected"),
        [
            ("debug", "\x1b[2mdebug   \x1b[0m sold \x1b[2mn=\x1b[0m1 \x1b[2m[shop]\x1b[0m"),
            ("info", "info     sold \x1b[2mn=\x1b[0m1 \x1b[2m[shop]\x1b[0m"),
            ("error", "\x1b[31merror   \x1b[0m sold \x1b[2mn=\x1b[0m1 \x1b[2m[shop]\x1b[0m"),
        ],
    )
    def test_colours(self, level: str, expected: str) -> None:
        """Where colours are wanted, levels have their own, and what matters less is dim."""
        coloured = Written("console", colours=True)
        getattr(coloured.structlog, level)("sold", n=1)

        assert expected == coloured.shown
