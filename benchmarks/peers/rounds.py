"""The rounds of a measurement: each system has its turn at each step, and none measures while another one works."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from dataclasses import replace as with_changes
from typing import Final, assert_never

from benchmarks.figures import Section, Spread
from benchmarks.peers.stage import Stage
from benchmarks.peers.steps import STEPS, Crew, Step, Visit, await_tasks, awake
from benchmarks.peers.systems import System
from orchestra.exceptions import PermanentError

__all__ = ["Found", "measure"]

_PROCESSES: Final = {Crew.TWO: 2}
_CROWDS: Final = {Crew.QUEUE: 1, Crew.QUEUES: 256}  # queues


@dataclass(slots=True)
class Found:
    """The figures: step -> system -> column -> one figure a round. `troubles` tells what went wrong on the way."""

    figures: dict[str, dict[str, dict[str, list[float]]]] = field(default_factory=dict)
    troubles: list[str] = field(default_factory=list)

    def note(self, step: Step, system: System, figures: Mapping[str, float]) -> None:
        """Keep one round's figures."""
        row = self.figures.setdefault(step.key, {}).setdefault(system.name, defaultdict(list))
        for name, figure in figures.items():
            row[name].append(figure)

    def sections(self) -> Iterator[Section]:
        """Return one table for each step that has figures, in the order of the steps."""
        for step in (STEPS[key] for key in STEPS if key in self.figures):
            rows = {
                name: [Spread(tuple(row[column])) if row.get(column) else None for column in step.columns]
                for name, row in self.figures[step.key].items()
            }
            yield Section(key=step.key, title=step.title, columns=step.columns, rows=rows, note=step.note)


def measure(
    stage: Stage,
    systems: Sequence[System],
    steps: Sequence[Step],
    *,
    tasks: int,
    rounds: int,
    say: Callable[[str], object],
    keep: Callable[[Found], object],
) -> Found:
    """
    Measure each system at each step, round by round.

    A system that fails at a step is left out of it in that round, and `Found.troubles` tells why. It begins each round
    with another system, so that none always comes after the same one. `keep` gets what is there after each round.
    """
    found = Found()
    with ExitStack() as stack:
        senders = {one.sender: one for one in reversed(systems)}
        kept = {key: stack.enter_context(stage.sender(one)) for key, one in senders.items()}
        for turn in range(rounds):
            start = turn * len(systems) // rounds
            for system in [*systems[start:], *systems[:start]]:
                say(f"round {turn + 1} of {rounds}: {system.name}")
                for crew in Crew:
                    wanted = [step for step in steps if step.crew is crew]
                    first = senders[system.sender] is system  # of those that share a sender, one submits for all
                    if wanted and (crew is not Crew.NONE or first):
                        _turn(found, Visit(system, stage, kept[system.sender], tasks), crew, wanted)
            keep(found)
    return found


def _turn(found: Found, visit: Visit, crew: Crew, steps: Sequence[Step]) -> None:
    """Start the workers that the steps are for, have the steps done, and stop them."""
    system, stage = visit.system, visit.stage
    stage.empty(system)
    stage.tally.clear()
    stage.client.config_resetstat()
    try:
        if crew is Crew.NONE:
            _do(found, visit, steps)
            return
        commands = _commands(system, crew)
        if commands is None:
            return
        processes = _PROCESSES.get(crew, 1)
        visit = with_changes(visit, queues=_CROWDS.get(crew))
        visit.fill("nothing", 0, 1)  # it waits for its worker
        started = time.monotonic()
        with stage.workers(system, commands) as workers:
            visit = with_changes(visit, workers=workers, started=started)
            _first(found, visit, [step for step in steps if step.key == "start"])
            awake(visit, processes)
            _do(found, visit, [step for step in steps if step.key != "start"])
    except PermanentError as error:
        found.troubles.append(f"{system.name}, {crew.value}: {error}")


def _do(found: Found, visit: Visit, steps: Sequence[Step]) -> None:
    """Have the steps done; one that fails leaves the others their turn."""
    for step in steps:
        try:
            found.note(step, visit.system, step.act(visit))
        except PermanentError as error:
            found.troubles.append(f"{visit.system.name}, {step.title}: {error}")


def _first(found: Found, visit: Visit, steps: Sequence[Step]) -> None:
    """Wait for the task that was there before the worker, and have those steps done that are about it."""
    await_tasks(visit, 1)
    _do(found, visit, steps)


def _commands(system: System, crew: Crew) -> list[list[str]] | None:
    """Return what starts the workers; None where the system takes no part."""
    match crew:
        case Crew.NONE:
            return []
        case Crew.ONE | Crew.TWO:
            return system.commands(_PROCESSES.get(crew, 1))
        case Crew.WAITING:
            if system.waiting is None:
                return system.commands(1)
            return [system.command(system.waiting)] if system.waiting else None
        case Crew.QUEUE | Crew.QUEUES:
            names = ",".join(f"skill{number}" for number in range(_CROWDS[crew]))
            return [system.command(system.crowd, queues=names)] if system.crowd else None
        case _:
            assert_never(crew)
