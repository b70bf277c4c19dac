"""What the tasks themselves tell of their runs, at a server that no fault reaches."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from redis import Redis

__all__ = ["ORACLE_VARIABLE", "Execution", "Oracle", "call_service", "marked", "tell_probe"]

ORACLE_VARIABLE: Final = "CHAOS_ORACLE_URL"

_BEGUN: Final = "begun"
_ENDED: Final = "ended"
_PROBED: Final = "probed"
_AWAY: Final = "service-away"


@dataclass(slots=True)
class Execution:
    """One run of a task's body; `ended` is None while it runs, and for ever when it was killed. Times are monotonic."""

    number: int
    agent: str
    pid: int
    began: float
    ended: float | None = None


# ── within the tasks ──


@contextmanager
def marked(number: int, agent: str) -> Iterator[None]:
    """Mark the begin of a task's body, and its end unless it fails."""
    began = time.monotonic()
    execution = f"{os.getpid()}:{began!r}"
    _client(os.getpid()).rpush(_BEGUN, f"{execution} {number} {agent}")
    yield
    _client(os.getpid()).rpush(_ENDED, f"{execution} {time.monotonic()!r}")


def call_service() -> None:
    """
    Call the service that tasks depend on.

    Raises:
        ConnectionError: it's away.

    """
    if _client(os.getpid()).exists(_AWAY):
        message = "the service is away"
        raise ConnectionError(message)


def tell_probe(agent: str) -> None:
    """Tell that an agent has run a probe."""
    _client(os.getpid()).sadd(_PROBED, agent)


@lru_cache
def _client(_pid: int) -> "Redis":  # one for each process: a connection doesn't survive a fork
    return Redis.from_url(os.environ[ORACLE_VARIABLE], decode_responses=True)


# ── for the harness ──


class Oracle:
    """Reads the marks, each once."""

    def __init__(self, url: str) -> None:
        self._client = Redis.from_url(url, decode_responses=True)
        self._executions: dict[str, Execution] = {}
        self._read = dict.fromkeys((_BEGUN, _ENDED), 0)

    def executions(self) -> list[Execution]:
        """Return every run so far, in the order of their begins."""
        for execution, number, agent in self._new(_BEGUN):
            pid, _, began = execution.partition(":")
            self._executions[execution] = Execution(int(number), agent, int(pid), float(began))
        for execution, ended in self._new(_ENDED):
            self._executions[execution].ended = float(ended)
        return list(self._executions.values())

    def _new(self, marks: str) -> list[list[str]]:
        """Return the marks that weren't read yet; ends are read after begins, so none lacks its begin for long."""
        told: Any = self._client.lrange(marks, self._read[marks], -1)
        lines = [line.split() for line in told]
        if marks == _ENDED:
            lines = lines[: next((at for at, line in enumerate(lines) if line[0] not in self._executions), len(lines))]
        self._read[marks] += len(lines)
        return lines

    def set_service(self, *, away: bool) -> None:
        """Take the service away that tasks depend on, or bring it back."""
        if away:
            self._client.set(_AWAY, 1)
        else:
            self._client.delete(_AWAY)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def probed(self) -> set[str]:
        """Return the agents that have run a probe."""
        told: Any = self._client.smembers(_PROBED)
        return set(told)
