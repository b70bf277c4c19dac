"""The order in which an agent looks into its queues, and how much of each it takes ahead."""

from collections.abc import Iterable
from typing import Any, Final

from kombu.utils.scheduling import round_robin_cycle

__all__ = ["FAIR_EVERY", "ScarceSkillFirst"]

FAIR_EVERY: Final = 8

_RoundRobin: Any = round_robin_cycle  # celery-types has it generic, which it isn't at run time


class ScarceSkillFirst(_RoundRobin):  # type: ignore[misc]
    """
    Within one urgency, the most demanding requirement first; among equals, the queue that was served longest ago.

    An agent with a rare skill does the work that only it can do before work that others could do as well. One look in
    eight of those that bring something is `fair`: it begins with the queue that was served longest ago, however little
    that asks for and however urgent the others are, so that undemanding work is delayed but never starved.

    `lesser` are the queues that ask for less than another one here does. An agent takes next to nothing of them ahead,
    or it would be found with its hands full when work for its skill comes.
    """

    def __init__(self, it: Iterable[str] | None = None) -> None:
        super().__init__([])
        self.fair = False
        self.lesser: frozenset[str] = frozenset()
        self._demands: dict[str, int] = {}
        self._looks = 0
        self._served = False
        self.update(it or ())

    def update(self, it: Iterable[str]) -> None:
        """Take other queues."""
        super().update(it)
        self._demands = {queue: _demand(queue) for queue in self.items}
        most = max(self._demands.values(), default=0)
        self.lesser = frozenset(queue for queue, demand in self._demands.items() if demand < most)

    def consume(self, n: int) -> list[str]:
        """Begin a look: return the first `n` queues in its order."""
        if self._served:
            self._looks, self._served = self._looks + 1, False
        self.fair = self._looks >= FAIR_EVERY - 1
        if self.fair:
            self._looks = -1  # it counts for one itself
        queues: list[str] = self.items[:n]
        return queues if self.fair else self.by_demand(queues)

    def by_demand(self, queues: Iterable[str]) -> list[str]:
        """Return queues in their usual order."""
        return sorted(queues, key=self._demands.__getitem__, reverse=True)

    def rotate(self, last_used: str) -> str:
        """Note that a look brought something of this queue."""
        self._served = True
        rotated: str = super().rotate(last_used)
        return rotated


def _demand(queue: str) -> int:
    """Count the terms that a queue's name asks for; a plain queue asks for none."""
    _, named, suffix = queue.partition(":")
    return suffix.count("+") + 1 if named else 0
