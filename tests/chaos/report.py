"""
The figures as a table, one row for each fault and system with its seeds side by side.

    python -m tests.chaos.report FILE [--page docs/reliability.md]
"""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tests.chaos.faults import FAULTS

__all__ = ["main", "markdown", "replaced"]

_HEADING: Final = "## The figures\n"
_COLUMNS: Final[Mapping[str, str]] = {
    "confirmed": "confirmed",
    "executed": "executed",
    "lost": "lost",
    "duplicates": "run twice",
    "running": "were running",
    "unexcused": "run twice, not running",
    "stuck": "stuck",
    "without_result": "results missing",
    "alive": "agents alive",
    "own_ends": "agents ended unasked",
    "recovery": "recovery, s",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table of a file that `python -m tests.chaos` has written, or put it into the page in its place."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.report", description="Make a table of the figures.")
    parser.add_argument("file", type=Path, help="what `python -m tests.chaos --output FILE` has written")
    parser.add_argument("--page", type=Path, help="the page whose table it replaces")
    given = parser.parse_args(arguments)
    table = markdown(json.loads(line) for line in given.file.read_text(encoding="utf-8").splitlines())
    if given.page is None:
        sys.stdout.write(table + "\n")
    else:
        given.page.write_text(replaced(given.page.read_text(encoding="utf-8"), table), encoding="utf-8")


def replaced(page: str, table: str) -> str:
    """Return the page with its table of figures replaced."""
    before, heading, rest = page.partition(_HEADING)
    lines = rest.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("|"))
    last = next(number for number in range(first, len(lines)) if not lines[number].startswith("|"))
    return before + heading + "\n".join([*lines[:first], table, *lines[last:]]) + "\n"


def markdown(outcomes: Iterable[Mapping[str, Any]]) -> str:
    """Return the table in Markdown; a system that has no process for a fault to strike isn't in it."""
    rows: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for outcome in outcomes:
        rows.setdefault((outcome["fault"], outcome["system"]), []).append(outcome)
    heading = ["fault", "system", *_COLUMNS.values()]
    lines = [heading, ["---"] * len(heading)]
    for fault in FAULTS:
        for (name, system), runs in sorted(rows.items()):
            if name == fault and (any(run["struck"] for run in runs) or not FAULTS[fault].acts):
                lines.append([f"`{fault}`", system, *(_cell(runs, column) for column in _COLUMNS)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(runs: Sequence[Mapping[str, Any]], column: str) -> str:
    """Return the figure of each seed, or one where all are the same."""
    figures = [_figure(run, column) for run in sorted(runs, key=lambda run: run["seed"])]
    return figures[0] if len(set(figures)) == 1 else " / ".join(figures)


def _figure(run: Mapping[str, Any], column: str) -> str:
    match column:
        case "recovery":
            return "never" if run[column] is None else f"{run[column]:.1f}" if run["struck"] else ""
        case "alive":
            return f"{run[column]} of {run['agents']}"
        case "stuck":
            return f"{sum(run[column].values()):,}"
        case "lost" | "unexcused" | "without_result":
            return f"{len(run[column]):,}"
    return f"{run[column]:,}"


if __name__ == "__main__":
    main()
