"""
What Flower reads: `celery -A workers flower --conf=workers/flowerconfig.py`.

`FLOWER_ADDRESS` and `FLOWER_PORT` say where it serves, `ORCHESTRA_FLOWER_USER` and `ORCHESTRA_FLOWER_PASSWORD` to whom.
"""

import os

from orchestra.config import load_settings

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_settings = load_settings()
_password = _settings.flower_password.get_secret_value() if _settings.flower_password else ""

address = os.environ.get("FLOWER_ADDRESS", "127.0.0.1")
port = int(os.environ.get("FLOWER_PORT", "5555"))
basic_auth = [f"{_settings.flower_user}:{_password}"] if _password else []

inspect_timeout = 2000.0  # milliseconds; what busy solo agents don't answer in time shows as offline
persistent = False  # what happened is in Redis, under a time to live

if not basic_auth and address not in _LOOPBACK:
    raise SystemExit(f"Set ORCHESTRA_FLOWER_PASSWORD, or Flower would let everybody in who reaches {address}.")
