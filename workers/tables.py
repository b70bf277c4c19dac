"""What the demo shows: tables for a terminal of 80 columns."""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import datetime
from statistics import median
from typing import Final

from rich.table import Table

from orchestra.types import TaskRecord
from workers.documents import Report

__all__ = ["WIDTH", "findings", "shown", "what_ran_where"]

WIDTH: Final = 80
_KINDS: Final = 6
_PAIRS: Final = 5
_FOLDERS: Final = 6
_EXAMPLE_WIDTH: Final = 40
_PATH_WIDTH: Final = 33
_HOST_WIDTH: Final = 6  # enough to part containers, whose hosts are called by 12 random digits
_UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")  # they could move the cursor


def what_ran_where(records: Iterable[TaskRecord], files_of: Mapping[str, int], elapsed_seconds: float) -> Table:
    """Show each agent's share of the job by the queue that it served: how busy it was, and how long tasks waited."""
    served: defaultdict[tuple[str, str], list[TaskRecord]] = defaultdict(list)
    for record in records:
        served[(record.agent or "?", record.queue)].append(record)
    labels = _labels({agent for agent, _ in served})
    table = _table("agent", "served queue", right=("tasks", "files", "busy", "p50 run", "p50 wait"))
    for (agent, queue), done in sorted(served.items()):
        runs = _seconds((record.started_at, record.finished_at) for record in done)
        waits = _seconds((record.submitted_at, record.started_at) for record in done)
        files = sum(files_of.get(record.task_id, 0) for record in done)
        busy = 100 * sum(runs) / elapsed_seconds
        table.add_row(
            labels[agent],
            queue,
            f"{len(done):,}",
            f"{files:,}" if files else "-",
            f"{busy:.0f} %",
            _duration(runs),
            _duration(waits),
        )
    return table


def _labels(agents: Collection[str]) -> dict[str, str]:
    """Name agents without their hosts; where that would name several, the first letters of the host stand with it."""
    times = Counter(agent.partition("@")[0] for agent in agents)
    return {agent: _label(*agent.partition("@")[::2], alone=times[agent.partition("@")[0]] == 1) for agent in agents}


def _label(name: str, host: str, *, alone: bool) -> str:
    return name if alone else f"{name}@{host[:_HOST_WIDTH]}"


def _seconds(spans: Iterable[tuple[datetime | None, datetime | None]]) -> list[float]:
    return [(end - start).total_seconds() for start, end in spans if start and end]


def _duration(seconds: list[float]) -> str:
    if not seconds:
        return "-"
    typical = median(seconds)
    return f"{typical:.1f} s" if typical >= 1 else f"{typical * 1000:.0f} ms"


def findings(report: Report) -> Iterator[Table]:
    """Show what the job found out: kinds of files, near duplicates, what folders are about, and what was skipped."""
    yield _kinds(report)
    if report["pairs"]:
        yield _near_duplicates(report)
    if report["keywords"]:
        yield _folders(report)
    if report["skipped"]:
        yield _skipped(report)


def _kinds(report: Report) -> Table:
    table = _table("kind", right=("files", "readability"))
    for kind, files in list(report["kinds"].items())[:_KINDS]:
        lix = report["readability"].get(kind)
        table.add_row(kind, f"{files:,}", "-" if lix is None else f"LIX {lix:.0f}")
    rest = list(report["kinds"].values())[_KINDS:]
    if rest:
        table.add_row(f"{len(rest)} more", f"{sum(rest):,}", "")
    return table


def _near_duplicates(report: Report) -> Table:
    table = _table("near duplicates", "", right=("alike",))
    for one, other, score in report["pairs"][:_PAIRS]:
        table.add_row(_path(one), _path(other), f"{score:.2f}")
    return table


def _folders(report: Report) -> Table:
    table = _table("folder", "what it is about")
    for folder, words in list(report["keywords"].items())[:_FOLDERS]:
        table.add_row(_path(folder), ", ".join(words[:5]))
    return table


def _skipped(report: Report) -> Table:
    table = _table("skipped", right=("files",), last="for example")
    examples = {outcome: (path, note) for path, outcome, note in reversed(report["skipped"])}
    for outcome, files in report["outcomes"].items():
        if outcome != "profiled":
            path, note = examples.get(outcome, ("", ""))
            table.add_row(outcome, f"{files:,}", f"{_path(path)} ({shown(note)})")
    return table


def _table(*left: str, right: tuple[str, ...] = (), last: str | None = None) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold", min_width=40)
    for title in left:
        table.add_column(title, no_wrap=True)
    for title in right:
        table.add_column(title, justify="right", no_wrap=True)
    if last is not None:
        table.add_column(last, no_wrap=True)
    return table


def _path(path: str) -> str:
    text = shown(path)
    if len(text) <= _PATH_WIDTH:
        return text
    kept = (_PATH_WIDTH - 1) // 3
    return f"{text[:kept]}…{text[kept + 1 - _PATH_WIDTH :]}"


def shown(name: str) -> str:
    """Return a name from outside as it may be printed: without control characters, and not read as rich's markup."""
    return _UNPRINTABLE.sub("�", name)
