"""Which app a command is about: named on the command line, to Celery, or in the project's pyproject.toml."""

import signal
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib import import_module
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from types import FrameType
from typing import Any, Final

import click
from celery import Celery
from celery.app.utils import find_app

from orchestra.app import OrchestraCelery
from orchestra.capabilities import GENERAL
from orchestra.cli_base import given_app
from orchestra.cli_project import PROJECT, read_table
from orchestra.exceptions import ConfigurationError
from orchestra.orchestra import Orchestra

__all__ = ["agent_command", "agents_to_start", "app_name", "completing", "engine_of", "importing"]

_DEFAULT: Final = "workers"
_COMPLETION_SECONDS: Final = 2.0  # who presses the tab key wants to go on
_LIBRARIES: Final = (f"{Path(__file__).parent}/", *(f"{sysconfig.get_path(one)}/" for one in ("stdlib", "purelib")))

Completer = Callable[[click.Context, click.Parameter, str], list[str]]


def app_name(ctx: click.Context) -> str:
    """
    Return the app's name as `celery -A` takes it.

    In this order: `--app`, what `celery -A` was given, the app of [tool.orchestra], `workers`.

    Raises:
        ConfigurationError: [tool.orchestra] can't be read.

    """
    return given_app(ctx) or _name_of_celery(ctx) or read_table(PROJECT).app or _DEFAULT


def engine_of(ctx: click.Context) -> Orchestra:
    """
    Return the engine over the command's app; its connections are closed with the command.

    Raises:
        ConfigurationError: there is no such app, it can't be imported, or it is another kind of app.

    """
    of_celery = ctx.find_root().params.get("app")
    held = of_celery if isinstance(of_celery, Celery) and given_app(ctx) is None else None  # a program that calls us
    app = _orchestral(app_name(ctx), _found(app_name(ctx)) if held is None else held)
    ctx.call_on_close(app.close)
    return Orchestra(app)


def _name_of_celery(ctx: click.Context) -> str | None:
    """Return what `celery -A` was given, when this is a command of Celery's."""
    app = ctx.find_root().params.get("app")
    return app.main if isinstance(app, Celery) else app


def agent_command(ctx: click.Context, capabilities: str) -> str:
    """Return the command that starts an agent of the app."""
    label = capabilities.partition(",")[0].partition("=")[0]
    return f"celery -A {app_name(ctx)} worker --capabilities {capabilities} -n {label}@%h"


def agents_to_start(ctx: click.Context) -> list[str]:
    """Say, in lines, that no agent runs and how to start one."""
    command = agent_command(ctx, GENERAL.text)
    return ["No agent is running: start a fleet with `orchestra up`, or one agent with", f"  {command}"]


def _found(name: str) -> object:
    """Import the app as Celery does; the working directory stays on the path, for what is imported later."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    with importing(name):
        try:
            return find_app(name)
        except AttributeError:
            _import_of_package(name)
            raise


def _import_of_package(name: str) -> None:
    """Import a package's module `celery`, where apps often are: Celery passes over what goes wrong in it."""
    if hasattr(sys.modules.get(name), "__path__") and find_spec(f"{name}.celery"):
        import_module(f"{name}.celery")


def _orchestral(name: str, app: object) -> OrchestraCelery:
    if isinstance(app, OrchestraCelery):
        return app
    if isinstance(app, Celery):
        message = f"{name} is a plain Celery app; make it with orchestra.OrchestraCelery(…) in place of Celery(…)."
        raise ConfigurationError(message)
    message = f"{name} is no app but of type {type(app).__name__}; name the OrchestraCelery, as in --app module:app."
    raise ConfigurationError(message)


@contextmanager
def importing(name: str) -> Iterator[None]:
    """
    Import code of the app called `name`; what it prints goes to stderr, since stdout is the command's own.

    Raises:
        ConfigurationError: there is no such app, or its code raises; then with the error's place.

    """
    try:
        with redirect_stdout(sys.stderr):
            yield
    except ModuleNotFoundError as error:
        module, _, attribute = name.partition(":")
        if f"{module}.".startswith(f"{error.name}."):
            raise _missing(name, str(error.name)) from error
        if error.name == name:  # Celery's last attempt
            raise _without_app(module, f"there is no {attribute} in it") from error
        raise _broken(name, error) from error
    except Exception as error:
        raise _broken(name, error) from error


def _missing(name: str, module: str) -> ConfigurationError:
    if name == _DEFAULT:
        return ConfigurationError(
            f"Which app? There is no module {_DEFAULT} here: name yours with --app, or below [tool.orchestra] in "
            f"./{PROJECT}."
        )
    return ConfigurationError(
        f"The app {name} wasn't found: there is no module {module}. Run this in the folder that holds it, or name "
        "another one with --app."
    )


def _without_app(module: str, reason: str) -> ConfigurationError:
    return ConfigurationError(f"The module {module} holds no app: {reason}. Name it, as in --app {module}:app.")


def _broken(name: str, error: Exception) -> ConfigurationError:
    place = _place(error)
    if place is None and isinstance(error, AttributeError):
        return _without_app(name, str(error))
    reason = error.msg if isinstance(error, SyntaxError) else str(error)
    cause = f"{type(error).__name__}: {' '.join(reason.split())}"
    return ConfigurationError(f"The app {name} can't be imported: {cause}" + (f" ({place})" if place else ""))


def _place(error: Exception) -> str | None:
    """Return file and line where the project's own code raised; None when none of it ran."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_near(error.filename)}, line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(("<", *_LIBRARIES))]
    return f"{_near(own[-1].filename)}, line {own[-1].lineno}" if own else None


def _near(filename: str) -> str:
    """Return a path as short as it can be said from here."""
    path = Path(filename)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else filename


def completing(names: Callable[[Orchestra], Iterable[str]]) -> Completer:
    """
    Return what completes a word by `names`, which asks the fleet.

    Whatever goes wrong or takes long, such as an app that can't be imported, offers nothing and says nothing.
    """

    def complete(ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
        try:
            with redirect_stderr(StringIO()), _deadline(_COMPLETION_SECONDS):
                return sorted(name for name in names(engine_of(ctx)) if name.startswith(incomplete))
        except Exception:  # noqa: BLE001  # an error would be printed amid what somebody types
            return []

    return complete


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Raise a TimeoutError after so many seconds, whatever is going on then."""

    def end(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError

    handler: Any = signal.signal(signal.SIGALRM, end)
    before, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, before)
        signal.signal(signal.SIGALRM, handler)
