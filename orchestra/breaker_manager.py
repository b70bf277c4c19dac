"""Breakers as people see and steer them: those that are called, and those that tasks declare."""

import os
import socket
from collections.abc import Mapping
from difflib import get_close_matches
from getpass import getuser
from typing import Any

from orchestra.breaker import BreakerPhase, BreakerState, CircuitBreaker
from orchestra.breaker_policy import Breaker
from orchestra.exceptions import ValidationError
from orchestra.registry import AgentRegistry
from orchestra.validation import validate_delay

__all__ = ["BreakerManager"]

_VALUES = ("failures", "ratio", "window", "cooldown", "probes")


class BreakerManager:
    """The breakers of one app's fleet."""

    def __init__(self, breakers: CircuitBreaker, registry: AgentRegistry) -> None:
        self._breakers = breakers
        self._registry = registry

    def breakers(self) -> list[BreakerState]:
        """Return every breaker that was called within a day, isn't closed, or is declared by a task; by name."""
        called = {state.name: state for state in self._breakers.states()}
        declared = [name for name, policy in self._declared().items() if not policy.get("keyed")]
        unused = {name: BreakerState(name=name, state=BreakerPhase.CLOSED) for name in declared if name not in called}
        return [state for _, state in sorted((called | unused).items())]

    def open(self, name: str, *, seconds: float | None = None) -> None:
        """
        Open a breaker for so many seconds, or until it's closed where none are given.

        Raises:
            ValidationError: nobody knows a breaker of this name, or the number of seconds makes no sense.

        """
        policy = self._known(name)
        self._breakers.open(name, by=_somebody(), seconds=validate_delay(seconds), policy=policy)

    def close(self, name: str) -> bool:
        """Close a breaker; return False when it was closed already, and raise as `open` does."""
        self._known(name)
        return self._breakers.close(name, by=_somebody())

    def reset(self, name: str) -> bool:
        """Close a breaker and forget it until its next call; return and raise as `close` does."""
        self._known(name)
        return self._breakers.reset(name, by=_somebody())

    def _declared(self) -> dict[str, Mapping[str, Any]]:
        """Return the policies that the fleet's tasks declare, by the name of the breaker."""
        policies = (entry.breaker for entry in self._registry.catalogue().values())
        return {str(policy["name"]): policy for policy in policies if policy and policy.get("name")}

    def _known(self, name: str) -> Breaker | None:
        """Return a breaker's policy; None for one that no task declares any more, though it was called."""
        declared, called = self._declared(), self._breakers.names()
        plain, keyed, _ = name.partition(":")
        policy = declared.get(plain)
        if policy is not None and bool(keyed) == bool(policy.get("keyed")):
            return Breaker(plain, **{value: policy[value] for value in _VALUES if value in policy})
        if name in called:
            return None
        known = sorted({*called, *(one if not other.get("keyed") else f"{one}:…" for one, other in declared.items())})
        nearest = get_close_matches(name, known) or known
        hint = f"there are {', '.join(nearest)}" if nearest else "no task of the fleet declares one"
        message = f"No breaker is named {name!r}: {hint}."
        raise ValidationError(message)


def _somebody() -> str:
    """Return who asks, as the list of changes shows it."""
    try:
        user = getuser()
    except (KeyError, OSError):  # a container's user has no name
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"
