"""The commands about tasks: submit one, read what became of it, list those that agents know."""

import json
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

import click
from celery import states
from celery.exceptions import TaskRevokedError
from celery.exceptions import TimeoutError as CeleryTimeoutError
from pydantic_core import to_jsonable_python

from orchestra.backend import STATES
from orchestra.capabilities import GENERAL
from orchestra.cli_app import agents_to_start, completing, engine_of, importing
from orchestra.cli_base import Failure, OrchestraCommand
from orchestra.cli_output import as_json, json_option, moment, say, show_json, show_table, spaced
from orchestra.cli_signature import signature_of
from orchestra.config import mask_url
from orchestra.exceptions import UnknownTaskError, ValidationError
from orchestra.orchestra import Orchestra, TaskHandle
from orchestra.registry import CatalogueEntry
from orchestra.store import mapped_errors
from orchestra.types import TaskRecord, TaskState, Urgency

__all__ = ["result", "submit", "tasks"]

_FOR_EVER: Final = "--wait=inf"
_LOOK_SECONDS: Final = 1.0  # how often the record is read while a result is waited for: not every task has one
_LEAST_SECONDS: Final = 0.05  # Celery takes a timeout of 0 for none


class TaskFailure(Failure):
    """A task came to a bad end: the command did what it should, but the exit code is 1."""

    exit_code = 1


class _WaitingCommand(OrchestraCommand):
    """A command whose `--wait` takes a number of seconds, or the words behind it as they are."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the command line; click alone would take whatever follows `--wait` for its value."""
        behind = [*args[1:], ""]
        words = [_FOR_EVER if word == "--wait" and not _is_number(behind[at]) else word for at, word in enumerate(args)]
        return super().parse_args(ctx, words)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


wait_option = click.option(
    "--wait",
    "patience",
    type=click.FloatRange(min=0),
    metavar="[SECONDS]",
    help="Wait until it's done; an error after so many seconds.",
)


# ── submit ──


def _names(engine: Orchestra) -> list[str]:
    return [name for name in engine.app.registry.catalogue() if not name.startswith("celery.")]


@click.command(cls=_WaitingCommand)
@click.argument("task", shell_complete=completing(_names))
@click.option(
    "--json",
    "payload",
    default="{}",
    metavar="OBJECT",
    help="The task's arguments by name, as JSON; `-` reads it from stdin, where others can't see it.",
)
@click.option("--requires", metavar="REQUIREMENT", help="What the agent must be able to do, such as 'nlp,mem_gb>=16'.")
@click.option("--urgency", type=click.Choice([one.value for one in Urgency], case_sensitive=False))
@click.option(
    "--on-unroutable",
    metavar="POLICY",
    help="If no agent can run it: wait, raise, fallback:REQUIREMENT or dead_letter_after:SECONDS.",
)
@click.option("--timeout", type=float, metavar="SECONDS", help="How long an attempt may take.")
@click.option("--countdown", type=float, metavar="SECONDS", help="How long to wait before it may start.")
@wait_option
@click.pass_context
def submit(
    ctx: click.Context,
    *,
    task: str,
    payload: str,
    requires: str | None,
    urgency: str | None,
    on_unroutable: str | None,
    timeout: float | None,
    countdown: float | None,
    patience: float | None,
) -> None:
    """
    Submit a task, and print its id.

    \b
    orchestra submit shop.index --json '{"text": "…"}' --urgency high --wait 10

    What isn't said here is as the task declares it. With --wait the id goes to stderr, and what the task returns to
    stdout, as JSON; the exit code is 1 if the task fails.
    """  # noqa: D301  # click's mark for a paragraph that keeps its lines
    arguments = _arguments(payload)
    engine = engine_of(ctx)
    options: dict[str, Any] = {
        "requires": requires,
        "urgency": urgency,
        "on_unroutable": on_unroutable,
        "timeout": timeout,
        "countdown": countdown,
    }
    try:
        handle = engine.submit(task, arguments, **options)
    except UnknownTaskError:  # no agent has published it; then maybe the app's own modules know it
        with importing(engine.app.main or task):
            engine.app.loader.import_default_modules()
        handle = engine.submit(task, arguments, **options)
    click.echo(handle.id, err=patience is not None)
    if patience is None:
        return
    ending = _awaited(engine, handle, patience)
    _raise_if_bad(ending.record)
    show_json(ending.value)


def _arguments(text: str) -> dict[str, Any]:
    """Read the payload; a ValidationError says where it isn't JSON, without quoting it."""
    try:
        found = json.loads(sys.stdin.read() if text == "-" else text)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        message = f'--json takes a JSON object such as \'{{"text": "…"}}\'; this isn\'t one: {error}'
        raise ValidationError(message) from error
    if not isinstance(found, dict):
        message = f"--json takes an object that holds the arguments by name; this is of type {type(found).__name__}."
        raise ValidationError(message)
    return found


# ── result ──


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ending:
    """Where a task stands; `value` is what it returned, None unless it is `stored`."""

    record: TaskRecord
    stored: bool
    value: Any


@click.command(cls=_WaitingCommand)
@click.argument("task_id", metavar="ID")
@wait_option
@json_option
@click.pass_context
def result(ctx: click.Context, *, task_id: str, patience: float | None, wants_json: bool) -> None:
    """
    Show where a task stands, and how it came there.

    With --wait, wait until it's done first. The exit code is 1 if it failed, expired or was cancelled, and 2 if nothing
    is known of it.
    """
    engine = engine_of(ctx)
    handle = engine.handle(task_id)
    ending = _ending(engine, handle) if patience is None else _awaited(engine, handle, patience)
    if wants_json:
        show_json({**to_jsonable_python(ending.record), "result": ending.value})
    else:
        _show(ending)
    state = ending.record.state
    ctx.exit(1 if state.finished and state is not TaskState.SUCCEEDED else 0)


def _awaited(engine: Orchestra, handle: TaskHandle, patience: float) -> _Ending:
    """
    Wait until a task is done.

    Raises:
        ValidationError: nothing is known of it.
        Failure: it isn't done in time.

    """
    deadline = time.monotonic() + patience
    ending = _ending(engine, handle)  # Celery would wait for ever for an id that nothing is known of
    waiting = handle.result
    while not ending.record.state.finished:
        left = deadline - time.monotonic()
        if left <= 0:
            raise Failure(_late(ending.record, patience))
        with mapped_errors(_results_at(engine)), suppress(CeleryTimeoutError):
            waiting.get(timeout=max(_LEAST_SECONDS, min(_LOOK_SECONDS, left)), propagate=False)
        ending = _ending(engine, handle)
    return ending


def _ending(engine: Orchestra, handle: TaskHandle) -> _Ending:
    record = _record(engine, handle)
    with mapped_errors(_results_at(engine)):
        known = handle.result
        state, value = known.state, known.result
    if state in states.READY_STATES and not record.state.finished:  # it ended between the two looks
        record = _record(engine, handle)
    if state in states.READY_STATES and not record.state.finished:  # a stock worker ran it, which keeps no record
        error = f"{type(value).__name__}: {value}" if isinstance(value, Exception) else None
        expired = isinstance(value, TaskRevokedError) and str(value) == TaskState.EXPIRED  # Celery's word for it
        record = replace(record, state=TaskState.EXPIRED if expired else STATES[state], error=error)
    stored = state == states.SUCCESS
    return _Ending(record=record, stored=stored, value=value if stored else None)


def _record(engine: Orchestra, handle: TaskHandle) -> TaskRecord:
    record = handle.record()
    if record is None:
        days = engine.app.settings.state_ttl_seconds / 86_400
        message = (
            f"Nothing is known of a task {handle.id}: is the id right, and the app? Records are kept for {days:g} days "
            "after their last change."
        )
        raise ValidationError(message)
    return record


def _results_at(engine: Orchestra) -> str:
    return mask_url(str(engine.app.conf.result_backend))


def _late(record: TaskRecord, patience: float) -> str:
    where = f" on {record.agent}" if record.agent else f" in {record.queue}" if record.queue else ""
    due = _due(record)
    now = f"it is {record.state}{where}" if due is None else f"it waits until {due} UTC"
    wait_on = f"Wait on with: orchestra result {record.task_id} --wait"
    return f"{record.name} isn't done after {patience:g} s, {now}. {wait_on}"


def _due(record: TaskRecord) -> str | None:
    """Return the time until which a task is delayed; None for one that isn't, or that is due."""
    at = record.not_before
    return None if at is None or at <= datetime.now(UTC) else moment(at)


def _raise_if_bad(record: TaskRecord) -> None:
    if record.state is TaskState.FAILED:
        raise TaskFailure(f"{record.name} failed: {record.error or 'no reason is known'}")
    if record.state is TaskState.CANCELLED:
        raise TaskFailure(f"{record.name} was cancelled.")
    if record.state is TaskState.EXPIRED:
        raise TaskFailure(f"{record.name} expired before it started.")


def _show(ending: _Ending) -> None:
    record = ending.record
    due = _due(record)
    facts = {
        "id": record.task_id,
        "task": record.name,
        "state": record.state,
        "requires": record.requires,
        "queue": record.queue,
        "waits": None if due is None else f"until {due} UTC",
        "agent": record.agent,
        "error": record.error,
        "result": as_json(ending.value) if ending.stored else None,
    }
    say(*(f"{name:<9} {value}" for name, value in facts.items() if value))
    if record.state is TaskState.SUCCEEDED and not ending.stored:
        say("result    none is kept: the task ignores it, or it has expired")
    rows = [(moment(one.at), one.state, str(one.attempt), one.agent or "-", one.note or "") for one in record.history]
    say("")
    show_table(("when (UTC)", "state", "attempt", "agent", "note"), rows)


# ── tasks ──


@click.command(cls=OrchestraCommand)
@json_option
@click.pass_context
def tasks(ctx: click.Context, *, wants_json: bool) -> None:
    """
    List the tasks, with their arguments.

    They are those that agents have published, with what each requires and how urgent it is.
    """
    engine = engine_of(ctx)
    catalogue = engine.app.registry.catalogue()
    known = {name: entry for name, entry in sorted(catalogue.items()) if not name.startswith("celery.")}
    if wants_json:
        show_json([{"name": name, **to_jsonable_python(entry)} for name, entry in known.items()])
    elif known:
        show_table(("task", "requires", "urgency", "arguments"), [_row(name, entry) for name, entry in known.items()])
    else:
        say("No task is known yet: agents publish theirs when they start.", *agents_to_start(ctx))


def _row(name: str, entry: CatalogueEntry) -> tuple[str, ...]:
    requires = spaced(entry.requires or GENERAL.text)
    return name, requires, entry.urgency or Urgency.NORMAL, signature_of(entry.arguments) or "-"
