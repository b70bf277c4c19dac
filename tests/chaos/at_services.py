"""Acts at the service that tasks call."""

import time

from tests.chaos.stage import Stage, Strike

__all__ = ["bring_service_back", "take_service_away"]


def take_service_away(stage: Stage) -> Strike:
    """Have every call of the service fail from now on; nothing that runs is struck."""
    stage.oracle.set_service(away=True)
    return stage.strike(began=time.monotonic())


def bring_service_back(stage: Stage) -> Strike:
    """Have calls succeed again."""
    stage.oracle.set_service(away=False)
    return stage.strike(began=time.monotonic())
