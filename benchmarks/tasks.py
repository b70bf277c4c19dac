"""The tasks that both sides run."""

import json
import os
import time
from typing import Any

from redis import Redis

__all__ = ["FIRST", "GATE", "LAST", "MARKS", "bare", "declare", "mark"]

FIRST, LAST = "benchmark:first", "benchmark:last"
MARKS, GATE = "benchmark:marks", "benchmark:gate"
_GATE_SECONDS = 120


def bare(_x, _y):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201  # without hints, as much code in the field is
    """Do nothing."""


def mark(label: str) -> None:
    """
    Tell what the worker and the server have used so far; the first mark waits at the gate before it does.

    An ECHO of the label says where in a MONITOR's stream this stands.
    """
    with Redis.from_url(os.environ["ORCHESTRA_BROKER_URL"]) as client:
        if label == FIRST:
            client.blpop([GATE], timeout=_GATE_SECONDS)
        client.echo(label)
        info: Any = client.info("everything")
        seen = {
            "wall": time.monotonic(),
            "cpu": time.process_time(),
            "server_cpu": info["used_cpu_user"] + info["used_cpu_sys"],
            "reads": info["total_reads_processed"],
        }
        client.rpush(MARKS, json.dumps(seen))


def declare(app: Any) -> Any:  # Celery or OrchestraCelery
    """Declare the tasks of both sides, and return the one that does nothing."""
    app.task(name="mark", shared=False)(mark)
    return app.task(name="bare", shared=False)(bare)
