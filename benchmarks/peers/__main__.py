"""
Task queues for Python and Redis side by side, in one run on a private server.

    python -m benchmarks.peers [--systems NAME ...] [--steps KEY ...] [--tasks N] [--rounds R]
                               [--json FILE] [--page FILE]
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from benchmarks.peers.about import Meanwhile, about
from benchmarks.peers.page import write
from benchmarks.peers.rounds import Found, measure
from benchmarks.peers.stage import Stage
from benchmarks.peers.steps import STEPS
from benchmarks.peers.systems import SYSTEMS, System
from orchestra.exceptions import AgentOrchestraException

__all__ = ["main"]

_WIDTH: Final = 120
_NAMED: Final = {system.name: system for system in SYSTEMS}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, show, and write down; return the exit code."""
    given = _given(arguments)
    errors = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    systems = [_NAMED[name] for name in given.systems]
    if absent := sorted({system.home for system in systems if not system.programs.is_dir()}):
        errors.print(f"No environment below .venv-peers for: {', '.join(absent)}. `make bench-peers` makes them.")
        return 2
    meanwhile = Meanwhile()
    try:
        with Stage.open() as stage:
            described = about(systems, tasks=given.tasks, rounds=given.rounds, server=stage.server_version)
            found = measure(
                stage,
                systems,
                [STEPS[key] for key in given.steps],
                tasks=given.tasks,
                rounds=given.rounds,
                say=errors.print,
                keep=lambda so_far: _keep(given, _written(systems, so_far, {**described, **meanwhile.until_now()})),
            )
    except AgentOrchestraException as error:
        errors.print(f"The benchmark failed: {error}")
        return 1
    _show(found)
    return 0


def _given(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description="Task queues side by side.")
    parser.add_argument("--systems", nargs="+", choices=_NAMED, default=list(_NAMED), metavar="NAME", help="some only")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS), metavar="KEY", help=", ".join(STEPS))
    parser.add_argument("--tasks", type=_count, default=1000, metavar="N", help="of a drain (default: 1000)")
    parser.add_argument("--rounds", type=_count, default=5, metavar="R", help="of everything (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round down")
    parser.add_argument("--page", type=Path, metavar="FILE", help="make a page of it, with plots beside it")
    return parser.parse_args(arguments)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        message = f"{text!r} is no count: give a whole number of at least 1"
        raise argparse.ArgumentTypeError(message)
    return int(text)


def _show(found: Found) -> None:
    console = Console(highlight=False, markup=False, width=_WIDTH)
    for section in found.sections():
        table = section.to_table()
        table.width = _WIDTH
        console.print(table)
    for trouble in found.troubles:
        console.print(trouble, soft_wrap=True)


def _written(systems: Sequence[System], found: Found, described: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "about": described,
        "systems": {system.name: system.described() for system in systems},
        "sections": {section.key: section.to_json() for section in found.sections()},
        "troubles": found.troubles,
    }


def _keep(given: argparse.Namespace, written: Mapping[str, Any]) -> None:
    """Write down what has been found so far, so that a long run that is broken off isn't for nothing."""
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    if given.page:
        write(written, given.page)


if __name__ == "__main__":
    sys.exit(main())
