"""What commands print: tables that fit the terminal, and JSON that keeps its shape."""

import json
import sys
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click
from pydantic_core import to_jsonable_python

from orchestra.cli_base import printable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

__all__ = ["ago", "as_json", "counted", "json_option", "moment", "say", "show_json", "show_table", "spaced"]

_UNITS: Final = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))
_LONGEST_LINE: Final = 80

json_option: Final[Callable[[Any], Any]] = click.option(
    "--json", "wants_json", is_flag=True, help="Print one JSON document, for programs."
)


def as_json(value: object) -> str:
    """
    Return `value` as JSON, in one line where it's short.

    Times are ISO 8601, bytes are base64, and what JSON doesn't have at all is a text: so are nan and infinity.
    """
    plain = to_jsonable_python(value, bytes_mode="base64", fallback=str)
    finite = json.loads(json.dumps(plain), parse_constant=str)
    line = json.dumps(finite, ensure_ascii=False)
    return line if len(line) <= _LONGEST_LINE else json.dumps(finite, ensure_ascii=False, indent=2)


def show_json(value: object) -> None:
    """Print `value` as `as_json` has it; what the terminal can't encode is escaped."""
    text = as_json(value)
    try:
        text.encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        text = json.dumps(json.loads(text))
    click.echo(text)


def show_table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, marked: Collection[int] = ()) -> None:
    """
    Print rows below headers, in the terminal's width or 80 columns; what doesn't fit goes on in the next line.

    Rows whose number is among `marked` are red in a terminal; what it means has to be in their words.
    """
    from rich.table import Table  # noqa: PLC0415  # as below

    console = _console()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for place, header in enumerate(headers):
        longest = max(len(row[place]) for row in rows)
        table.add_column(header, overflow="fold", no_wrap=place == 0 and longest <= console.width // 2)
    for number, row in enumerate(rows):
        table.add_row(*map(_text, row), style="red" if number in marked else None)
    _show(console, table)


def say(*lines: str) -> None:
    """Print lines, each going on below itself where it doesn't fit."""
    console = _console()
    for line in lines:
        _show(console, _text(line))


def _show(console: "Console", what: "RenderableType") -> None:
    """Print without the spaces that fill lines up."""
    with console.capture() as captured:
        console.print(what)
    click.echo("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()), nl=False)


def _console() -> "Console":
    from rich.console import Console  # noqa: PLC0415  # `--help`, `version` and the tab key do without it

    return Console(highlight=False)


def _text(line: str) -> "Text":
    from rich.text import Text  # noqa: PLC0415  # as above

    return Text(printable(line))


def moment(at: datetime) -> str:
    """Return a time as people read it, in UTC and to the millisecond."""
    return at.astimezone(UTC).isoformat(" ", "milliseconds").removesuffix("+00:00")


def spaced(text: str) -> str:
    """Return what commas part, such as a requirement, so that a table can part it between lines."""
    return text.replace(",", ", ")


def ago(at: datetime) -> str:
    """Return how long ago a time was, in its largest unit: `9 min ago`."""
    seconds = max(0.0, (datetime.now(UTC) - at).total_seconds())
    unit, length = next(((unit, length) for unit, length in _UNITS if seconds >= length), _UNITS[-1])
    return f"{seconds // length:.0f} {unit} ago"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: `1 task`, `1,204 tasks`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
