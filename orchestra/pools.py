"""Pools of ours, and how one is chosen: Celery's `-P` knows its own alone, from the moment when it's imported."""

from typing import Any, Final, get_args

import click
from celery.concurrency import solo

from orchestra.config import PoolName

__all__ = ["InlinePool", "choose_pool", "pool_named", "pool_option"]

_SoloPool: Any = solo.TaskPool  # celery-types has it closed to what it's made for: to be derived from


class InlinePool(_SoloPool):  # type: ignore[misc]
    """
    Celery's solo pool, with the short way of `orchestra.express` from messages to user code and back.

    A task blocks the process while it runs, so this is for tasks that take milliseconds.
    """


_OURS: Final = {"inline": f"{InlinePool.__module__}:{InlinePool.__name__}"}
_NAMES: Final = get_args(get_args(PoolName)[0])


def choose_pool(conf: Any, name: str | None) -> None:
    """Have workers use the pool of a name, else the one that Celery's `worker_pool` names, which may be ours too."""
    conf.worker_pool = pool_named(name or conf.worker_pool)


def pool_named(name: str) -> str:
    """Return a pool's name as Celery takes it."""
    return _OURS.get(name, name)


def pool_option() -> click.Option:
    """Return the option of `celery worker` that chooses any of our pools and Celery's."""
    return click.Option(
        ("--agent-pool",),
        type=click.Choice(_NAMES),
        is_eager=True,  # Celery looks at `worker_pool` where `-P` isn't given
        expose_value=False,
        callback=_choose,
        help="What runs the tasks: Celery's pools, or 'inline' for short tasks. ORCHESTRA_POOL says it too.",
    )


def _choose(context: click.Context, _: click.Parameter, name: str | None) -> None:
    if name is not None:
        choose_pool(context.obj.app.conf, name)
