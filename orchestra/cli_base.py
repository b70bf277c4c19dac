"""What the commands of `orchestra` share: their common options, their logging, and one line for every error."""

import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, Final

import click
from click.exceptions import NoArgsIsHelpError

from orchestra.config import load_settings
from orchestra.exceptions import AgentOrchestraException
from orchestra.logging_utils import setup_logging
from orchestra.utils import mask_text

__all__ = ["Failure", "OrchestraCommand", "OrchestraGroup", "given_app", "printable"]

_APP: Final = "orchestra.app"
_DEBUG: Final = "orchestra.debug"
_VERBOSITY: Final = "orchestra.verbosity"
_LEVELS: Final = ("WARNING", "INFO", "DEBUG")
_INTERRUPTED: Final = 130  # as a shell has it: 128 and the number of SIGINT


class Failure(click.ClickException):
    """An error as the terminal shows it: one line on stderr, without secrets, and exit code 2."""

    exit_code = 2

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the line; where the error goes on for more, its lines were in the log."""
        line = printable(mask_text(self.message.strip().partition("\n")[0]))
        click.echo(f"{click.style('error:', fg='red', bold=True)} {line}", file=file, err=file is None)


def printable(text: str) -> str:
    r"""Return `text` with all that would steer a terminal written out, such as `\x1b` and `\n`."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


class OrchestraGroup(click.Group):
    """The group of our commands: it lists them in the order of a first walk, and ends each error with one line."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # click's
        super().__init__(*args, **kwargs)
        self.params += _common_options()

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        """Return the names in the order in which the commands were added."""
        return list(self.commands)

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Read the group's own options."""
        with _told_in_one_line({}):
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:  # what the command returns
        """Run the command."""
        with _told_in_one_line(ctx.meta):
            return super().invoke(ctx)


class OrchestraCommand(click.Command):
    """A command that takes the common options, and logs to stderr as they say."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # click's
        super().__init__(*args, **kwargs)
        self.params += _common_options()

    def invoke(self, ctx: click.Context) -> Any:  # what the command returns
        """Run the command."""
        _set_up_logging(ctx.meta.get(_VERBOSITY, 0))
        return super().invoke(ctx)


def given_app(ctx: click.Context) -> str | None:
    """Return what `--app` says, of the command rather than of the group; None when it isn't given."""
    app: str | None = ctx.meta.get(_APP)
    return app


def _common_options() -> list[click.Parameter]:
    """Return options that stand before or behind the command's name; what they say is in the context's `meta`."""
    return [
        click.Option(
            ["-A", "--app"],
            metavar="NAME",
            expose_value=False,
            is_eager=True,  # completion asks the app
            callback=_keep_app,
            help="The app, as `celery -A` takes it; else that of [tool.orchestra], else `workers`.",
        ),
        click.Option(
            ["-v", "--verbose"], count=True, expose_value=False, callback=_add_verbosity, help="Log more; -vv most."
        ),
        click.Option(
            ["--debug"], is_flag=True, expose_value=False, callback=_keep_debug, help="Show errors with their trace."
        ),
    ]


def _keep_app(ctx: click.Context, _parameter: click.Parameter, value: str | None) -> None:
    if value:
        ctx.meta[_APP] = value


def _add_verbosity(ctx: click.Context, _parameter: click.Parameter, value: int) -> None:
    ctx.meta[_VERBOSITY] = ctx.meta.get(_VERBOSITY, 0) + value


def _keep_debug(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:  # noqa: FBT001  # click's
    ctx.meta[_DEBUG] = ctx.meta.get(_DEBUG, False) or value


def _set_up_logging(verbosity: int) -> None:
    """Log warnings and worse, unless -v or ORCHESTRA_LOG_LEVEL ask for something else."""
    with warnings.catch_warnings(action="ignore"):  # the app, which reads the settings too, tells them
        settings = load_settings()
    level = _LEVELS[min(verbosity, len(_LEVELS) - 1)]
    if not verbosity and "log_level" in settings.model_fields_set:
        level = settings.log_level
    setup_logging(level, settings.log_format)


@contextmanager
def _told_in_one_line(meta: dict[str, Any]) -> Iterator[None]:
    """End whatever goes wrong with a Failure; with --debug, the trace is shown before it."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo(err=True)  # the terminal stands behind its ^C
        raise click.exceptions.Exit(_INTERRUPTED) from None
    except NoArgsIsHelpError:
        raise
    except click.UsageError as error:
        raise Failure(_about_usage(error)) from error
    except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
        raise
    except Exception as error:
        if meta.get(_DEBUG):
            click.echo(mask_text("".join(traceback.format_exception(error))), nl=False, err=True)
        raise Failure(_about(error)) from error


def _about(error: Exception) -> str:
    if isinstance(error, AgentOrchestraException):
        return str(error)
    return f"{type(error).__name__}: {' '.join(str(error).split())} (unexpected; --debug shows where it comes from)"


def _about_usage(error: click.UsageError) -> str:
    if isinstance(error.__cause__, AgentOrchestraException):  # a setting isn't right; Celery's commands need this form
        return str(error.__cause__)
    path = "orchestra" if error.ctx is None else error.ctx.command_path
    return f"{error.format_message()} (see {path} --help)"
