"""Tasks that call a service under breakers, for live tests: what they do is told by files of the test's own."""

import json
import os
import time
from pathlib import Path
from typing import Any

from orchestra import Breaker, OrchestraCelery

__all__ = ["make_app", "read_calls"]

_FOLDER = "BREAKER_TEST_FOLDER"


def _call(name: str, number: int) -> int:
    """Write the call down, wait while there is a file `hold`, and fail while there is one `down-<name>`."""
    folder = Path(os.environ[_FOLDER])
    with (folder / "calls").open("a", encoding="utf-8") as calls:
        calls.write(json.dumps({"name": name, "number": number, "pid": os.getpid()}) + "\n")
    while (folder / "hold").exists():
        time.sleep(0.02)
    if (folder / f"down-{name}").exists():
        message = f"{name} is away"
        raise ConnectionError(message)
    return number


def make_app() -> Any:  # OrchestraCelery, whose tasks' options Celery's types don't know
    """Make the agents' app."""
    app: Any = OrchestraCelery("fleet", set_as_current=False)
    api = Breaker("api", failures=2, window=60, cooldown=1)
    hosts = Breaker("host", failures=1, window=60, cooldown=1, key=lambda host: host)

    @app.task(name="fleet.call", requires={"api"}, breaker=api, max_attempts=3, shared=False)
    def call(number: int) -> int:
        return _call("api", number)

    @app.task(name="fleet.fetch", breaker=hosts, max_attempts=3, shared=False)
    def fetch(host: str, number: int) -> int:
        return _call(host, number)

    @app.task(name="fleet.add", shared=False)
    def add(numbers: list[int]) -> int:
        return sum(numbers)

    return app


def read_calls(folder: Path) -> list[dict[str, Any]]:
    """Return the calls that were made, in their order."""
    file = folder / "calls"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []
