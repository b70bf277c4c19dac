"""Acts at the clocks of agents."""

import time

from tests.chaos.clocks import Clocks
from tests.chaos.stage import Act, Stage, Strike

__all__ = ["step_clock"]


def step_clock(*, seconds: int) -> Act:
    """Return an act that sets the clock of an agent by so much against the true one."""

    def step(stage: Stage) -> Strike:
        assert isinstance(stage.site, Clocks)
        agent, began = stage.any_agent(), time.monotonic()
        stage.site.set_clock(agent.name, seconds)
        return stage.strike(agent, began=began)

    return step
