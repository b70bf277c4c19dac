"""How a requirement becomes the name of a queue, and back."""

from dataclasses import dataclass

from orchestra.capabilities import GENERAL, Requirement
from orchestra.exceptions import ConfigurationError, ValidationError

__all__ = ["CapabilityQueue", "QueueNames"]

_FLEET_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")


@dataclass(frozen=True, slots=True)
class CapabilityQueue:
    """
    What a queue asks of the agents that serve it.

    `task` is None for an ordinary queue. Where it isn't, the queue holds messages of that task alone, handed on by
    agents which satisfy the requirement but don't know the task.
    """

    requirement: Requirement
    task: str | None = None

    @property
    def suffix(self) -> str:
        """The part of the queue's name behind the fleet's: `gpu+mem_gb~ge~16`, `nlp@shop.index`."""
        return self.requirement.suffix if self.task is None else f"{self.requirement.suffix}@{self.task}"

    @classmethod
    def from_suffix(cls, suffix: str) -> "CapabilityQueue":
        """Read `suffix` back; a ValidationError when no queue of ours is called so."""
        requirement, marked, task = suffix.partition("@")
        return cls(Requirement.from_suffix(requirement), task if marked else None)


@dataclass(frozen=True, slots=True)
class QueueNames:
    """
    The names of one fleet's queues: `<fleet>:<suffix>`, and the app's default queue for general work.

    `default` is a plain queue that stock producers and stock workers use as well.
    """

    fleet: str
    default: str

    def __post_init__(self) -> None:
        if not self.fleet or not set(self.fleet) <= _FLEET_CHARACTERS:
            message = (
                f"The fleet's name is {self.fleet!r}, and it becomes part of queue names: use letters, digits, '_', "
                "'.' and '-' in the app's name, or set ORCHESTRA_NAMESPACE."
            )
            raise ConfigurationError(message)

        if self.default.startswith(f"{self.fleet}:") and self.default != f"{self.fleet}:{GENERAL.suffix}":
            message = (
                f"The default queue is {self.default!r}, which is the name of a requirement's queue: set "
                f"task_default_queue to '{self.fleet}:{GENERAL.suffix}', or to a name that doesn't begin with "
                f"'{self.fleet}:'."
            )
            raise ConfigurationError(message)

    def name(self, queue: CapabilityQueue) -> str:
        """Return the queue's name."""
        if queue == _GENERAL_QUEUE:
            return self.default
        return f"{self.fleet}:{queue.suffix}"

    def name_for(self, requirement: Requirement) -> str:
        """Return the name of the queue that tasks with this requirement wait in."""
        return self.name(CapabilityQueue(requirement))

    def suffix(self, name: str) -> str | None:
        """Return what stands for the queue in the table of queues; None when it isn't one of this fleet's."""
        if name == self.default:
            return GENERAL.suffix
        fleet, _, suffix = name.partition(":")
        return suffix if suffix and fleet == self.fleet else None

    def requires(self, name: str) -> str:
        """Return the canonical requirement of a queue by its name; empty when it isn't one of this fleet's."""
        suffix = self.suffix(name)
        try:
            return "" if suffix is None else CapabilityQueue.from_suffix(suffix).requirement.text
        except ValidationError:
            return ""


_GENERAL_QUEUE = CapabilityQueue(GENERAL)
