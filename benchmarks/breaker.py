"""
What a breaker saves: a service is switched off while sixteen slots call it, with a breaker and without.

    python -m benchmarks.breaker [--down SECONDS] [--cooldown SECONDS] [--json FILE]
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from benchmarks.outage import SLOTS, Outage, full_since, outage
from orchestra.exceptions import AgentOrchestraException

__all__ = ["Figures", "figures_of", "main"]

_ROWS: Final = {
    "tasks": "tasks",
    "calls_while_down": "calls while it was off",
    "probes": "probes in each half-open period",
    "retries": "retries",
    "retries_while_open": "of these while the breaker was not closed",
    "lost": "tasks that did not succeed",
    "duplicates": "tasks that were answered twice",
    "rate_before": "calls a second before",
    "seconds_to_full_rate": "seconds from its return to the full rate",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """
    What an outage cost.

    `calls_while_down` counts the calls that began while the service was off, `probes` those of each half-open period.
    `retries` are attempts beyond the first; `retries_while_open` those of them that come of an attempt which began
    while the breaker wasn't closed. `lost` are tasks that didn't succeed, `duplicates` those that were answered
    twice. The service is at its full rate again with the first second in which 90 % of the calls are answered that
    were before; `seconds_to_full_rate` says when that second began.
    """

    tasks: int
    calls_while_down: int
    probes: list[int]
    retries: int
    retries_while_open: int
    lost: int
    duplicates: int
    rate_before: float
    seconds_to_full_rate: float | None


def figures_of(seen: Outage) -> Figures:
    """Count what was seen."""
    held_off, tried = _periods(seen, "open", "half_open"), _periods(seen, "half_open")
    answered = Counter(call.number for call in seen.calls if call.answered)
    full_at = full_since(seen.calls, seen.up_at, seen.rate_before)
    return Figures(
        tasks=len(seen.states),
        calls_while_down=sum(seen.down_at <= call.began < seen.up_at for call in seen.calls),
        probes=[sum(start <= call.began < end for call in seen.calls) for start, end in tried],
        retries=len(seen.retried),
        retries_while_open=sum(any(start <= began < end for start, end in held_off) for began in seen.retried),
        lost=sum(state != "succeeded" for state in seen.states.values()),
        duplicates=sum(times > 1 for times in answered.values()),
        rate_before=round(seen.rate_before, 1),
        seconds_to_full_rate=None if full_at is None else round(full_at - seen.up_at, 2),
    )


def _periods(seen: Outage, *states: str) -> list[tuple[float, float]]:
    """Return from when to when the breaker was in one of these states, change by change."""
    ends = [*(at for at, _ in seen.changes[1:]), float("inf")]
    return [(at, end) for (at, state), end in zip(seen.changes, ends, strict=False) if state in states]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, show, and write down; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.breaker", description="A service is switched off.")
    parser.add_argument("--down", type=_seconds, default=30.0, metavar="SECONDS", help="for so long (default: 30)")
    parser.add_argument("--cooldown", type=_seconds, default=3.0, metavar="SECONDS", help="the breaker's (default: 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures down")
    given = parser.parse_args(arguments)
    try:
        found = {
            task: figures_of(outage(task, down=given.down, cooldown=given.cooldown, before=5.0))
            for task in ("guarded", "bare")
        }
    except AgentOrchestraException as error:
        Console(stderr=True, highlight=False, markup=False).print(f"The benchmark failed: {error}", soft_wrap=True)
        return 1
    _show(found, given.down, given.cooldown)
    if given.json:
        figures = {task: asdict(figures) for task, figures in found.items()}
        given.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 3600:  # noqa: PLR2004  # an hour
        message = f"{text!r} is no number of seconds: give one above 0 and up to 3600."
        raise argparse.ArgumentTypeError(message)
    return seconds


def _show(found: dict[str, Figures], down: float, cooldown: float) -> None:
    table = Table(
        box=None,
        title=f"Off for {down:g} s under {SLOTS} slots, cooldown {cooldown:g} s",
        title_justify="left",
    )
    for heading in ("", "with a breaker", "without"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, words in _ROWS.items():
        table.add_row(words, *(_told(getattr(figures, name)) for figures in found.values()))
    Console(highlight=False, width=100).print(table)


def _told(figure: object) -> str:
    if isinstance(figure, list):
        return " ".join(map(str, figure)) or "-"
    return "-" if figure is None else f"{figure:,}" if isinstance(figure, int) else str(figure)


if __name__ == "__main__":
    sys.exit(main())
