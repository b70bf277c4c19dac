import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import click
import pytest
from click.testing import CliRunner

from orchestra.cli_output import ago, as_json, counted, moment, say, show_json, show_table
from orchestra.types import HistoryEntry, TaskState

NOON = datetime(2026, 2, 3, 12, 0, 0, 250_000, tzinfo=UTC)


def printed(act: Callable[[], None], *, width: int = 80, **options: Any) -> str:
    """Return what is printed by a command in a terminal of this width."""
    return CliRunner(**options).invoke(click.Command("c", callback=act), env={"COLUMNS": str(width)}).stdout


class TestAsJson:
    def test_records(self) -> None:
        """A value of ours is an object with its fields; a time is ISO 8601 in UTC."""
        entry = HistoryEntry(state=TaskState.RUNNING, at=NOON)

        assert {
            "state": "running",
            "at": "2026-02-03T12:00:00.250000Z",
            "agent": None,
            "attempt": 1,
            "note": None,
        } == json.loads(as_json(entry))

    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (float("nan"), '"NaN"'),
            ([float("inf")], '["Infinity"]'),
            (Decimal("1.50"), '"1.50"'),
            (b"\xff\x00", '"_wA="'),
            (timedelta(seconds=90), '"PT1M30S"'),
            ({1: (2, 3)}, '{"1": [2, 3]}'),
            ("ä\n", '"ä\\n"'),
        ],
    )
    def test_what_json_does_not_have(self, value: object, text: str) -> None:
        """Any result is valid JSON."""
        assert text == as_json(value)

    def test_foreign_objects(self) -> None:
        """An object that JSON knows nothing of is its text."""
        assert '"1j"' == as_json(1j)

    def test_long_values_are_indented(self) -> None:
        """What fits in a line stays in one."""
        short, long = ["a" * 30, "b" * 30], ["a" * 40, "b" * 40]

        assert 0 == as_json(short).count("\n")
        assert 3 == as_json(long).count("\n")


class TestShowJson:
    @pytest.mark.parametrize(("charset", "text"), [("utf-8", '"ä€"\n'), ("latin-1", '"\\u00e4\\u20ac"\n')])
    def test_what_cannot_be_encoded_is_escaped(self, charset: str, text: str) -> None:
        """It's the same JSON in any locale."""
        assert text == printed(lambda: show_json("ä€"), charset=charset)

    def test_broken_text(self) -> None:
        """So is a text that no encoding can hold, such as a file's name that isn't UTF-8."""
        assert '"\\udcff"\n' == printed(lambda: show_json("\udcff"))


class TestShowTable:
    ROWS = (("short", "one two three"), ("a-name-of-twenty-eight-letters", "x" * 30))

    def test_columns_stand_below_their_headers(self) -> None:
        """There are no lines around cells, and no spaces behind them."""
        assert "name   words\nshort  one two\n" == printed(
            lambda: show_table(("name", "words"), [("short", "one two")])
        )

    def test_what_does_not_fit_goes_on_below(self) -> None:
        """Nothing is cut off: words go to the next line, and a word that is too long is parted."""
        text = printed(lambda: show_table(("name", "words"), [("short", "one two three"), ("b", "x" * 12)]), width=17)

        assert ["name   words", "short  one two", "       three", "b      xxxxxxxxxx", "       xx"] == text.splitlines()

    def test_first_column_is_whole_while_there_is_room(self) -> None:
        """A name can be found and copied as long as it takes no more than half of the width."""
        rows = [("n" * 30, "x" * 60)]

        assert ["n" * 30, "x" * 28] == printed(lambda: show_table(("a", "b"), rows), width=60).splitlines()[1].split()
        assert "n" * 30 not in printed(lambda: show_table(("a", "b"), rows), width=40)

    def test_cells_cannot_steer_the_terminal(self) -> None:
        """What is in Redis may come from anybody: neither control characters nor markup have an effect."""
        text = printed(lambda: show_table(("a",), [("\x1b[2J[red]x[/]\n",)]))

        assert "a\n\\x1b[2J[red]x[/]\\n\n" == text


class TestSay:
    def test_a_line_each(self) -> None:
        """Lines are folded between words."""
        assert "one two\nthree\n\nfour\n" == printed(lambda: say("one two three", "", "four"), width=8)


class TestWords:
    def test_counted(self) -> None:
        """One thing is no plural."""
        assert ["0 tasks", "1 task", "1,200 tasks"] == [counted(number, "task") for number in (0, 1, 1200)]

    def test_moment(self) -> None:
        """A time is read in UTC, whatever its zone."""
        assert "2026-02-03 12:00:00.250" == moment(NOON.astimezone(timezone(timedelta(hours=5))))

    @pytest.mark.parametrize(
        ("seconds", "text"),
        [(-5, "0 s ago"), (0, "0 s ago"), (61, "1 min ago"), (7_300, "2 h ago"), (200_000, "2 d ago")],
    )
    def test_ago(self, seconds: float, text: str) -> None:
        """A distance is told in its largest unit; a clock that is behind makes no time to come."""
        assert text == ago(datetime.now(UTC) - timedelta(seconds=seconds))
