"""The command that cancels tasks."""

from typing import Final

import click

from orchestra.cli_app import engine_of
from orchestra.cli_base import OrchestraCommand
from orchestra.cli_output import json_option, say, show_json
from orchestra.types import Cancelled

__all__ = ["cancel"]

_SAID: Final = {
    Cancelled.WAITING: "cancelled; it was waiting",
    Cancelled.DELAYED: "cancelled; it was delayed",
    Cancelled.LEASED: "cancelled; an agent had it, and won't begin it",
    Cancelled.RUNNING: "cancelled; it was running, and its agent is told",
    Cancelled.BEFORE: "was cancelled before",
    Cancelled.FINISHED: "not cancelled: it is finished",
    Cancelled.UNKNOWN: "not cancelled: nothing is known of it",
}


@click.command(cls=OrchestraCommand)
@click.argument("task_ids", metavar="ID...", nargs=-1, required=True)
@json_option
@click.pass_context
def cancel(ctx: click.Context, *, task_ids: tuple[str, ...], wants_json: bool) -> None:
    """
    Cancel tasks, whether they wait or run.

    It tells what each was doing. The exit code is 1 if one of them wasn't cancelled, since it is finished or not known.
    """
    engine = engine_of(ctx)
    found = {task_id: engine.handle(task_id).cancel(note="from the command line") for task_id in task_ids}
    if wants_json:
        show_json(found)
    else:
        say(*(f"{task_id}  {_SAID[what]}" for task_id, what in found.items()))
    ctx.exit(0 if all(found.values()) else 1)
