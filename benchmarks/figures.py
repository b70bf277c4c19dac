"""What was measured: spreads over rounds, in sections that become tables and JSON."""

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter_ns, process_time_ns
from typing import Any, Final

from redis import Redis
from rich.box import SIMPLE_HEAD
from rich.table import Table

__all__ = ["WIDTH", "Cost", "Section", "Spread", "column", "costs", "ratio", "server_seconds"]

WIDTH: Final = 80
_CHUNK: Final = 50  # calls in a row of one candidate before the next one's turn: short, since machines change speed


@dataclass(frozen=True, slots=True)
class Spread:
    """One figure in every round."""

    rounds: tuple[float, ...]

    def __str__(self) -> str:
        """Return the median, and the least and the most in brackets; one round has only itself."""
        if len(self.rounds) == 1:
            return _brief(self.rounds[0])
        return f"{_brief(median(self.rounds))} ({_brief(min(self.rounds))}-{_brief(max(self.rounds))})"

    def to_json(self) -> dict[str, Any]:
        """Return the spread with its raw figures."""
        return {
            "median": median(self.rounds),
            "min": min(self.rounds),
            "max": max(self.rounds),
            "rounds": list(self.rounds),
        }


def _brief(figure: float) -> str:
    return f"{figure:.0f}" if abs(figure) >= 100 else f"{figure:.1f}" if abs(figure) >= 10 else f"{figure:.2f}"  # noqa: PLR2004  # three digits that matter


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One table: `rows` maps what was measured to one spread a column; None where there is none to tell."""

    key: str
    title: str
    columns: Sequence[str]
    rows: Mapping[str, Sequence[Spread | None]]
    note: str = ""

    def to_table(self) -> Table:
        """Return the section as people read it."""
        table = Table(
            box=SIMPLE_HEAD,
            pad_edge=False,
            padding=(0, 1),
            width=WIDTH,
            title=self.title,
            title_justify="left",
            caption=self.note or None,
            caption_justify="left",
        )
        table.add_column("")
        for name in self.columns:
            table.add_column(name, justify="right", no_wrap=True)
        for what, spreads in self.rows.items():
            table.add_row(what, *("" if spread is None else str(spread) for spread in spreads))
        return table

    def to_json(self) -> dict[str, Any]:
        """Return the section as programs read it."""
        rows = {
            what: {name: spread and spread.to_json() for name, spread in zip(self.columns, spreads, strict=True)}
            for what, spreads in self.rows.items()
        }
        return {"title": self.title, "note": self.note, "rows": rows}


def ratio(ours: Spread, theirs: Spread) -> Spread:
    """Return how many times as much ours is, round by round."""
    return Spread(tuple(mine / yours for mine, yours in zip(ours.rounds, theirs.rounds, strict=True)))


@dataclass(slots=True)
class Cost:
    """What calls have taken, in nanoseconds: time, this process's CPU, and the server's CPU."""

    wall: float = 0.0
    cpu: float = 0.0
    server: float = 0.0


def server_seconds(client: "Redis") -> float:
    """Return the CPU time that the server has used."""
    info: Any = client.info("cpu")
    return float(info["used_cpu_user"] + info["used_cpu_sys"])


def costs(
    acts: Mapping[str, Callable[[int], object]], *, rounds: int, times: int, client: "Redis | None" = None
) -> dict[str, list[Cost]]:
    """
    Time each act `times` times a round, in short turns, and return the cost of one call in each round.

    An act is called with a number that no other call gets. The server's part is measured where `client` is given,
    and includes the measuring itself: 1 to 2 µs a call.
    """
    found: dict[str, list[Cost]] = {name: [] for name in acts}
    for turn in range(rounds + 1):  # the first one only warms up
        gc.collect()
        spent = {name: Cost() for name in acts}
        end = (turn + 1) * times
        for start in range(turn * times, end, _CHUNK):
            numbers = range(start, min(start + _CHUNK, end))
            for name, act in acts.items():
                _spend(spent[name], act, numbers, client)
        for name, cost in spent.items():
            found[name].append(Cost(cost.wall / times, cost.cpu / times, cost.server / times))
    return {name: each[1:] for name, each in found.items()}


def _spend(cost: Cost, act: Callable[[int], object], numbers: range, client: "Redis | None") -> None:
    server = server_seconds(client) if client is not None else 0.0
    cpu, wall = process_time_ns(), perf_counter_ns()
    for number in numbers:
        act(number)
    cost.wall += perf_counter_ns() - wall
    cost.cpu += process_time_ns() - cpu
    cost.server += (server_seconds(client) - server) * 1e9 if client is not None else 0.0


def column(costs_by_round: Sequence[Cost], part: str) -> Spread:
    """Return one part of a cost, in microseconds."""
    return Spread(tuple(getattr(cost, part) / 1_000 for cost in costs_by_round))
