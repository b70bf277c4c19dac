"""One line for each record, in JSON or for people, whoever logged it and whatever it holds."""

import io
import json
import logging
from collections.abc import Iterator
from datetime import UTC, date, datetime
from enum import IntEnum
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import example, given
from hypothesis import strategies as st
from structlog.contextvars import bound_contextvars

from orchestra.log_pipeline import EMITTING, Event, FormatType, PipelineFormatter, _masked
from orchestra.utils import mask_text
from tests.logs import TRACE, Written, fail

MOMENT = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)


class Unshowable:
    """Something that can't be shown."""

    def __str__(self) -> str:
        message = "no"
        raise RuntimeError(message)

    __repr__ = __str__


class Size(IntEnum):
    """A number with a name."""

    LARGE = 3


@pytest.fixture
def written() -> Written:
    """Give loggers that write JSON."""
    return Written("json")


class TestEvent:
    def test_is_text_to_any_other_handler(self) -> None:
        """A formatter that knows nothing of us finds readable text, and the error where Python keeps it."""
        stream = io.StringIO()
        stdlib = logging.Logger("shop")  # noqa: LOG001  # as above
        stdlib.addHandler(logging.StreamHandler(stream))
        log: Any = structlog.wrap_logger(stdlib, wrapper_class=structlog.stdlib.BoundLogger, processors=EMITTING)

        fail(log.exception, "task failed", task="a b")

        first, second, *_, last = stream.getvalue().splitlines()
        assert ['task failed: task="a b"', TRACE, "SystemExit: token=abc"] == [first, second, last]
        assert 1 == stream.getvalue().count(TRACE)

    def test_without_fields_is_what_happened(self) -> None:
        """There is no colon where nothing follows."""
        assert "agent joined" == str(Event(event="agent joined"))

    def test_blocks_stand_below(self) -> None:
        """A stack and a trace that a caller gives as text aren't squeezed into the line."""
        assert "lost: n=1\nstack\ntrace" == str(Event(event="lost", n=1, stack="stack", exception="trace"))


class TestEveryLine:
    def test_begins_alike(self) -> None:
        """The time is in UTC with microseconds, and then follow level, logger and event, whatever a caller names."""
        record = logging.makeLogRecord(
            {"name": "shop", "levelname": "INFO", "msg": "sold", "created": MOMENT.timestamp(), "price": 3}
        )

        line = PipelineFormatter("json").format(record)

        assert line == (
            '{"timestamp": "2026-01-02T03:04:05.678901Z", "level": "info", "logger": "shop", "event": "sold", '
            '"price": 3}'
        )

    def test_of_either_kind_of_logger(self) -> None:
        """Python's logging and structlog lead to the same line."""
        ours, theirs = Written("json"), Written("json")
        ours.structlog.warning("sold %s", "tea", price=3)
        theirs.stdlib.warning("sold %s", "tea", extra={"price": 3})

        assert ("sold tea", "warning", {"price": 3}) == (ours.line["event"], ours.line["level"], ours.fields)
        assert (ours.line["event"], ours.line["level"], ours.fields) == (
            theirs.line["event"],
            theirs.line["level"],
            theirs.fields,
        )

    def test_fields_dont_take_its_places(self, written: Written) -> None:
        """A field that is called as one of ours keeps its value under a name of its own."""
        written.structlog.info("sold", level="high", logger="x", timestamp="now")

        assert {"level_": "high", "logger_": "x", "timestamp_": "now"} == written.fields
        assert "info" == written.line["level"]

    def test_extra_fields_dont_either(self, written: Written) -> None:
        """The same goes for the extra fields of Python's logging."""
        written.stdlib.info("sold", extra={"event": "other", "level": "high"})

        assert ("sold", {"event_": "other", "level_": "high"}) == (written.line["event"], written.fields)

    def test_has_what_is_bound(self, written: Written) -> None:
        """What is bound to the thread or coroutine is on every line, unless the line says otherwise."""
        with bound_contextvars(task_id="7c9e", shelf=1):
            written.stdlib.info("sold", extra={"shelf": 2})

        assert {"shelf": 2, "task_id": "7c9e"} == written.fields

    def test_has_the_process_own_fields(self) -> None:
        """What was given to the formatter is on every line, unless the line says otherwise."""
        own = Written("json", fields={"agent": "text@a", "zone": "b"})
        own.structlog.info("sold", zone="c")

        assert {"agent": "text@a", "zone": "c"} == own.fields

    def test_passes_foreign_processors(self) -> None:
        """Records that aren't of structlog's kind can be told by somebody who knows them."""
        told = Written("json", foreign=[lambda _, __, event: {**event, "told": event["_record"].name}])
        told.stdlib.info("sold")

        assert {"told": "shop"} == told.fields

    def test_ignores_what_other_formatters_leave(self, written: Written) -> None:
        """Formatters write text and time into the record; those are no fields."""
        first = logging.StreamHandler(io.StringIO())
        first.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        written.stdlib.handlers.insert(0, first)

        written.stdlib.info("sold %s", "tea")

        assert {} == written.fields


class TestErrors:
    @pytest.mark.parametrize("kind", ["stdlib", "structlog"])
    def test_are_told_by_kind_words_and_trace(self, written: Written, kind: str) -> None:
        """An error that is being handled becomes three fields, without its secrets."""
        fail(getattr(written, kind).exception, "failed")

        assert ("SystemExit", "token=***") == (written.fields["error_type"], written.fields["error"])
        assert written.fields["exception"].startswith(TRACE)
        assert written.fields["exception"].endswith("SystemExit: token=***")

    def test_given_as_a_value(self, written: Written) -> None:
        """An error may be given after it was handled."""
        written.structlog.error("failed", exc_info=ValueError("late"))

        assert ("ValueError", "late", "ValueError: late") == (
            written.fields["error_type"],
            written.fields["error"],
            written.fields["exception"],
        )

    def test_none_is_none(self, written: Written) -> None:
        """Nothing is told where there's no error."""
        written.structlog.exception("failed")

        assert {} == written.fields

    def test_own_words_stay(self, written: Written) -> None:
        """A caller who says what the error is isn't overruled."""
        fail(written.structlog.exception, "failed", error="closed", error_type="Shop")

        assert ("closed", "Shop") == (written.fields["error"], written.fields["error_type"])

    @pytest.mark.parametrize("kind", ["stdlib", "structlog"])
    def test_stack(self, written: Written, kind: str) -> None:
        """A stack that is asked for is a field."""
        getattr(written, kind).info("here", stack_info=True)

        assert ["stack"] == list(written.fields)
        assert "in test_stack" in written.fields["stack"]

    def test_of_the_record_stay_for_others(self, written: Written) -> None:
        """A handler that comes after ours finds the error where Python keeps it."""
        stream = io.StringIO()
        written.stdlib.addHandler(logging.StreamHandler(stream))

        fail(written.stdlib.exception, "failed")

        assert stream.getvalue().endswith("SystemExit: token=abc\n")


class TestValues:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            (None, None),
            (True, True),
            (3, 3),
            (Size.LARGE, 3),
            (-(2**63) + 1, -(2**63) + 1),
            (2**63, "0x8000000000000000"),
            (10**5000, hex(10**5000)),
            (0.5, 0.5),
            (float("nan"), "nan"),
            (float("-inf"), "-inf"),
            (date(2026, 1, 2), "2026-01-02"),
            (Path("a/b"), "a/b"),
            (b"x", "b'x'"),
            (KeyError("x"), "KeyError: 'x'"),
            ({1: {"a"}, None: (1, [2])}, {"1": ["a"], "None": [1, [2]]}),
            (Unshowable(), "<Unshowable that can't be shown>"),
            ([Unshowable()], "<list that can't be shown>"),
            ("\ud800", "\ud800"),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_become_json(self, written: Written, value: object, expected: object) -> None:
        """What JSON has no form for becomes its text; a value never breaks a line."""
        written.structlog.info("seen", value=value)

        assert {"value": expected} == written.fields

    def test_circles_end(self, written: Written) -> None:
        """A value that holds itself is shown once."""
        circle: list[Any] = [1]
        circle += [circle, {"again": circle}]

        written.structlog.info("seen", value=circle)

        assert [1, "…", {"again": "…"}] == written.fields["value"]

    def test_depth_ends(self, written: Written) -> None:
        """What lies too deep is left out."""
        deep: list[Any] = []
        for _ in range(2000):
            deep = [deep]

        written.structlog.info("seen", value=deep)

        assert "[" * 8 + '"…"' + "]" * 8 == json.dumps(written.fields["value"], ensure_ascii=False)

    @given(
        st.text(),
        st.dictionaries(st.text(max_size=9), st.text() | st.floats() | st.integers() | st.lists(st.text()), max_size=3),
    )
    @example("a\u2028b\x85c\rd", {"\n": "\x0b\x1c"})
    def test_are_one_line_of_json_whatever_they_are(self, event: str, fields: dict[str, Any]) -> None:
        """No text, in event, field name or value, ends a line or breaks it."""
        log = Written("json")
        log.stdlib.info("%s", event, extra={f"x{name}": value for name, value in fields.items()})

        assert "info" == log.line["level"]
        assert len(fields) == len(log.fields)


class TestWhatCantBeWritten:
    @pytest.mark.parametrize("format_type", ["json", "console"])
    def test_is_told_of(self, format_type: FormatType) -> None:
        """A message that its arguments don't fit is written as it was given, with the reason."""
        log = Written(format_type)
        log.stdlib.warning("sold %d", "tea")

        assert "sold %d" in log.text
        assert "('tea',)" in log.text
        assert "TypeError: %d format" in log.text

    def test_arguments_that_raise(self, written: Written) -> None:
        """Nor does an argument that can't be shown lose the record."""
        written.stdlib.warning("sold %s", Unshowable())

        assert ("sold %s", "RuntimeError: no") == (written.line["event"], written.fields["logging_error"])

    def test_structlogs_arguments(self, written: Written) -> None:
        """Where structlog would raise in the middle of the caller's work, the arguments become a field."""
        written.structlog.warning("sold %d", "tea")

        assert ("sold %d", {"positional_args": ["tea"]}) == (written.line["event"], written.fields)

    def test_message_that_isnt_text(self, written: Written) -> None:
        """Whatever is logged has a text, or is named by its kind."""
        written.stdlib.info(Unshowable())

        assert "<Unshowable that can't be shown>" == written.line["event"]


class TestSecrets:
    def test_are_masked(self, written: Written) -> None:
        """By the name of a field, in texts, at every depth, and in what other loggers' words say."""
        written.structlog.info(
            "connected to redis://me:hunter2@host/0",
            password="hunter2",
            url="redis://:hunter2@host",
            given={"headers": [{"Authorization": "hunter2"}], "note": "token=hunter2"},
            error=ValueError("secret: hunter2"),
        )

        assert "hunter2" not in written.text
        assert "redis://me:***@host/0" in written.line["event"]
        assert {"headers": [{"Authorization": "***"}], "note": "token=***"} == written.fields["given"]

    def test_of_any_object(self, written: Written) -> None:
        """The text of a value that JSON can't hold is looked through as well."""

        class Connection:
            def __str__(self) -> str:
                return "password=hunter2"

        written.structlog.info("connected", to=Connection())

        assert {"to": "password=***"} == written.fields

    @given(
        st.lists(
            st.sampled_from(
                ["token", "secret", "Password", "=", ": ", " ", "a", "://", "@", "redis", ":", "'x y'", "é"]
            )
        ).map("".join)
        | st.text()
    )
    @example("api_key=1 redis://x:y@z")
    def test_none_is_passed_over(self, text: str) -> None:
        """The look ahead, which saves time, misses nothing that `mask_text` finds."""
        assert mask_text(text) == _masked(text)


@pytest.fixture(autouse=True)
def unbound() -> Iterator[None]:
    """Fail where a test leaves something bound."""
    yield
    assert {} == structlog.contextvars.get_contextvars()
