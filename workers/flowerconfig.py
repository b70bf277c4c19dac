"""
What Flower reads: `celery -A workers flower --conf=workers/flowerconfig.py`.

`ORCHESTRA_FLOWER_USER` and `ORCHESTRA_FLOWER_PASSWORD` say whom it lets in. Flower's own `FLOWER_*` variables and its
options come before what stands here.
"""

import os
from typing import Any

from tornado.options import options

from orchestra.config import load_settings

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_settings = load_settings()
_password = _settings.flower_password.get_secret_value() if _settings.flower_password else ""


def _flower(name: str, usual: Any) -> Any:  # the type is the option's
    """Return what Flower's own variable sets, which a file would override, and else what is usual here."""
    return getattr(options, name) if f"FLOWER_{name.upper()}" in os.environ else usual


address = options.address or "127.0.0.1"  # without this Flower listens everywhere
port = _flower("port", 5555)
basic_auth = [f"{_settings.flower_user}:{_password}"] if _password else options.basic_auth or []

inspect_timeout = _flower("inspect_timeout", 2000.0)  # milliseconds; on a loaded machine agents need more than 1,000
max_tasks = _flower("max_tasks", 20_000)  # about 9 kB each; Flower's own 100,000 would be 900 MB
purge_offline_workers = _flower("purge_offline_workers", 86_400)  # seconds; every container's name is a new one
# Flower calls the queue's name a routing key; args aren't among the columns, since they may be private.
tasks_columns = _flower("tasks_columns", "name,state,routing_key,worker,received,runtime,uuid")

if not (basic_auth or options.auth) and address not in _LOOPBACK:
    raise SystemExit(f"Set ORCHESTRA_FLOWER_PASSWORD, or Flower would let everybody in who reaches {address}.")
