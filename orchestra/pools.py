"""Pools of ours: tasks that are short run in the agent's own process, many of them for each word with Redis."""

from typing import Any, Final

from celery.concurrency import solo

__all__ = ["POOLS", "InlinePool"]

_SoloPool: Any = solo.TaskPool  # celery-types has it closed to what it's made for: to be derived from


class InlinePool(_SoloPool):  # type: ignore[misc]
    """
    Celery's solo pool, with the short way of `orchestra.express` from messages to user code and back.

    A task blocks the process while it runs, so this is for tasks that take milliseconds.
    """


POOLS: Final = {"inline": f"{InlinePool.__module__}:{InlinePool.__name__}"}  # by the names that settings take
