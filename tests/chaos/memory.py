"""How much memory a fleet and its server take, and what a server keeps."""

import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from redis import Redis

from tests.chaos.fleet import Agent

__all__ = ["Memory", "families", "without_history"]

_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_HISTORY: Final = ("celery-task-meta-*", "celery-taskset-meta-*", "*:task:*")  # which are kept for their time
_PORTION: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """In bytes: the resident memory of each agent's main process, of all of its processes, and what the server uses."""

    main: dict[str, int]
    all: dict[str, int]
    server: int

    @classmethod
    def of(cls, agents: Iterable[Agent], client: "Redis") -> "Memory":
        """Measure."""
        known = list(agents)
        return cls(
            main={agent.name: _resident(agent.pid) for agent in known},
            all={agent.name: sum(map(_resident, agent.processes())) for agent in known},
            server=int(dict(client.info("memory"))["used_memory"]),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the figures as programs read them."""
        return asdict(self)


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * _PAGE_BYTES
    except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
        return 0


def without_history(client: "Redis") -> None:
    """Delete results and records, as their time would."""
    for pattern in _HISTORY:
        portion: list[Any] = []
        for key in client.scan_iter(pattern, count=_PORTION):
            portion.append(key)
            if len(portion) == _PORTION:
                client.unlink(*portion)
                portion.clear()
        if portion:
            client.unlink(*portion)


def families(client: "Redis") -> Counter[str]:
    """Count the keys, by what their names begin with."""
    return Counter(_family(key.decode(errors="replace")) for key in client.scan_iter(count=_PORTION))


def _family(key: str) -> str:
    """Return what a key is called without the ids in its name."""
    return "".join(word for word in re.split(r"([:.-])", key) if not _is_id(word))


def _is_id(word: str) -> bool:
    return len(word) > 3 and all(letter in "0123456789abcdef" for letter in word)  # parts of UUIDs
