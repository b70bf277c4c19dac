"""A whole fleet in the foreground: a server, the agents, Flower, and one log that joins what they write."""

import math
import secrets
import signal
import socket
import sys
import textwrap
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

from rich.console import Console
from rich.text import Text

from orchestra.config import OrchestraSettings
from orchestra.embedded import EmbeddedServer
from orchestra.exceptions import ConfigurationError, RetryableError
from orchestra.fleet import AgentSpec, Fleet

__all__ = ["JoinedLog", "Plan", "up"]

_LOOPBACK: Final = "127.0.0.1"
_FLOWER_PORT: Final = 5555
_PATIENCE_SECONDS: Final = 20.0  # agents start in about 2; after that a person wants to know what they wait for
_STOP_SECONDS: Final = 30.0
_POLL_SECONDS: Final = 0.2
_WIDTH: Final = 80
_INDENT: Final = " " * 12  # the room that a topic takes
_COLOURS: Final = ("cyan", "green", "yellow", "magenta", "blue", "bright_cyan", "bright_green", "bright_magenta")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to start. The settings name the Redis; without `broker_given` a private server takes its place."""

    app: str
    agents: tuple[AgentSpec, ...]
    settings: OrchestraSettings
    broker_given: bool
    flower: bool = True


def up(plan: Plan, console: Console) -> None:
    """
    Start what `plan` says and keep it running until Ctrl-C, SIGTERM or SIGHUP; return when all of it is stopped.

    A second signal ends what still runs at once. An agent that dies later is started again; one that dies before it
    was ever ready is an error, since a wrong setting doesn't right itself.

    Raises:
        PermanentError: a process ended before it was ready, or something isn't set right.

    """
    _take_signals()
    try:
        with ExitStack() as stack:
            try:
                _Up(plan, console, stack).run()
            except KeyboardInterrupt:
                console.print("● stopping  agents finish what they run; Ctrl-C again ends them at once")
                raise
    except KeyboardInterrupt:
        console.print("● stopped")


def _take_signals() -> None:
    """Let the first two signals interrupt, the start or the run and then the stop, and later ones pass unheeded."""
    received: list[int] = []

    def interrupt(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        if len(received) <= 2:  # noqa: PLR2004  # the stop, and the hurry
            raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup and background jobs ignore some on purpose
            signal.signal(number, interrupt)


class _Up:
    """One run of `up`; what it starts is stopped by `stack`."""

    def __init__(self, plan: Plan, console: Console, stack: ExitStack) -> None:
        self._plan = plan
        self._console = console
        self._stack = stack

    def run(self) -> NoReturn:
        """Start everything in order, then tend it for ever."""
        started = time.monotonic()
        environment = self._server()
        names = [name for spec in self._plan.agents for name in spec.names]
        log = JoinedLog(self._console, [*names, "flower"])
        # Whether an agent is ready is read off a line that Celery writes at level INFO.
        level = "DEBUG" if self._plan.settings.log_level == "DEBUG" else "INFO"
        fleet = Fleet(self._plan.app, self._plan.agents, environment=environment, sink=log, log_level=level)
        self._say("agents", _listed(names))
        self._stack.callback(fleet.stop, _STOP_SECONDS)
        fleet.start()
        self._wait_ready(fleet)
        if self._plan.flower:  # after the agents, whom it asks about themselves as soon as it runs
            self._start_flower(fleet)
            self._wait_ready(fleet)
        self._say("ready", f"after {time.monotonic() - started:.1f} s; stop with Ctrl-C")
        self._tend(fleet)

    def _server(self) -> dict[str, str]:
        """Return what the agents have to know of the server."""
        settings = self._plan.settings
        if self._plan.broker_given:
            self._say("server", str(settings.broker_url))
            return {"ORCHESTRA_BROKER_URL": settings.broker_url.get_secret_value()}
        server = self._stack.enter_context(EmbeddedServer.start())
        address = f"{server.host}:{server.port}"
        self._say("server", f"valkey {server.version} on {address} (private; it ends with this command)")
        self._say("", "for another terminal:")
        self._console.print(f"export ORCHESTRA_BROKER_URL={server.url}", soft_wrap=True)
        return {"ORCHESTRA_BROKER_URL": server.url}

    def _wait_ready(self, fleet: Fleet) -> None:
        try:
            fleet.wait_ready(_PATIENCE_SECONDS)
        except RetryableError as error:
            self._say("waiting", str(error).partition("\n")[0])
            fleet.wait_ready(math.inf)

    def _start_flower(self, fleet: Fleet) -> None:
        settings, port = self._plan.settings, _flower_port()
        given = settings.flower_password
        password = given.get_secret_value() if given else secrets.token_urlsafe(12)
        configuration = Path(self._plan.app.partition(":")[0].partition(".")[0]) / "flowerconfig.py"
        command = [sys.executable, "-m", "celery", "-A", self._plan.app, "--quiet", "flower"]
        command += [f"--address={_LOOPBACK}", f"--port={port}"]
        if configuration.is_file():
            command.append(f"--conf={configuration}")
        elif "," in password:
            message = "ORCHESTRA_FLOWER_PASSWORD holds a comma, where Flower parts its users; choose another one."
            raise ConfigurationError(message, variable="ORCHESTRA_FLOWER_PASSWORD")
        environment = {
            "ORCHESTRA_FLOWER_USER": settings.flower_user,
            "ORCHESTRA_FLOWER_PASSWORD": password,
            "FLOWER_BASIC_AUTH": f"{settings.flower_user}:{password}",  # for an app without a flowerconfig.py
        }
        fleet.add("flower", command, ready_line="Connected to", environment=environment)
        source = "password from ORCHESTRA_FLOWER_PASSWORD" if given else f"password {password} (for this run)"
        self._say("flower", f"http://{_LOOPBACK}:{port}")
        self._say("", f"user {settings.flower_user}, {source}")

    def _tend(self, fleet: Fleet) -> NoReturn:
        while True:
            for death in fleet.tend():
                self._say(death.name, f"{death.cause}; it starts again in {death.restart_in_seconds:g} s")
            time.sleep(_POLL_SECONDS)

    def _say(self, topic: str, words: str) -> None:
        mark = "●" if topic else " "
        self._console.print(Text.assemble(f"{mark} ", (f"{topic:<9}", "bold"), f" {words}"), soft_wrap=True)


class JoinedLog:
    """The sink that prints every line with the name of who wrote it, in a colour of its own on a terminal."""

    def __init__(self, console: Console, names: list[str]) -> None:
        self._console = console
        self._styles = dict(zip(names, cycle(_COLOURS), strict=False))
        self._width = max(map(len, names))

    def __call__(self, name: str, line: str) -> None:
        """Print one line; empty ones, which part sections of a log of one's own, are left out."""
        if line:
            prefix = (f"{name:>{self._width}} │ ", self._styles.get(name, ""))
            self._console.print(Text.assemble(prefix, Text.from_ansi(line)), soft_wrap=True)


def _listed(names: list[str]) -> str:
    return textwrap.fill("  ".join(names), width=_WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT).strip()


def _flower_port() -> int:
    """Return Flower's usual port, or a free one where somebody else has it."""
    for port in (_FLOWER_PORT, 0):
        with closing(socket.socket()) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Flower does itself
            try:
                probe.bind((_LOOPBACK, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    message = f"There is no free port on {_LOOPBACK} for Flower; try --no-flower."
    raise ConfigurationError(message)
