"""Cancelling a task, whatever it's doing, and asking within a task whether that has happened."""

import json
from dataclasses import dataclass
from time import monotonic
from typing import Final, NamedTuple

from orchestra.exceptions import AgentOrchestraException
from orchestra.logging_utils import get_logger
from orchestra.store import Store, text_of
from orchestra.types import Cancelled, TaskState

__all__ = ["REASON", "Cancellation", "Look", "StoredResult", "cancel_task"]

REASON: Final = "cancelled"  # what whoever waits for the task's result is told
LOOK_SECONDS: Final = 1.0  # between two looks of one task after whether it was cancelled
_BYTES_LOOKED_THROUGH: Final = 1_048_576  # of an agent's messages, for telling a leased task from a waiting one

log = get_logger(__name__)


class StoredResult(NamedTuple):
    """A result as the backend keeps it: its key, its encoded form, and the seconds that it's kept (0: for ever)."""

    key: str
    encoded: str | bytes
    seconds: int


class Cancellation(NamedTuple):
    """What a cancellation has found, and the agent that has or had the task, empty for none."""

    what: Cancelled
    agent: str


def cancel_task(
    store: Store, task_id: str, *, note: str, ttl_seconds: float, result: StoredResult | None
) -> Cancellation:
    """
    Cancel a task in one step, and tell whoever waits for its result, where that is kept in the same database.

    What it costs doesn't depend on how many tasks wait: the task's message stays where it is, and is dropped when its
    time comes.
    """
    key, encoded, seconds = result or StoredResult("", "", 0)
    named = f'"id": {json.dumps(task_id)}'  # as kombu writes it
    record = store.keys.task(task_id)
    what, agent = store.run(
        "cancel",
        [record, key or record],
        [store.keys.base, note, int(ttl_seconds * 1000), encoded, seconds, named, _BYTES_LOOKED_THROUGH],
    )
    return Cancellation(Cancelled(text_of(what)), text_of(agent))


@dataclass(slots=True)
class Look:
    """Whether one running task was cancelled, asked of Redis once a second at most."""

    store: Store
    task_id: str
    seen: bool = False
    looked_at: float | None = None

    def __call__(self) -> bool:
        """Return whether it was, as far as is known; a Redis that is away tells of nothing new."""
        now = monotonic()
        if self.seen or (self.looked_at is not None and now - self.looked_at < LOOK_SECONDS):
            return self.seen
        self.looked_at = now
        try:
            state = self.store.command("HGET", self.store.keys.task(self.task_id), "state")
        except AgentOrchestraException as error:
            log.warning("cancellation not looked up", task_id=self.task_id, error=str(error))
            return False
        self.seen = state is not None and text_of(state) == TaskState.CANCELLED
        return self.seen
