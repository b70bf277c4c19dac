"""Where a fault strikes: a fleet, the server that it works from, and dice that say whom and when."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from threading import Event
from typing import Any, Final, TypeAlias

from tests.chaos.fleet import Agent, Fleet
from tests.chaos.oracle import Oracle
from tests.chaos.servers import Server
from tests.chaos.sites import Site
from tests.processes import until

__all__ = ["Act", "Fault", "Stage", "Strike", "pause"]

_READY_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Strike:
    """When a fault began and ended, and the agents that it struck; what they ran meanwhile may run twice."""

    began: float
    ended: float
    agents: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Where a fault strikes; the dice decide whom."""

    fleet: Fleet
    site: Site
    oracle: Oracle
    dice: Random

    @property
    def broker(self) -> Server:
        """The server that holds the queues."""
        return self.site.broker

    def any_agent(self) -> Agent:
        """Choose one of the agents that are ready, and wait for one where none is."""
        until(lambda: any(agent.ready for agent in self.fleet.agents), seconds=_READY_SECONDS)
        return self.dice.choice([agent for agent in self.fleet.agents if agent.ready])

    def pool_of(self, agent: Agent) -> list[int]:
        """List those processes of an agent that have run a task, the ones that run one now first."""
        executions = [execution for execution in self.oracle.executions() if execution.agent == agent.name]
        busy = {execution.pid for execution in executions if execution.ended is None}
        pids = {execution.pid for execution in executions} & set(agent.processes())
        return sorted(pids, key=lambda pid: (pid not in busy, pid))

    def helpers_of(self, agent: Agent) -> list[int]:
        """List those processes of an agent that are neither its main one nor run tasks."""
        return sorted(set(agent.processes()) - {agent.pid, *self.pool_of(agent)})

    def strike(self, *agents: Agent, began: float) -> Strike:
        """Tell of a strike that has just ended."""
        return Strike(began=began, ended=time.monotonic(), agents=frozenset(agent.name for agent in agents))

    def strike_all(self, *, began: float) -> Strike:
        """Tell of a strike at every agent that has just ended."""
        return self.strike(*self.fleet.agents, began=began)


Act: TypeAlias = Callable[[Stage], Strike | None]  # None when there was nobody to strike


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """
    Acts that are spread over a workload; `what` says it for people.

    Attributes:
        workload: which tasks are published meanwhile, by the workload's name.
        site: where the queues are.
        settings: what differs from the plain defaults of ours.
        systems: at which it's struck.
        loses: whether a loss is what it is to show.

    """

    name: str
    what: str
    acts: tuple[Act, ...]
    workload: str = "short"
    site: type[Site] = Site
    settings: Mapping[str, Any] = field(default_factory=dict)
    systems: tuple[str, ...] = ("ours", "stock")
    loses: bool = False

    @property
    def lacking(self) -> str:
        """Say what this machine lacks for it, '' for nothing."""
        return self.site.lacks()


def pause(seconds: float) -> None:
    """Let a fault last; nothing ends this wait."""
    Event().wait(seconds)
