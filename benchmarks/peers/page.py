"""
The page about a measurement: tables, plots, and what is behind them.

    python -m benchmarks.peers.page FOUND.json docs/benchmarks.md
"""

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.peers.plots import PLOTS, draw

__all__ = ["main", "text_of", "write"]

_OURS: Final = "ours"
_STOCK: Final = "Celery"
_BUSY_CORES: Final = 0.3


@dataclass(frozen=True, slots=True)
class _Race:
    """A figure by which ours is set beside the best of the others: of which step, in which column, and what is best."""

    words: str
    step: str
    column: str
    best: Callable[..., str]


_RACES: Final = (
    _Race("submit one task, µs", "submit", "µs", min),
    _Race("submit many tasks, tasks/s", "bulk", "tasks/s", max),
    _Race("drain by one process, tasks/s", "drain", "tasks/s", max),
    _Race("drain by two processes, tasks/s", "drain2", "tasks/s", max),
    _Race("CPU of a drained task, µs", "drain", "CPU µs", min),
    _Race("result of a task, idle, p50 ms", "latency", "p50, ms", min),
    _Race("result of a task, idle, p99 ms", "latency", "p99, ms", min),
    _Race("start of a task, loaded, p99 ms", "load", "p99, ms", min),
    _Race("tasks of 5 ms, tasks/s", "compute", "tasks/s", max),
    _Race("waits of 50 ms, tasks/s", "pause", "tasks/s", max),
    _Race("start of a worker, s", "start", "s", min),
    _Race("idle memory, MiB", "memory", "PSS MiB", min),
)

Found = Mapping[str, Any]  # the JSON of a measurement


def main(arguments: Sequence[str]) -> int:
    """Make the page of a measurement that has been written down."""
    source, page = map(Path, arguments)
    write(json.loads(source.read_text(encoding="utf-8")), page)
    return 0


def write(found: Found, page: Path) -> None:
    """Write the page, and its plots into the folder `images` beside it."""
    page.parent.mkdir(parents=True, exist_ok=True)
    draw(found, page.parent / "images")
    page.write_text(text_of(found), encoding="utf-8")


def text_of(found: Found) -> str:
    """Return the page as Markdown."""
    parts = [_head(found["about"]), _races(found), _settings(found), _promises(found)]
    parts += [_section(key, section, found) for key, section in found["sections"].items()]
    return "\n\n".join([*parts, _troubles(found["troubles"]), _tail(found["about"])]) + "\n"


def _head(about: Mapping[str, Any]) -> str:
    return f"""# Benchmarks

Agent Orchestra beside other task queues for Python and Redis, in one run on one machine by `benchmarks/peers/`.
This page is made from that run's figures; `benchmarks/README.md` tells how each is taken.

```console
$ make bench-peers
```

It ran on {about["at"][:10]} with {about["rounds"]} rounds of {about["tasks"]:,} tasks, on {about["cores"]} cores with \
Python {about["python"]} and a private server, {about["server"]}, on the same machine.
{_busy(about)}

- Each figure is the median of its rounds, with the least and the most in brackets.
- Systems took turns, and only one system's workers ran at a time.
- CPU per task swings less than tasks a second do."""


def _busy(about: Mapping[str, Any]) -> str:
    if about["other_cores"] is None:
        return "How busy the machine was with other work isn't known."
    words = (
        f"Other work kept {about['other_cores']} of the cores busy meanwhile, and other machines on the same host took "
        f"{about['stolen_cores']}; the load average was {about['load'][0]} before and {about['load'][1]} after."
    )
    if about["other_cores"] + about["stolen_cores"] < _BUSY_CORES:
        return words
    return f"{words}\nThat is much: trust a difference where the brackets don't overlap, and repeat it before quoting."


def _races(found: Found) -> str:
    keeps = {name for name, one in found["systems"].items() if one["promise"]["again"]}
    lines = [
        "## Where ours stands",
        "",
        "Beside the best of the others, whatever it promises.",
        "Beside the best of those that keep tasks: that run one again whose worker was killed, as Celery does.",
        "And beside the best that Celery has.",
        "A ratio above 1 is in our favour.",
        "",
        "| | ours | best of the others | ratio | best that keeps tasks | ratio | Celery | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for race in _RACES:
        medians = _medians(found, race)
        others = {name for name in medians if _side(name) != _OURS}
        rivals = [others, others & keeps, {name for name in others if _side(name) == _STOCK}]
        if any(_side(name) == _OURS for name in found["systems"]) and all(rivals):
            lines.append(f"| {race.words} | {' | '.join(_race(race, medians, rivals))} |")
    return "\n".join(lines)


def _race(race: _Race, medians: Mapping[str, float], rivals: Sequence[AbstractSet[str]]) -> Iterator[str]:
    mine = [name for name in medians if _side(name) == _OURS]
    ours = race.best(mine, key=medians.__getitem__) if mine else None
    yield f"{_told(medians[ours])} ({_variant(ours)})" if ours else "failed"
    for names in rivals:
        rival = race.best(sorted(names), key=medians.__getitem__)
        yield f"{_told(medians[rival])} ({_variant(rival)})"
        quotient = medians[ours] / medians[rival] if ours else 0.0
        yield "" if not ours else f"{quotient if race.best is max else 1 / quotient:.2f}"


def _side(name: str) -> str:
    return name.partition(",")[0]


def _variant(name: str) -> str:
    return name.partition(", ")[2] if _side(name) == _OURS else name


def _medians(found: Found, race: _Race) -> dict[str, float]:
    rows = found["sections"].get(race.step, {"rows": {}})["rows"]
    return {name: row[race.column]["median"] for name, row in rows.items() if row.get(race.column)}


def _settings(found: Found) -> str:
    versions = found["about"]["packages"]
    lines = [
        "## The settings",
        "",
        "The best that each documents for short tasks, with results kept; defaults in all else.",
        "",
        "| system | settings |",
        "|---|---|",
        *(f"| {name} | {one['settings'].replace('|', '/')} |" for name, one in found["systems"].items()),
        "",
        "Each has an environment of its own, ours and Celery share one:",
        "",
        *(f"- {', '.join(f'{name} {number}' for name, number in each.items())}" for each in versions.values()),
    ]
    return "\n".join(lines)


def _promises(found: Found) -> str:
    lines = [
        "## What each promises",
        "",
        "A figure is worth what it promises: who forgets a task before it has run has less to do.",
        "These are the documented promises in the settings above; ours and Celery's are [measured](reliability.md).",
        "",
        "| system | runs again after `kill -9` of its worker | acknowledged | results | why |",
        "|---|---|---|---|---|",
    ]
    for name, one in found["systems"].items():
        told = one["promise"]
        cells = (told["survives"], told["acknowledged"], told["results"], f"{told['why']} ([source]({told['source']}))")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _section(key: str, section: Mapping[str, Any], found: Found) -> str:
    columns = list(next(iter(section["rows"].values())))
    rows = [(name, section["rows"][name]) for name in found["systems"] if name in section["rows"]]
    lines = [f"## {section['title']}", ""]
    lines += [
        line
        for plot in PLOTS
        if plot.after == key and plot.fits(found)
        for line in (f"![{plot.words}](images/{plot.file})", "")
    ]
    lines += [f"| | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    lines += [f"| {name} | {' | '.join(_cell(row[column]) for column in columns)} |" for name, row in rows]
    if section["note"]:
        lines += ["", section["note"].replace(". ", ".\n")]
    return "\n".join(lines)


def _cell(spread: Mapping[str, Any] | None) -> str:
    if spread is None:
        return ""
    middle, least, most = (_told(spread[name]) for name in ("median", "min", "max"))
    return middle if least == most else f"{middle} ({least} to {most})"


def _told(figure: float) -> str:
    """Return a figure with the digits that matter."""
    if figure == 0:
        return "0"
    return f"{figure:,.0f}" if figure >= 100 else f"{figure:.1f}" if figure >= 10 else f"{figure:.2f}"  # noqa: PLR2004  # three digits


def _troubles(troubles: Sequence[str]) -> str:
    heading = "## What went wrong on the way\n\n"
    if not troubles:
        return f"{heading}Nothing: every system ran every task once in every round."
    times = Counter(_brief(trouble.strip().splitlines()) for trouble in troubles)
    lines = [
        f"- {trouble}" if count == 1 else f"- {trouble} That was so {count} times." for trouble, count in times.items()
    ]
    return heading + "\n".join(["A system is left out of a step in the round in which it failed.", "", *lines])


def _brief(lines: Sequence[str]) -> str:
    return lines[0] if len(lines) == 1 else f"{lines[0]} … {lines[-1]}"


def _tail(about: Mapping[str, Any]) -> str:
    return f"""## What these figures can't tell

- It's one machine with {about["cores"]} cores, which the server, the workers and the sender share.
  Where two processes and the server are at work, the machine is the bound.
- The network is the loopback interface, so a round trip costs less here than between machines.
- The server writes nothing to its disk.
- No other brokers are measured, though dramatiq, Celery and taskiq have them."""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
