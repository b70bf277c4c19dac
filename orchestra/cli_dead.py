"""The commands about dead letters: list them, show one, replay or purge some."""

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import reduce
from typing import Any, Final

import click
from pydantic_core import to_jsonable_python

from orchestra.cli_app import engine_of
from orchestra.cli_base import OrchestraCommand, OrchestraGroup
from orchestra.cli_output import ago, counted, json_option, moment, say, show_json, show_table
from orchestra.letters import DeadFilters, DeadLetter
from orchestra.types import DeadReason
from orchestra.utils import shorten

__all__ = ["dead"]

_UNITS: Final = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}
_SHOWN_BY_A_DRY_RUN: Final = 20
_HEADERS: Final = ("id", "died", "reason", "task")
_ERROR_CHARACTERS: Final = 76  # in a list; `show` has all of them
_LINE: Final = "\n"


class _Since(click.ParamType[datetime]):
    """A moment: how long ago, as `90s`, `10m`, `1h` or `2d`, or a time as ISO 8601 writes it, UTC without a zone."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Read what was given."""
        if isinstance(value, datetime):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|min|h|d)", value.strip())
        try:
            if match:
                return datetime.now(UTC) - timedelta(seconds=float(match[1]) * _UNITS[match[2]])
            read = datetime.fromisoformat(value)
        except (ValueError, OverflowError):
            self.fail(
                f"{value!r} is no time: write 90s, 10m, 1h or 2d, or a time such as 2030-01-31T12:00.", param, ctx
            )
        return read if read.tzinfo else read.replace(tzinfo=UTC)


_FILTERS: Final = (
    click.option("--task", metavar="NAME", help="Those of this task; `*` stands for any text."),
    click.option("--reason", type=click.Choice([one.value for one in DeadReason], case_sensitive=False)),
    click.option("--requires", metavar="LABEL", help="Those whose task requires this, such as `gpu`."),
    click.option("--since", type=_Since(), metavar="TIME", help="Those that died since: 90s, 10m, 1h or 2d ago."),
    click.option("--until", type=_Since(), metavar="TIME", help="Those that died until then."),
)


def _filtered(command: Callable[..., Any]) -> Callable[..., Any]:
    return reduce(lambda made, option: option(made), reversed(_FILTERS), command)


def _which(given: dict[str, Any]) -> DeadFilters:
    which: Any = {name: value for name, value in given.items() if value is not None}
    filters: DeadFilters = which
    return filters


@click.group(cls=OrchestraGroup)
def dead() -> None:
    """Look at dead letters: messages that no agent may run any more."""


# ── list ──


@dead.command("list", cls=OrchestraCommand)
@_filtered
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="How many to show.")
@click.option("--cursor", metavar="TEXT", help="Go on where a list ended.")
@json_option
@click.pass_context
def list_(ctx: click.Context, /, *, limit: int, cursor: str | None, wants_json: bool, **given: Any) -> None:
    """
    List dead letters, newest first.

    \b
    orchestra dead list --reason poison
    orchestra dead list --task 'shop.*' --since 1h
    """  # noqa: D301  # click's mark for a paragraph that keeps its lines
    letters = engine_of(ctx).dead_letters
    which = _which(given)
    page = letters.list(limit=limit, cursor=cursor, **which)
    total, dropped = letters.count(), letters.dropped()
    if wants_json:
        found = [_plain(letter) for letter in page.letters]
        show_json({"letters": found, "cursor": page.cursor, "total": total, "dropped": to_jsonable_python(dropped)})
        return
    if page.letters:
        _show_letters(page.letters)
    else:
        say("There are no dead letters." if not total else f"None of {counted(total, 'dead letter')} is such a one.")
    if page.cursor is not None:
        say("", f"There are more: --cursor '{page.cursor}'")
    if dropped.age or dropped.surplus:
        say("", f"Dropped so far: {dropped.age:,} for their age, {dropped.surplus:,} because there were too many.")


def _show_letters(letters: Sequence[DeadLetter]) -> None:
    """Print two lines for each: who died, when and why in a word, and below it the error."""
    rows = [_HEADERS, *((one.id, ago(one.died_at), one.reason, one.task or "-") for one in letters)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    heads = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    say(heads[0])
    for head, letter in zip(heads[1:], letters, strict=True):
        say(head, f"  {shorten((letter.error or '-').partition(_LINE)[0], _ERROR_CHARACTERS)}")


def _plain(letter: DeadLetter) -> dict[str, Any]:
    told: dict[str, Any] = to_jsonable_python(letter, bytes_mode="base64")
    del told["message"]
    return {**told, "lost_processes": letter.lost_processes, "lost_agents": letter.lost_agents}


# ── show ──


@dead.command(cls=OrchestraCommand)
@click.argument("letter_id", metavar="ID")
@json_option
@click.pass_context
def show(ctx: click.Context, *, letter_id: str, wants_json: bool) -> None:
    """Show one dead letter: why it died, what befell it, and its message as it was sent."""
    letter = engine_of(ctx).dead_letters.show(letter_id)
    if wants_json:
        show_json({**_plain(letter), "message": letter.message, "text": _text(letter)})
        return
    facts = {
        "id": letter.id,
        "task": letter.task,
        "reason": letter.reason,
        "error": letter.error,
        "died": f"{moment(letter.died_at)} UTC",
        "submitted": None if letter.submitted_at is None else f"{moment(letter.submitted_at)} UTC",
        "queue": letter.queue,
        "requires": letter.requires,
        "attempt": str(letter.attempt),
        "lost": _losses(letter),
    }
    say(*(f"{name:<9} {value}" for name, value in facts.items() if value))
    _show_life(letter)
    say("", _text(letter) or repr(letter.message))


def _show_life(letter: DeadLetter) -> None:
    """Show, in the order of their times, what its record and its deliveries tell."""
    told = [(one.at, one.state.value, one.agent, one.note) for one in letter.history]
    told += [(one.at, _befell(one.kind), one.agent, one.note) for one in letter.deliveries]
    told.sort(key=lambda row: row[0])
    if told:
        rows = [(moment(at), what, agent or "-", note or "") for at, what, agent, note in told]
        say("")
        show_table(("when (UTC)", "what", "agent", "note"), rows)


def _text(letter: DeadLetter) -> str | None:
    """Return the message as a text; None for bytes that are none."""
    try:
        return None if letter.message is None else letter.message.decode()
    except UnicodeDecodeError:
        return None


def _befell(kind: str) -> str:
    return "replayed" if kind == "replay" else f"{kind} lost"


def _losses(letter: DeadLetter) -> str | None:
    if not letter.lost_processes and not letter.lost_agents:
        return None
    processes = f"{letter.lost_processes} process{'' if letter.lost_processes == 1 else 'es'}"
    return f"{processes} and {counted(letter.lost_agents, 'agent')} since it was sent or replayed last"


# ── replay and purge ──


@dead.command(cls=OrchestraCommand)
@click.argument("letter_ids", nargs=-1, metavar="[ID]...")
@_filtered
@click.option("--dry-run", is_flag=True, help="Only show which ones.")
@click.option("--rate", type=float, metavar="N", help="Publish N in a second at most.")
@click.pass_context
def replay(
    ctx: click.Context, /, *, letter_ids: tuple[str, ...], dry_run: bool, rate: float | None, **given: Any
) -> None:
    """
    Publish dead letters anew, as they were sent.

    \b
    orchestra dead replay 7c9e6679-7425-40de-944b-e07fc1f90ae7
    orchestra dead replay --task invoice.render --since 1h --dry-run
    orchestra dead replay --task '*' --rate 50

    Each leaves the dead letters in the step in which it's published, so that stopping in the middle loses and doubles
    nothing. A task that had expired or was revoked runs.
    """  # noqa: D301  # click's mark for a paragraph that keeps its lines
    letters, which = engine_of(ctx).dead_letters, _which(given)
    count = letters.replay(*letter_ids, rate_per_second=rate, dry_run=dry_run, **which)
    if dry_run:
        _preview(ctx, which, count, f"{counted(count, 'dead letter')} would be replayed.")
    else:
        say(f"{counted(count, 'dead letter')} replayed.")


@dead.command(cls=OrchestraCommand)
@click.argument("letter_ids", nargs=-1, metavar="[ID]...")
@_filtered
@click.option("--dry-run", is_flag=True, help="Only show which ones.")
@click.option("--yes", is_flag=True, help="Don't ask.")
@click.pass_context
def purge(ctx: click.Context, /, *, letter_ids: tuple[str, ...], dry_run: bool, yes: bool, **given: Any) -> None:
    """
    Delete dead letters for good.

    \b
    orchestra dead purge --reason expired --until 7d
    """  # noqa: D301  # click's mark for a paragraph that keeps its lines
    letters, which = engine_of(ctx).dead_letters, _which(given)
    count = letters.purge(*letter_ids, dry_run=True, **which)
    if dry_run:
        _preview(ctx, which, count, f"{counted(count, 'dead letter')} would be purged.")
        return
    if count and not letter_ids and not yes:
        click.confirm(f"Delete {counted(count, 'dead letter')} for good?", abort=True)
    say(f"{counted(letters.purge(*letter_ids, **which), 'dead letter')} purged.")


def _preview(ctx: click.Context, which: DeadFilters, count: int, verdict: str) -> None:
    """Show the newest of those that filters mean, and say how many there are."""
    if which and count:
        page = engine_of(ctx).dead_letters.list(limit=_SHOWN_BY_A_DRY_RUN, **which)
        _show_letters(page.letters)
        if count > len(page.letters):
            say(f"… and {count - len(page.letters):,} more")
        say("")
    say(verdict)
