"""
The whole journey in one program: a private server, the reference fleet, the main job, and what came of it.

    python -m workers.demo [--input FOLDER]
"""

import argparse
import os
import sys
import sysconfig
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from celery.result import AsyncResult
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table

from orchestra.embedded import EmbeddedServer
from orchestra.exceptions import AgentOrchestraException
from orchestra.fleet import AgentSpec, Fleet
from orchestra.orchestra import Orchestra
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
        root, title = _folder(arguments)
        _Demo(console, interrupts).run(root, title)
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


def _folder(arguments: Sequence[str] | None) -> tuple[Path, str]:
    """Return the folder to profile, and what to call it."""
    parser = argparse.ArgumentParser(prog="python -m workers.demo", description="Profile a folder with a small fleet.")
    parser.add_argument("--input", metavar="FOLDER", help="what to profile; without it, Python's standard library")
    given = parser.parse_args(arguments).input
    root = Path(given or sysconfig.get_path("stdlib"))
    if io.printable(str(root)) != str(root):
        message = f"The name of {io.printable(str(root))} is not UTF-8: give the folder another name."
        raise BadInputError(message)
    try:
        empty = next(root.iterdir(), None) is None
    except OSError as error:
        message = f"{root} can't be profiled: {io.reason(error)}. Name a folder that exists and may be read."
        raise BadInputError(message) from error
    if empty:
        raise _nothing_in(root)
    return root.resolve(), str(root) if given else "the Python standard library"


def _nothing_in(root: Path | str) -> BadInputError:
    return BadInputError(f"{root} holds no files: name a folder with something to profile.")


class _Demo:
    """One run: what it shows goes to `console`, and it ends early by `interrupts`."""

    def __init__(self, console: Console, interrupts: Interrupts) -> None:
        self._console = console
        self._interrupts = interrupts
        self._stall_at = 0.0
        self._deaths: list[str] = []

    def run(self, root: Path, title: str) -> None:
        """Start everything, do the job, show what came of it, stop everything."""
        with ExitStack() as stack:
            try:
                server = self._start_server(stack)
                log_path = server.socket_path.with_name("agents.log")  # in the server's private folder
                log = stack.enter_context(log_path.open("w", encoding="utf-8"))
                try:
                    fleet = self._start_fleet(stack, server, lambda name, line: print(name, line, file=log, flush=True))
                    self._profile(fleet, root, title)
                except AgentOrchestraException:
                    self._show_end_of(log_path)
                    raise
            finally:
                self._interrupts.shield()

    def _start_server(self, stack: ExitStack) -> EmbeddedServer:
        server = stack.enter_context(EmbeddedServer.start())
        address = f"{server.host}:{server.port}"
        self._say("server", f"valkey {server.version} on {address} (private, password, stops with the demo)")
        return server

    def _start_fleet(self, stack: ExitStack, server: EmbeddedServer, sink: Callable[[str, str], None]) -> Fleet:
        os.environ.update(ORCHESTRA_BROKER_URL=server.url, ORCHESTRA_RESULT_BACKEND=server.url)
        started = time.monotonic()
        fleet = stack.enter_context(Fleet("workers", AGENTS, sink=sink, directory=_PROJECT, log_level="WARNING"))
        orchestra = stack.enter_context(Orchestra(app))

        def ready() -> set[str]:
            self._interrupts.check()
            return {agent.name for agent in orchestra.agents() if agent.alive}

        with self._console.status("  starting the agents"):
            fleet.wait_ready(_READY_SECONDS, ready=ready)
        seconds = time.monotonic() - started
        marks = "  ".join(f"{spec.name} {' '.join('✓' * spec.processes)}" for spec in AGENTS)
        self._say("agents", f"{marks}    {len(AGENTS)} kinds, {len(fleet.names)} processes, ready in {seconds:.1f} s")
        return fleet

    def _say(self, what: str, words: str) -> None:
        self._console.print(f"● {what:9} {words}", soft_wrap=True)

    def _profile(self, fleet: Fleet, root: Path, title: str) -> None:
        began = time.monotonic()
        found = io.find.delay(str(root))
        listing: Listing = self._value_of(found, fleet)
        if not listing["files"] and not listing["unreadable"]:
            raise _nothing_in(root)
        self._console.print(f"  profiling {len(listing['files']):,} files of {shown(title)}", soft_wrap=True)
        if listing["passed_over"]:
            folders = ", ".join(f"{name} ({times:,})" for name, times in sorted(listing["passed_over"].items()))
            self._console.print(f"  passed over: {folders}", soft_wrap=True)
        job = plan(found)
        progress = Progress(job, app.state)
        self._follow(job, progress, fleet)
        last = conclude(job)
        report: Report = self._value_of(last, fleet)
        records = [*progress.finished, *filter(None, app.state.read_many([found.id, last.id]))]
        self._show(what_ran_where(records, job.files_of, time.monotonic() - began), report)

    def _value_of(self, result: AsyncResult[Any], fleet: Fleet) -> Any:  # what the task returned
        self._moved()
        while not result.ready():
            self._pause(fleet)
        value = result.get(propagate=False)
        if result.failed():
            message = f"a task failed: {value!r}"
            raise JobFailedError(message)
        return value

    def _follow(self, job: Job, progress: Progress, fleet: Fleet) -> None:
        self._moved()
        with _meter(self._console, progress.all_steps) as show:
            sending = job.send()
            while not progress.complete:
                if next(sending, self) is self:
                    self._pause(fleet)
                if progress.update():
                    self._moved()
                    show(progress.steps)

    def _moved(self) -> None:
        self._stall_at = time.monotonic() + _STALLED_SECONDS

    def _pause(self, fleet: Fleet) -> None:
        """Let a moment pass, during which the fleet is tended."""
        time.sleep(_POLL_SECONDS)
        self._interrupts.check()
        for death in fleet.tend():
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
        self._console.print(_NEXT, soft_wrap=True)

    def _show_end_of(self, log: Path) -> None:
        with log.open(encoding="utf-8") as lines:
            for line in deque(lines, _LOG_LINES):
                _complain(line, _FAILED)


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
