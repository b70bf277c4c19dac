"""The command that tells why a task waits."""

import click

from orchestra.cli_app import completing, engine_of
from orchestra.cli_base import OrchestraCommand
from orchestra.cli_output import json_option, say, show_json
from orchestra.explanations import Subject
from orchestra.orchestra import Orchestra

__all__ = ["explain"]


def _tasks(engine: Orchestra) -> list[str]:
    return [name for name in engine.app.registry.catalogue() if not name.startswith("celery.")]


@click.command(cls=OrchestraCommand)
@click.argument("thing", metavar="ID|TASK|REQUIREMENT", shell_complete=completing(_tasks))
@json_option
@click.pass_context
def explain(ctx: click.Context, *, thing: str, wants_json: bool) -> None:
    """
    Tell why a task waits, or who could run a task.

    A task is named by its id. The name of a task, or a requirement such as 'gpu,mem_gb>=16', asks for a new one.
    The exit code is 1 if nothing is known by this name.
    """
    found = engine_of(ctx).explain(thing)
    if wants_json:
        show_json(found)
    else:
        say(*found.lines())
    ctx.exit(1 if found.subject is Subject.UNKNOWN else 0)
