"""A service that is down for a while, and the same task of it with a retry budget and without one."""

import os
import time
from functools import lru_cache
from typing import Any, Final

from redis import Redis

from orchestra.app import OrchestraCelery

__all__ = ["ATTEMPTS", "DONE", "RETRIES", "UP", "app", "tasks"]

UP: Final = "storm:up"  # exists while the service is up
ATTEMPTS: Final = "storm:attempts"  # hash: second -> attempts that reached the service, first ones included
RETRIES: Final = "storm:retries"  # hash: second -> those of them that were no first attempts
DONE: Final = "storm:done"  # set: the tasks that it has answered


@lru_cache
def _client(_pid: int) -> "Redis":
    return Redis.from_url(os.environ["ORCHESTRA_BROKER_URL"])


def _ask(self: Any) -> None:  # the task
    second, request = int(time.time()), self.request
    with _client(os.getpid()).pipeline(transaction=False) as pipe:
        pipe.exists(UP)
        pipe.hincrby(ATTEMPTS, str(second), 1)
        if request.retries:
            pipe.hincrby(RETRIES, str(second), 1)
        is_up = pipe.execute()[0]
    if not is_up:
        message = "the service is down"
        raise ConnectionError(message)
    _client(os.getpid()).sadd(DONE, request.id)


def _declare(app: Any) -> dict[str, Any]:  # OrchestraCelery, and its tasks
    own = {"with a budget": {}, "without one": {"retry_budget": False}}
    return {
        name: app.task(name=name.replace(" ", "_"), bind=True, max_attempts=10_000, shared=False, **options)(_ask)
        for name, options in own.items()
    }


app: Any = OrchestraCelery("storm", set_as_current=False)
app.config_from_object("benchmarks.settings")
tasks = _declare(app)
