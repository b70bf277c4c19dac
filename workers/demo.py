"""
The whole journey in one program: a private server, the reference fleet, the main job, and what came of it.

    python -m workers.demo [--input FOLDER] [--attach]

With `--attach` the job is done by a fleet that is up already, such as the containers of docker-compose.yml.
"""

import argparse
import os
import sys
import sysconfig
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from celery.result import AsyncResult
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table

from orchestra.agent import Agent
from orchestra.capabilities import Requirement
from orchestra.embedded import EmbeddedServer
from orchestra.exceptions import AgentOrchestraException
from orchestra.fleet import AgentSpec, Fleet
from orchestra.orchestra import Orchestra
from orchestra.supervised import Death
from workers import app, compute, general, io, text
from workers.documents import Listing, Report
from workers.interrupts import Interrupted, Interrupts
from workers.profile import Job, JobFailedError, Progress, conclude, plan
from workers.tables import WIDTH, findings, shown, what_ran_where

__all__ = ["AGENTS", "main"]

# The solo pool runs tasks in the agent's own process: half the processes of prefork, and started sooner.
AGENTS: Final = (
    AgentSpec(name="io", capabilities=io.CAPABILITIES, pool="solo"),
    AgentSpec(name="text", capabilities=text.CAPABILITIES, pool="solo", processes=2),
    AgentSpec(name="compute", capabilities=compute.CAPABILITIES, pool="solo", processes=2),
    AgentSpec(name="general", capabilities=general.CAPABILITIES, pool="solo"),
)
_PROJECT: Final = Path(__file__).resolve().parents[1]
_READY_SECONDS: Final = 60.0
_STALLED_SECONDS: Final = 60.0  # without any task that finishes; none takes more than a few seconds
_POLL_SECONDS: Final = 0.2
_LOG_LINES: Final = 20
_NEXT: Final = "Next: make up, then open Flower; copy workers/text.py to write your own agent."
_NEXT_ATTACHED: Final = "Next: open Flower; copy workers/text.py to write your own agent."
_FAILED: Final = 1
_BAD_INPUT: Final = 2


class BadInputError(Exception):
    """The folder to profile isn't one, or holds nothing."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo and return its exit code."""
    interrupts = Interrupts.install()
    console = Console(highlight=False, markup=False)
    console.width = min(console.width, WIDTH)
    try:
        given = _parsed(arguments)
        root, title = _folder(given.input, attached=given.attach)
        _Demo(console, interrupts).run(root, title, attached=given.attach)
        interrupts.check()
    except Interrupted as interruption:
        return interruption.exit_code
    except BadInputError as error:
        return _complain(str(error), _BAD_INPUT)
    except AgentOrchestraException as error:
        return _complain(f"The demo failed: {error}", _FAILED)
    finally:
        interrupts.retire()
    return 0


def _complain(message: str, exit_code: int) -> int:
    for line in message.splitlines():
        Console(stderr=True, highlight=False, markup=False).print(shown(line), soft_wrap=True)
    return exit_code


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m workers.demo", description="Profile a folder with a small fleet.")
    parser.add_argument("--input", metavar="FOLDER", help="what to profile; without it, Python's standard library")
    parser.add_argument(
        "--attach",
        action="store_true",
        help="use the fleet at ORCHESTRA_BROKER_URL, and start none; FOLDER is then a path as its agents have it",
    )
    return parser.parse_args(arguments)


def _folder(given: str | None, *, attached: bool) -> tuple[Path, str]:
    """Return the folder to profile, and what to call it; where agents elsewhere read it, they check it too."""
    root = Path(given or sysconfig.get_path("stdlib"))
    if io.printable(str(root)) != str(root):
        message = f"The name of {io.printable(str(root))} is not UTF-8: give the folder another name."
        raise BadInputError(message)
    return (root if attached else _checked(root)), str(root) if given else "the Python standard library"


def _checked(root: Path) -> Path:
    try:
        empty = next(root.iterdir(), None) is None
    except OSError as error:
        message = f"{root} can't be profiled: {io.reason(error)}. Name a folder that exists and may be read."
        raise BadInputError(message) from error
    if empty:
        raise _nothing_in(root)
    return root.resolve()


def _nothing_in(root: Path | str) -> BadInputError:
    return BadInputError(f"{root} holds no files: name a folder with something to profile.")


class _Demo:
    """One run: what it shows goes to `console`, and it ends early by `interrupts`."""

    def __init__(self, console: Console, interrupts: Interrupts) -> None:
        self._console = console
        self._interrupts = interrupts
        self._stall_at = 0.0
        self._tend: Callable[[], Sequence[Death]] = list  # who died since the last call: nobody whom we started
        self._deaths: list[str] = []
        self._log: Path | None = None
        self._next = _NEXT

    def run(self, root: Path, title: str, *, attached: bool) -> None:
        """Start everything, do the job, show what came of it, stop everything; or use a fleet that is up."""
        with ExitStack() as stack:
            try:
                if attached:
                    self._attach(stack)
                else:
                    self._start(stack)
                self._profile(root, title)
            except AgentOrchestraException:
                self._show_end_of_log()
                raise
            finally:
                self._interrupts.shield()

    def _start(self, stack: ExitStack) -> None:
        server = stack.enter_context(EmbeddedServer.start())
        self._say(
            "server",
            f"valkey {server.version} on {server.host}:{server.port} (private, password, stops with the demo)",
        )
        os.environ.update(ORCHESTRA_BROKER_URL=server.url, ORCHESTRA_RESULT_BACKEND=server.url)
        self._log = server.socket_path.with_name("agents.log")  # in the server's private folder
        log = stack.enter_context(self._log.open("w", encoding="utf-8"))
        self._start_fleet(stack, lambda name, line: print(name, line, file=log, flush=True))

    def _start_fleet(self, stack: ExitStack, sink: Callable[[str, str], None]) -> None:
        started = time.monotonic()
        fleet = stack.enter_context(Fleet("workers", AGENTS, sink=sink, directory=_PROJECT, log_level="WARNING"))
        orchestra = stack.enter_context(Orchestra(app))

        def ready() -> set[str]:
            self._interrupts.check()
            return {agent.name for agent in orchestra.agents() if agent.alive}

        with self._console.status("  starting the agents"):
            fleet.wait_ready(_READY_SECONDS, ready=ready)
        seconds = time.monotonic() - started
        self._tend = fleet.tend
        self._say_agents({spec.name: spec.processes for spec in AGENTS}, f"ready in {seconds:.1f} s")

    def _attach(self, stack: ExitStack) -> None:
        orchestra = stack.enter_context(Orchestra(app))
        self._next = _NEXT_ATTACHED
        self._say("server", f"{app.store.location} (of the fleet that is up)")
        deadline = time.monotonic() + _READY_SECONDS
        with self._console.status("  waiting for the agents"):
            while not all((able := _able(orchestra.agents())).values()):
                if time.monotonic() > deadline:
                    raise JobFailedError(_lacking(able))
                time.sleep(_POLL_SECONDS)
                self._interrupts.check()
        self._say_agents(able, "up")

    def _say_agents(self, processes: Mapping[str, int], how: str) -> None:
        marks = "  ".join(f"{name} {' '.join('✓' * count)}" for name, count in processes.items())
        self._say("agents", f"{marks}    {len(processes)} kinds, {sum(processes.values())} processes, {how}")

    def _say(self, what: str, words: str) -> None:
        self._console.print(f"● {what:9} {words}", soft_wrap=True)

    def _profile(self, root: Path, title: str) -> None:
        began = time.monotonic()
        found = io.find.delay(str(root))
        listing: Listing = self._value_of(found)
        if not listing["files"] and not listing["unreadable"]:
            raise _nothing_in(root)
        self._console.print(f"  profiling {len(listing['files']):,} files of {shown(title)}", soft_wrap=True)
        if listing["passed_over"]:
            folders = ", ".join(f"{name} ({times:,})" for name, times in sorted(listing["passed_over"].items()))
            self._console.print(f"  passed over: {folders}", soft_wrap=True)
        job = plan(found)
        progress = Progress(job, app.state)
        self._follow(job, progress)
        last = conclude(job)
        report: Report = self._value_of(last)
        records = [*progress.finished, *filter(None, app.state.read_many([found.id, last.id]))]
        self._show(what_ran_where(records, job.files_of, time.monotonic() - began), report)

    def _value_of(self, result: AsyncResult[Any]) -> Any:  # what the task returned
        self._moved()
        while not result.ready():
            self._pause()
        value = result.get(propagate=False)
        if result.failed():
            message = f"a task failed: {value!r}"
            raise JobFailedError(message)
        return value

    def _follow(self, job: Job, progress: Progress) -> None:
        self._moved()
        with _meter(self._console, progress.all_steps) as show:
            sending = job.send()
            while not progress.complete:
                if next(sending, self) is self:
                    self._pause()
                if progress.update():
                    self._moved()
                    show(progress.steps)

    def _moved(self) -> None:
        self._stall_at = time.monotonic() + _STALLED_SECONDS

    def _pause(self) -> None:
        """Let a moment pass, during which the fleet is tended."""
        time.sleep(_POLL_SECONDS)
        self._interrupts.check()
        for death in self._tend():
            self._deaths.append(f"agent {death.name} {death.cause}")
            self._console.print(f"  {self._deaths[-1]}; it is started again", soft_wrap=True)
        if time.monotonic() > self._stall_at:
            what = f"no task has finished for {_STALLED_SECONDS:.0f} s"
            raise JobFailedError("; ".join([what, *self._deaths]))

    def _show(self, shares: Table, report: Report) -> None:
        for table in (shares, *findings(report)):
            self._console.print()
            self._console.print(table)
        skipped = report["files"] - report["outcomes"].get("profiled", 0)
        self._console.print(
            f"\n{report['files']:,} files, {decimal(report['bytes'])}: "
            f"{report['near_duplicates']:,} near-duplicate pairs, {skipped:,} files skipped",
            soft_wrap=True,
        )
        self._console.print(self._next, soft_wrap=True)

    def _show_end_of_log(self) -> None:
        if self._log is None:
            return
        with self._log.open(encoding="utf-8") as lines:
            for line in deque(lines, _LOG_LINES):
                _complain(line, _FAILED)


def _able(agents: Sequence[Agent]) -> dict[str, int]:
    """Count, for each kind of agent that the job needs, the live ones that can do its work."""
    alive = [agent for agent in agents if agent.alive and not agent.draining]
    needed = {spec.name: Requirement.parse(spec.capabilities) for spec in AGENTS}
    return {name: sum(agent.satisfies(requirement) for agent in alive) for name, requirement in needed.items()}


def _lacking(able: Mapping[str, int]) -> str:
    kinds = " and ".join(f"{spec.name} ({spec.capabilities})" for spec in AGENTS if not able[spec.name])
    return f"the fleet has no live agent for {kinds} after {_READY_SECONDS:.0f} s; start what is missing"


@contextmanager
def _meter(console: Console, steps: int) -> Iterator[Callable[[int], None]]:
    """Show how many steps are done: a bar in a terminal, a line at each quarter elsewhere."""
    if not console.is_terminal:
        yield _quarters(console, steps)
        return
    columns = (TextColumn(" "), BarColumn(bar_width=34), MofNCompleteColumn(), TextColumn("steps"), TimeElapsedColumn())
    with Bar(*columns, console=console) as bar:
        task = bar.add_task("", total=steps)
        yield lambda done: bar.update(task, completed=done)


def _quarters(console: Console, steps: int) -> Callable[[int], None]:
    began = time.monotonic()
    shown_quarters = 0

    def show(done: int) -> None:
        nonlocal shown_quarters
        quarters = 4 * done // steps
        if quarters > shown_quarters:
            shown_quarters = quarters
            console.print(f"  {25 * quarters:3} %  {done:,}/{steps:,} steps  {time.monotonic() - began:.0f} s")

    return show


if __name__ == "__main__":
    sys.exit(main())
