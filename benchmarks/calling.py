"""The same call of a service as two tasks, with a breaker and without; each call is written down."""

import json
import os
from collections.abc import Mapping
from typing import Any, Final
from urllib.request import urlopen

from redis import Redis

from orchestra import Breaker, OrchestraCelery

__all__ = ["CALLS", "POLICY", "app"]

CALLS: Final = "calls"  # list: JSON of each call, in a database of its own
POLICY: Final = Breaker(
    "service", failures=5, ratio=0.5, window=10, cooldown=float(os.environ.get("BENCHMARK_COOLDOWN", "3"))
)
_SERVICE: Final = os.environ.get("BENCHMARK_SERVICE", "")
_URL: Final = os.environ.get("ORCHESTRA_BROKER_URL", "redis://localhost:6379/0")

app: Any = OrchestraCelery("calling", set_as_current=False)
_written: Final = Redis.from_url(f"{_URL.rpartition('/')[0]}/1")


_OPTIONS: Final[Mapping[str, Any]] = {"max_attempts": 4, "retry_budget": False, "ignore_result": True, "shared": False}


@app.task(name="guarded", requires={"guarded"}, breaker=POLICY, **_OPTIONS)
def guarded(number: int) -> None:
    """Call the service under the breaker."""
    _call(number)


@app.task(name="bare", requires={"bare"}, **_OPTIONS)
def bare(number: int) -> None:
    """Call it without one."""
    _call(number)


def _call(number: int) -> None:
    began, answered = _now(), False
    try:
        with urlopen(f"{_SERVICE}/{number}", timeout=5) as reply:  # noqa: S310  # a server of the benchmark's own
            reply.read()
        answered = True
    finally:
        _written.rpush(CALLS, json.dumps({"number": number, "began": began, "ended": _now(), "answered": answered}))


def _now() -> float:
    seconds, micros = _written.time()
    return float(seconds + micros / 1e6)
