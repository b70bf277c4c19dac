"""Acts at the ways between agents and their server: packets that are dropped, connections that fall silent."""

import time
from typing import Final

from tests.chaos.networks import Networks
from tests.chaos.proxied import Proxied
from tests.chaos.stage import Act, Stage, Strike, pause

__all__ = ["fall_silent", "partition"]

_PARTED_SECONDS: Final = 12.0  # longer than any lease lasts


def partition(*, to_server: bool, to_agent: bool) -> Act:
    """Return an act that drops what an agent sends to its server, or what comes back, or both, without a word."""

    def part(stage: Stage) -> Strike:
        assert isinstance(stage.site, Networks)
        agent, began = stage.any_agent(), time.monotonic()
        with stage.site.parted(agent.name, to_server=to_server, to_agent=to_agent):
            pause(_PARTED_SECONDS)
        return stage.strike(agent, began=began)

    return part


def fall_silent(stage: Stage) -> Strike:
    """Have every connection fall silent without ending, while new ones work: as behind a router that was restarted."""
    assert isinstance(stage.site, Proxied)
    began = time.monotonic()
    stage.site.proxy.silence()
    return stage.strike_all(began=began)
