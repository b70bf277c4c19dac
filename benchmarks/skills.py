"""The app of `benchmarks.scarce`: work for a rare skill and work for anybody, each run of which is told of."""

import json
import os
import time
from typing import Any, Final

from redis import Redis

from orchestra.app import OrchestraCelery

__all__ = ["RUNS", "app", "common", "rare"]

RUNS: Final = "benchmark:runs"
_ORDER: Final = os.environ.get("BENCHMARK_ORDER")
_CLIENTS: dict[int, "Redis"] = {}  # one for each process


def _work(self: Any, submitted: float, seconds: float) -> None:  # Celery's task
    """Take so long, and tell of it."""
    began = time.time()
    time.sleep(seconds)
    run = [self.name, submitted, began, time.time(), self.request.hostname.partition("@")[0]]
    _client().rpush(RUNS, json.dumps(run))


def _client() -> "Redis":
    if os.getpid() not in _CLIENTS:
        _CLIENTS[os.getpid()] = Redis.from_url(os.environ["ORCHESTRA_BROKER_URL"])
    return _CLIENTS[os.getpid()]


app: Any = OrchestraCelery("skills", set_as_current=False)
app.config_from_object("benchmarks.settings")
if _ORDER:
    app.conf.broker_transport_options = {"queue_order_strategy": _ORDER}
common = app.task(name="common", bind=True, ignore_result=True, shared=False)(_work)
rare = app.task(name="rare", bind=True, ignore_result=True, requires="gpu", shared=False)(_work)
