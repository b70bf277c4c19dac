"""The commands about circuit breakers: list, open, close, reset."""

from collections.abc import Sequence
from typing import Final

import click

from orchestra.breaker import BreakerPhase, BreakerState
from orchestra.cli_app import completing, engine_of
from orchestra.cli_base import OrchestraCommand, OrchestraGroup
from orchestra.cli_output import ago, counted, json_option, moment, say, show_json, show_table
from orchestra.orchestra import Orchestra

__all__ = ["breakers"]

_CHANGES_SHOWN: Final = 10
_WORDS: Final = {BreakerPhase.CLOSED: "closed", BreakerPhase.OPEN: "open", BreakerPhase.HALF_OPEN: "half open"}


@click.group(cls=OrchestraGroup)
def breakers() -> None:
    """Show and steer the circuit breakers."""


@breakers.command("list", cls=OrchestraCommand)
@json_option
@click.pass_context
def list_breakers(ctx: click.Context, *, wants_json: bool) -> None:
    """
    List the breakers: how each stands, what its calls came to, and how many tasks wait for it.

    Those are listed that a task declares, that were called within a day, or that aren't closed.
    """
    known = engine_of(ctx).breakers()
    if wants_json:
        show_json(known)
        return
    if not known:
        say("No task declares a breaker, and none was called within a day.")
        return
    held_off = [number for number, one in enumerate(known) if one.state is BreakerPhase.OPEN]
    show_table(("breaker", "state", "failed", "waiting", "since", "until"), [*map(_row, known)], marked=held_off)
    _show_changes(known)


def _row(one: BreakerState) -> tuple[str, ...]:
    state = _WORDS[one.state]
    if one.state is BreakerPhase.HALF_OPEN:
        state += f", {one.probes} of {counted(one.places, 'probe')}"
    until = moment(one.until)[11:19] if one.until else "closed" if one.state is BreakerPhase.OPEN else "-"
    since = ago(one.since) if one.since else "-"
    return one.name, state, f"{one.failures} of {one.calls}", f"{one.waiting:,}", since, until


def _show_changes(known: Sequence[BreakerState]) -> None:
    changes = sorted(((change, one.name) for one in known for change in one.changes), key=lambda pair: pair[0].at)
    if changes:
        say("", "last changes")
    for change, name in changes[-_CHANGES_SHOWN:]:
        why = f", {change.failures} of {counted(change.calls, 'call')} failed" if change.failures else ""
        say(f"  {moment(change.at)[:19]}  {name} {_WORDS[change.state]} by {change.by}{why}")


def _names(engine: Orchestra) -> list[str]:
    return [one.name for one in engine.breakers()]


def _argument() -> click.Argument:
    return click.Argument(["name"], metavar="NAME", shell_complete=completing(_names))


@breakers.command("open", cls=OrchestraCommand, params=[_argument()])
@click.option(
    "--for", "seconds", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", help="And then try it."
)
@click.pass_context
def open_breaker(ctx: click.Context, *, name: str, seconds: float | None) -> None:
    """
    Hold a service off: what calls it waits, or fails, as its task declares.

    NAME is a breaker's, or NAME:KEY of one that has a key. It stays open until somebody closes it, or for so many
    seconds; then calls are tried.
    """
    engine_of(ctx).open_breaker(name, seconds=seconds)
    say(f"{name} is open" + (f" for {seconds:g} s" if seconds else " until it's closed"))


@breakers.command("close", cls=OrchestraCommand, params=[_argument()])
@click.pass_context
def close_breaker(ctx: click.Context, *, name: str) -> None:
    """Let a service be called again, at once and by all; what waited for it goes first."""
    closed = engine_of(ctx).close_breaker(name)
    say(f"{name} is closed" if closed else f"{name} was closed already")


@breakers.command("reset", cls=OrchestraCommand, params=[_argument()])
@click.pass_context
def reset_breaker(ctx: click.Context, *, name: str) -> None:
    """Close a breaker and forget what its calls came to; it's listed again once it's called."""
    engine_of(ctx).reset_breaker(name)
    say(f"{name} is reset")
