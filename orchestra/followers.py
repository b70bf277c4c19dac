"""What is to be sent when a task has come to its end: the rest of its chain, and the body of its chord."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from typing import Any, Final

__all__ = ["Awaited", "Follower", "Link", "awaited_of", "followers_of"]

_MOST: Final = 1_000  # that one publish notes; those behind them are noted as the chain goes on
_DEEPEST: Final = 50
_AFTER: Final = "after:"

Ends = tuple[str, ...]  # ids of the tasks with which a step ends


class Link(StrEnum):
    """What a task that isn't sent yet follows: one other task, or all members of a chord."""

    CHAIN = "chain"
    CHORD = "chord"


@dataclass(frozen=True, slots=True)
class Follower:
    """A task that is sent once another one has succeeded, or, as the body of a chord, that one and its siblings."""

    task_id: str
    name: str
    after: str  # the id of the task that it waits for
    link: Link


@dataclass(frozen=True, slots=True)
class Awaited:
    """What a task waits for that isn't sent yet: all the tasks of `after`, by id."""

    name: str
    link: Link
    after: tuple[str, ...]


def awaited_of(fields: Mapping[str, str]) -> Awaited | None:
    """Read a note as `scripts/followers.lua` writes it; None for none."""
    if "link" not in fields:
        return None
    after = sorted(field.removeprefix(_AFTER) for field in fields if field.startswith(_AFTER))
    return Awaited(fields.get("task", ""), Link(fields["link"]), tuple(after))


def followers_of(task_id: str, chain: Any, chord: Any, *, next_only: bool = False) -> tuple[Follower, ...]:
    """
    Return what follows a task that is being sent, nearest first; signatures that have no id yet are passed over.

    Args:
        task_id: the task's id.
        chain: the option of this name, signatures with the next one last, as Celery has it; None for no chain.
        chord: the option of this name, the signature of the body; None for no chord.
        next_only: whether what follows the followers is left out, since it has been noted before.

    """
    chained = list(reversed(chain or ()))
    found = [*_chained((task_id,), chained[:1] if next_only else chained, _DEEPEST)]
    if chord:
        found += _after((task_id,), chord, Link.CHORD, _DEEPEST)
    return tuple(islice(found, _MOST))


def _chained(ends: Ends, signatures: Sequence[Any], depth: int) -> Iterator[Follower]:
    for signature in signatures:
        yield from _after(ends, signature, Link.CHAIN, depth)
        ends = _ends_of(signature, depth)


def _after(ends: Ends, signature: Any, link: Link, depth: int) -> Iterator[Follower]:
    """Yield what a signature sends, which comes after all of `ends`."""
    if depth <= 0 or not isinstance(signature, Mapping):
        return
    options = _within(signature, "options")
    match signature.get("subtask_type"):
        case "chain":
            first, *others = _tasks(signature) or [None]
            yield from _after(ends, first, link, depth - 1)
            yield from _chained(_ends_of(first, depth), others, depth - 1)
        case "group":
            for task in _tasks(signature):
                yield from _after(ends, task, link, depth - 1)
        case "chord":
            for task in _header(signature):
                yield from _after(ends, task, link, depth - 1)
            header = tuple(end for task in _header(signature) for end in _ends_of(task, depth - 1))
            yield from _after(header, _within(signature, "kwargs").get("body"), Link.CHORD, depth - 1)
        case _ if options.get("task_id"):
            name = str(signature.get("task"))
            yield from (Follower(str(options["task_id"]), name, end, link) for end in ends)
            if options.get("chord"):
                yield from _after((str(options["task_id"]),), options["chord"], Link.CHORD, depth - 1)


def _ends_of(signature: Any, depth: int) -> Ends:
    """Return the ids of the tasks whose ends are a signature's end."""
    if depth <= 0 or not isinstance(signature, Mapping):
        return ()
    match signature.get("subtask_type"):
        case "chain":
            tasks = _tasks(signature)
            return _ends_of(tasks[-1], depth - 1) if tasks else ()
        case "group":
            return tuple(end for task in _tasks(signature) for end in _ends_of(task, depth - 1))
        case "chord":
            return _ends_of(_within(signature, "kwargs").get("body"), depth - 1)
    task_id = _within(signature, "options").get("task_id")
    return (str(task_id),) if task_id else ()


def _within(signature: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    found = signature.get(part)
    return found if isinstance(found, Mapping) else {}


def _tasks(signature: Mapping[str, Any]) -> list[Any]:
    tasks = _within(signature, "kwargs").get("tasks")
    return list(tasks) if isinstance(tasks, (list, tuple)) else []


def _header(signature: Mapping[str, Any]) -> list[Any]:
    header = _within(signature, "kwargs").get("header")
    if isinstance(header, Mapping):
        return _tasks(header)
    return list(header) if isinstance(header, (list, tuple)) else []
