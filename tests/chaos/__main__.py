"""
Every fault with every seed, at ours, at stock Celery, or at both by turns.

    python -m tests.chaos [--system ours|stock|both] [--faults A,B] [--seeds 1,2] [--tasks N] [--output FILE]
"""

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Final

from rich.console import Console

from orchestra.utils import shorten
from tests.chaos.faults import FAULTS
from tests.chaos.measure import Outcome
from tests.chaos.report import markdown
from tests.chaos.run import run
from tests.chaos.scene import AGENTS, RATE, TASKS, Plan
from tests.chaos.systems import SYSTEMS

__all__ = ["main"]

_SEEDS: Final = (1, 2, 3, 4, 5)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, tell of each run, and print the table; return 1 when ours has broken a promise."""
    given = _given(arguments)
    for request in (signal.SIGINT, signal.SIGTERM):  # also where it was started to ignore the former
        signal.signal(request, signal.default_int_handler)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    outcomes = []
    with _folder(given.logs) as folder, _output(given.output) as output:
        for name in given.faults:
            if reason := FAULTS[name].lacking:
                console.print(f"{name} is left out: {reason}")
        for plan in _plans(given, folder):
            outcome = run(replace(plan, folder=folder / f"{plan.system}-{plan.fault}-{plan.seed}"))
            outcomes.append(outcome)
            console.print(_told(outcome))
            output.write(json.dumps(outcome.to_json()) + "\n")
            output.flush()
    console.print(markdown(outcome.to_json() for outcome in outcomes))
    return int(any(outcome.broken for outcome in outcomes if outcome.system == "ours"))


def _given(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="Strike a working fleet with faults.")
    parser.add_argument("--system", choices=(*SYSTEMS, "both"), default="ours", help="default: ours")
    parser.add_argument("--faults", type=_faults, default=tuple(FAULTS), metavar="A,B", help=", ".join(FAULTS))
    parser.add_argument("--seeds", type=_seeds, default=_SEEDS, metavar="1,2", help="default: 1 to 5")
    parser.add_argument("--tasks", type=int, default=TASKS, metavar="N", help="in each run (default: 2000)")
    parser.add_argument("--rate", type=float, default=RATE, metavar="R", help="publishes a second (default: 200)")
    parser.add_argument("--agents", type=int, default=AGENTS, metavar="N", help="default: 3")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write a line of JSON for each run")
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="keep what agents and servers wrote")
    return parser.parse_args(arguments)


def _faults(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := [name for name in names if name not in FAULTS]:
        message = f"there is no fault {unknown[0]!r}; there are: {', '.join(FAULTS)}"
        raise argparse.ArgumentTypeError(message)
    return names


def _seeds(text: str) -> tuple[int, ...]:
    return tuple(int(seed) for seed in text.split(","))


@contextmanager
def _folder(kept: Path | None) -> Iterator[Path]:
    if kept is not None:
        yield kept.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        yield Path(folder).resolve()


@contextmanager
def _output(path: Path | None) -> Iterator[IO[str]]:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    with (path or Path(os.devnull)).open("w", encoding="utf-8") as lines:
        yield lines


def _plans(given: argparse.Namespace, folder: Path) -> Iterator[Plan]:
    systems = SYSTEMS if given.system == "both" else (given.system,)
    for fault in given.faults:
        for seed in given.seeds if not FAULTS[fault].lacking else ():
            for system in (system for system in systems if system in FAULTS[fault].systems):
                yield Plan(
                    system=system,
                    fault=fault,
                    seed=seed,
                    folder=folder,
                    tasks=given.tasks,
                    rate=given.rate,
                    agents=given.agents,
                )


def _told(outcome: Outcome) -> str:
    recovery = "never" if outcome.recovery is None else f"{outcome.recovery:.1f} s"
    return (
        f"{outcome.system} {outcome.fault} seed {outcome.seed}: {outcome.confirmed} confirmed, {outcome.executed} "
        f"executed, lost {len(outcome.lost)}, run twice {outcome.duplicates} ({outcome.running} were running, "
        f"{len(outcome.unexcused)} weren't), stuck {sum(outcome.stuck.values())}, results missing "
        f"{len(outcome.without_result)}, alive {outcome.alive} of {outcome.agents}, recovery {recovery}, in "
        f"{outcome.seconds:.0f} s" + "".join(f"; BROKEN: {shorten(word, 100)}" for word in outcome.broken)
    )


if __name__ == "__main__":
    sys.exit(main())
