"""What any agent tidies up for its fleet: queues that nobody uses, and tasks that nobody knows."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from orchestra.exceptions import ValidationError
from orchestra.queues import CapabilityQueue, QueueNames
from orchestra.registry import AgentEntry, AgentRegistry
from orchestra.types import DeadReason

__all__ = ["Buried", "Sweep"]

QUEUE_TTL_SECONDS: Final = 86_400.0  # a queue that stayed empty this long is forgotten; the next publish brings it back
HANDED_ON_TTL_SECONDS: Final = 60.0  # the same for a queue of handed-on tasks, of which only stragglers remain


@dataclass(frozen=True, slots=True)
class Buried:
    """Messages of one task that went to the dead letters, since no live agent has known it for too long."""

    task: str
    messages: list[bytes]


class Sweep:
    """
    Tidy up a fleet's queues; every agent may do it at any time, since each step is one script.

    A message that was handed on waits for an agent that knows its task. When none that lives does, after
    `unregistered_after_seconds`, it becomes a dead letter with the reason `unregistered`.
    """

    def __init__(
        self,
        registry: AgentRegistry,
        names: QueueNames,
        *,
        steps: tuple[str, ...],
        unregistered_after_seconds: float,
        on_buried: Callable[[Buried], None],
    ) -> None:
        self._registry = registry
        self._names = names
        self._steps = steps
        self._unregistered_after_seconds = unregistered_after_seconds
        self._on_buried = on_buried

    def run(self) -> None:
        """Look at every queue once."""
        now, queues = self._registry.registered()
        old = {suffix: now - at for suffix, at in queues.items() if now - at > HANDED_ON_TTL_SECONDS}
        overdue = {suffix for suffix, at in queues.items() if now - at > self._unregistered_after_seconds}
        for suffix in self._unknown_anywhere(overdue):
            self._bury(suffix)
        for suffix, age in old.items():
            queue = _read(suffix)
            ttl = HANDED_ON_TTL_SECONDS if queue is not None and queue.task is not None else QUEUE_TTL_SECONDS
            if queue is not None and age > ttl:
                self._registry.prune(suffix, self._names.name(queue), steps=self._steps, registered_before=now - ttl)

    def _unknown_anywhere(self, suffixes: Iterable[str]) -> list[str]:
        """Return those queues of handed-on tasks that no live agent knows."""
        handed_on = {suffix: queue.task for suffix in suffixes if (queue := _read(suffix)) and queue.task}
        if not handed_on:
            return []
        known = frozenset[str]().union(*map(_tasks, self._registry.agents()))
        return [suffix for suffix, task in handed_on.items() if task not in known]

    def _bury(self, suffix: str) -> None:
        queue = CapabilityQueue.from_suffix(suffix)
        name = self._names.name(queue)
        error = f"No agent has known {queue.task} for {self._unregistered_after_seconds:g} s."
        messages = self._registry.bury(
            suffix, name, steps=self._steps, reason=DeadReason.UNREGISTERED.value, error=error
        )
        if messages:
            self._on_buried(Buried(queue.task or "", messages))


def _tasks(agent: AgentEntry) -> frozenset[str]:
    return agent.tasks if agent.alive else frozenset()


def _read(suffix: str) -> CapabilityQueue | None:
    try:
        return CapabilityQueue.from_suffix(suffix)
    except ValidationError:  # written by a newer version
        return None
