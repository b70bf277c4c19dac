"""Which queue a task goes to: the requirement, turned into a name."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from orchestra.capabilities import Requirement
from orchestra.queues import QueueNames

__all__ = ["BY_INNER_TASK", "DECLARED_HEADER", "ROUTING_OPTIONS", "TaskRouter"]

DECLARED_HEADER: Final = "declared_requires"  # what a task declares, as the sender of a canvas knew it
ROUTING_OPTIONS: Final = ("queue", "exchange", "routing_key")
BY_INNER_TASK: Final = frozenset({"celery.map", "celery.starmap"})


class TaskRouter:
    """
    Route by requirement: a callable for Celery's `task_routes`.

    Matching agents to queues happens when a queue or an agent appears; here a requirement only becomes a name, so a
    richer one costs nothing. What a caller or a project routes itself is left alone.

    `declared` tells the requirement of a task by its name: None for a task that has none or isn't known.
    """

    def __init__(self, queues: QueueNames, declared: Callable[[str], Requirement | None]) -> None:
        self._queues = queues
        self._declared = declared

    def __call__(
        self,
        name: str,
        _args: object = (),
        kwargs: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        **_: object,
    ) -> dict[str, str] | None:
        """Return Celery's route, or None to leave the task to the routes behind this one."""
        given = options or {}
        if any(given.get(option) for option in ROUTING_OPTIONS):
            return None
        requirement = self.requirement(name, kwargs or {}, given)
        return None if requirement is None else {"queue": self._queues.name_for(requirement)}

    def requirement(self, name: str, kwargs: Mapping[str, Any], options: Mapping[str, Any]) -> Requirement | None:
        """
        Return what a call requires: what the caller asks for, else what the task (or its inner task) declares.

        What an unknown task declares may stand in the call's headers: it was known where its canvas was sent.
        """
        asked = options.get("requires")
        if asked is not None:
            return Requirement.parse(asked)
        inner = kwargs.get("task") if name in BY_INNER_TASK else None
        if isinstance(inner, Mapping):
            return self.requirement(inner.get("task", ""), inner.get("kwargs") or {}, inner.get("options") or {})
        declared = self._declared(name)
        known_before = (options.get("headers") or {}).get(DECLARED_HEADER)
        return Requirement.parse(known_before) if declared is None and known_before is not None else declared
