"""The app of an agent's process, which its environment tells of: `celery -A tests.chaos.agent worker`."""

import json
import os
from typing import Final

from tests.chaos.systems import BROKER_VARIABLE, OPTIONS_VARIABLE, SYSTEM_VARIABLE, app_of

__all__ = ["app"]

app: Final = app_of(
    os.environ[SYSTEM_VARIABLE], os.environ[BROKER_VARIABLE], json.loads(os.environ[OPTIONS_VARIABLE]), {}
)
