"""Which queues hold nothing but tasks that all wait for the same breaker."""

from collections.abc import Mapping
from typing import Any

from orchestra.breaker_policy import OnOpen
from orchestra.capabilities import GENERAL, Requirement
from orchestra.exceptions import ValidationError
from orchestra.queues import CapabilityQueue, QueueNames
from orchestra.registry import AgentRegistry, CatalogueEntry

__all__ = ["SharedBreakers", "shared_breakers"]


def shared_breakers(catalogue: Mapping[str, CatalogueEntry], names: QueueNames) -> dict[str, str]:
    """
    Return, of each queue whose tasks all wait for the same breaker, the queue's name and the breaker's.

    A queue of one task alone, handed on by agents that don't know it, follows that task.
    """
    found: dict[str, set[str | None]] = {}
    for task, entry in catalogue.items():
        breaker = _awaited(entry)
        try:
            requirement = GENERAL if entry.requires is None else Requirement.parse(entry.requires)
        except ValidationError:  # written by a newer version
            continue
        for queue in (CapabilityQueue(requirement), CapabilityQueue(requirement, task)):
            found.setdefault(names.name(queue), set()).add(breaker)
    single = {queue: next(iter(breakers)) for queue, breakers in found.items() if len(breakers) == 1}
    return {queue: breaker for queue, breaker in single.items() if breaker is not None}


def _awaited(entry: CatalogueEntry) -> str | None:
    """Return the breaker that every call of a task waits for; None where there is none, or one for each key."""
    policy: Mapping[str, Any] = entry.breaker or {}
    waits = policy.get("on_open") == OnOpen.WAIT and not policy.get("keyed")
    return str(policy["name"]) if waits and policy.get("name") else None


class SharedBreakers:
    """What one agent knows of such queues; it asks the catalogue only where a task of its own may be in one."""

    def __init__(self, registry: AgentRegistry, names: QueueNames, own: Mapping[str, CatalogueEntry]) -> None:
        self._registry = registry
        self._names = names
        self._concerned = any(_awaited(entry) for entry in own.values())

    def read(self) -> dict[str, str]:
        """Return the queues and their breakers, as the fleet's catalogue has them now."""
        return shared_breakers(self._registry.catalogue(), self._names) if self._concerned else {}
