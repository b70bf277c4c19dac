"""What is published during a fault: how many tasks, how long each takes, when it is due, and what it belongs to."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from tests.chaos.deeds import OUT_OF_MEMORY, lacks_cgroup
from tests.chaos.tasks import CALL, HANG, WORK

__all__ = ["WORKLOADS", "Canvas", "Item", "Workload"]

_BUSY: Final = (2.0, 4.0)  # how many pool processes the short tasks keep busy, at the least and at the most
_LONG_SECONDS: Final = 12.0  # longer than a lease, and than the visibility timeout of stock Celery here
_LONG_TASKS: Final = 6
_DELAYED: Final = 5  # times as many tasks, for 2,000 become 10,000, and as many publishes a second
_DELAY_SECONDS: Final = 5.0  # from the last publish to the first task that is due
_STEADY_SECONDS: Final = 120.0
_CHORDS: Final = 2  # of 1,000 members each, for 2,000 tasks
_CHAINS: Final = 20
_STEPS: Final = 20
_SOAK_PORTION: Final = 100
_SOAK_MEMBERS: Final = 10
_SOAK_SECONDS: Final = 3.0
_SOAK_DELAY_SECONDS: Final = 30.0
_POISON: Final = ("exit", "kill", "segfault", "raise MemoryError", "grow to the limit")
_HANGS: Final = ("hang", "hang hard")
_OF_EACH: Final = 2


@dataclass(frozen=True, slots=True)
class Item:
    """
    One task to publish.

    `due` is in seconds after the first publish, None for at once. A task with a `deed` isn't expected to come to its
    end. One that `follows` others can't begin before they have ended.
    """

    number: int
    seconds: float
    due: float | None = None
    task: str = WORK
    deed: str = ""
    follows: bool = False


@dataclass(frozen=True, slots=True)
class Canvas:
    """Tasks that are published together: the members of a chord and its body, or the steps of a chain."""

    shape: str
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Items in the order of their publishing, the rate, and the length of time over which faults are spread."""

    items: Sequence[Item | Canvas]
    rate: float
    length: float


def _short(tasks: int, rate: float, dice: Random) -> Workload:
    return Workload(items=_brief_items(tasks, rate, dice), rate=rate, length=tasks / rate)


def _brief_items(tasks: int, rate: float, dice: Random) -> list[Item]:
    return [Item(number, _brief(rate, dice)) for number in range(tasks)]


def _brief(rate: float, dice: Random) -> float:
    return dice.uniform(*_BUSY) / rate


def _steady(tasks: int, _rate: float, dice: Random) -> Workload:
    """Spread the tasks over two minutes, and have each take longer."""
    return _short(tasks, tasks / _STEADY_SECONDS, dice)


def _burst(tasks: int, rate: float, dice: Random) -> Workload:
    """Publish all within the half of the time that it takes to run them."""
    return Workload(items=_brief_items(tasks, rate, dice), rate=rate * 4, length=tasks / rate / 2)


def _long(tasks: int, rate: float, dice: Random) -> Workload:
    """Put long tasks among the first half of short ones."""
    chosen = set(dice.sample(range(tasks // 2), _LONG_TASKS))
    items = [Item(number, _LONG_SECONDS if number in chosen else _brief(rate, dice)) for number in range(tasks)]
    return Workload(items=items, rate=rate, length=tasks / rate)


def _delayed(tasks: int, rate: float, dice: Random) -> Workload:
    """Publish all before the first is due; then they become due at the rate at which others are published."""
    first = tasks / rate + _DELAY_SECONDS
    last = first + tasks * _DELAYED / rate
    items = [Item(number, _brief(rate, dice), dice.uniform(first, last)) for number in range(tasks * _DELAYED)]
    return Workload(items=items, rate=rate * _DELAYED, length=last)


def _mixed(tasks: int, rate: float, dice: Random) -> Workload:
    """Delay every fourth task, by no longer than it takes to publish all."""
    length = tasks / rate
    items = [
        Item(number, _brief(rate, dice), None if number % 4 else number / rate + dice.uniform(0, length))
        for number in range(tasks)
    ]
    return Workload(items=items, rate=rate, length=length * 1.5)


def _poison(tasks: int, rate: float, dice: Random) -> Workload:
    """Put tasks that end their process, or take all memory, among short ones."""
    return _with_deeds(tasks, rate, dice, _POISON if lacks_cgroup() else (*_POISON, OUT_OF_MEMORY), WORK)


def _hanging(tasks: int, rate: float, dice: Random) -> Workload:
    """Put tasks that never end among short ones."""
    return _with_deeds(tasks, rate, dice, _HANGS, HANG)


def _with_deeds(tasks: int, rate: float, dice: Random, deeds: Sequence[str], task: str) -> Workload:
    doers = dict(zip(dice.sample(range(tasks), len(deeds) * _OF_EACH), [*deeds] * _OF_EACH, strict=True))
    items = [
        Item(number, _brief(rate, dice), task=task if number in doers else WORK, deed=doers.get(number, ""))
        for number in range(tasks)
    ]
    return Workload(items=items, rate=rate, length=tasks / rate)


def _calls(tasks: int, rate: float, dice: Random) -> Workload:
    """Have every task call a service."""
    items = [Item(number, _brief(rate, dice), task=CALL) for number in range(tasks)]
    return Workload(items=items, rate=rate, length=tasks / rate)


def _canvases(tasks: int, rate: float, dice: Random) -> Workload:
    """Publish chords that have all these tasks for members, and chains between them."""
    numbers = iter(range(tasks + _CHORDS + _CHAINS * _STEPS))

    def items(many: int, *, first: bool) -> tuple[Item, ...]:
        return tuple(Item(next(numbers), _brief(rate, dice), follows=not first or step > 0) for step in range(many))

    def chord() -> Canvas:
        members = tuple(Item(next(numbers), _brief(rate, dice)) for _ in range(tasks // _CHORDS))
        return Canvas("chord", (*members, *items(1, first=False)))

    chains = [Canvas("chain", items(_STEPS, first=True)) for _ in range(_CHAINS)]
    length = (tasks + _CHAINS * _STEPS) / rate
    return Workload(items=[chord(), *chains, chord()], rate=(_CHAINS + _CHORDS) * 2 / length, length=length)


def _soak(tasks: int, rate: float, dice: Random) -> Workload:
    """Mix them all: short tasks, one in ten delayed, one in a hundred for seconds, a small chord for every hundred."""
    length, items = tasks / rate, list[Item | Canvas]()
    for number in range(0, tasks, _SOAK_PORTION):
        members = tuple(Item(number + place, _brief(rate, dice)) for place in range(_SOAK_MEMBERS))
        body = Item(number + _SOAK_MEMBERS, _brief(rate, dice), follows=True)
        items.append(Canvas("chord", (*members, body)))
        items.append(Item(number + _SOAK_MEMBERS + 1, _SOAK_SECONDS))
        for one in range(number + _SOAK_MEMBERS + 2, number + _SOAK_PORTION):
            due = None if one % 10 else one / rate + dice.uniform(0, _SOAK_DELAY_SECONDS)
            items.append(Item(one, _brief(rate, dice), due))
    return Workload(items=items, rate=len(items) / length, length=length)


WORKLOADS: Final[Mapping[str, Callable[[int, float, Random], Workload]]] = {
    "short": _short,
    "steady": _steady,
    "burst": _burst,
    "long": _long,
    "delayed": _delayed,
    "mixed": _mixed,
    "poison": _poison,
    "hanging": _hanging,
    "calls": _calls,
    "canvases": _canvases,
    "soak": _soak,
}
