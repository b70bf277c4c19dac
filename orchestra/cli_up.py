"""`orchestra up`: a server, the project's agents and Flower in one terminal."""

import click

from orchestra.cli_app import app_name
from orchestra.cli_base import OrchestraCommand
from orchestra.cli_project import PROJECT, read_table
from orchestra.config import load_settings
from orchestra.exceptions import ConfigurationError
from orchestra.fleet import AgentSpec

__all__ = ["up"]

_NO_AGENTS = (
    'There are no agents to start: name them, as in --agent text:nlp:2, or write agents = ["text:nlp:2"] below '
    "[tool.orchestra] in ./pyproject.toml."
)


@click.command(cls=OrchestraCommand)
@click.option(
    "--agent",
    "agents",
    multiple=True,
    metavar="NAME:CAPABILITIES[:PROCESSES]",
    help="An agent to start, in place of those of [tool.orchestra]; may be given several times.",
)
@click.option(
    "--redis",
    "redis_url",
    metavar="URL",
    help="A running Redis, in place of a private server. Others can read command lines: a URL with a password "
    "belongs into ORCHESTRA_BROKER_URL.",
)
@click.option("--flower/--no-flower", default=True, help="Whether Flower's pages are served.", show_default=True)
@click.pass_context
def up(ctx: click.Context, *, agents: tuple[str, ...], redis_url: str | None, flower: bool) -> None:
    """
    Start a server, agents and Flower, and join their logs.

    The agents are those of [tool.orchestra] in ./pyproject.toml; the app may be a plain Celery app too. Ctrl-C stops
    everything.
    """
    from rich.console import Console  # noqa: PLC0415  # `--help` and the tab key do without it

    from orchestra.up import Plan  # noqa: PLC0415  # as above
    from orchestra.up import up as run  # noqa: PLC0415

    settings = load_settings(**({"broker_url": redis_url} if redis_url else {}))
    specs = tuple(AgentSpec.parse(text) for text in agents) or read_table(PROJECT).agents
    if not specs:
        raise ConfigurationError(_NO_AGENTS)
    plan = Plan(
        app=app_name(ctx),
        agents=specs,
        settings=settings,
        broker_given="broker_url" in settings.model_fields_set,
        flower=flower,
    )
    run(plan, Console(highlight=False))
