"""
Exit with 0 if this container's agent is alive, as the fleet's registry in Redis has it; else say why not, and with 1.

An agent is this container's if the host in its name is: `-n text@%h`, as Celery has it by default. The check reads two
values and asks the agent nothing, so that it neither waits for a busy one nor disturbs the others.
"""  # noqa: INP001  # a program that is copied into the image, and no part of a package

import os
import socket
import sys

from celery.app.utils import find_app

from orchestra.app import OrchestraCelery
from orchestra.exceptions import AgentOrchestraException
from orchestra.store import pairs_of, text_of


def main() -> int:
    """Check, and return the exit code."""
    app = find_app(os.environ["APP"])
    if not isinstance(app, OrchestraCelery):
        return _sick(f"{os.environ['APP']} is no OrchestraCelery")
    host = socket.gethostname()
    try:
        now, beats = app.store.pipeline([("TIME",), ("ZRANGE", app.store.keys.agents, 0, -1, "WITHSCORES")])
    except AgentOrchestraException as error:
        return _sick(str(error))
    silent = [
        int(now[0]) + int(now[1]) / 1e6 - float(beat)
        for name, beat in pairs_of(beats)
        if text_of(name).endswith(f"@{host}")
    ]
    if not silent:
        return _sick(f"no agent of {host} has joined the fleet")
    if max(silent) > app.settings.beat_seconds * app.settings.lost_after_beats:
        return _sick(f"the agent has been silent for {max(silent):.1f} s")
    return 0


def _sick(reason: str) -> int:
    print(reason)  # noqa: T201  # `docker inspect` shows it
    return 1


if __name__ == "__main__":
    sys.exit(main())
