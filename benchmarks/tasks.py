"""The tasks that both sides run."""

import json
import os
import time
from typing import Any

from redis import Redis

__all__ = ["MARKS", "bare", "declare", "mark"]

MARKS = "benchmark:marks"


def bare(_x, _y):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201  # without hints, as much code in the field is
    """Do nothing."""


def mark() -> None:
    """Tell what the worker and the server have used so far."""
    with Redis.from_url(os.environ["ORCHESTRA_BROKER_URL"]) as client:
        info: Any = client.info("cpu")
        seen = {
            "wall": time.monotonic(),
            "cpu": time.process_time(),
            "server_cpu": info["used_cpu_user"] + info["used_cpu_sys"],
        }
        client.rpush(MARKS, json.dumps(seen))


def declare(app: Any) -> Any:  # Celery or OrchestraCelery
    """Declare the tasks of both sides, and return the one that does nothing."""
    app.task(name="mark", shared=False)(mark)
    return app.task(name="bare", shared=False)(bare)
