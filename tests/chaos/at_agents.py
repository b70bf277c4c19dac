"""Acts at agents: killed, frozen, stopped."""

import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

from tests.chaos.fleet import Agent
from tests.chaos.stage import Stage, Strike, pause
from tests.processes import alive

__all__ = [
    "freeze",
    "freeze_and_kill",
    "freeze_main",
    "kill_child",
    "kill_group",
    "kill_helper",
    "kill_main",
    "stop_all_warmly",
    "stop_coldly",
    "stop_next_warmly",
    "stop_warmly",
]

_FROZEN_SECONDS: Final = 12.0  # longer than any lease lasts, and than the visibility timeout of stock Celery here
_BRIEFLY_FROZEN_SECONDS: Final = 2.0


def kill_main(stage: Stage) -> Strike:
    """End an agent's main process with SIGKILL."""
    agent, began = stage.any_agent(), time.monotonic()
    agent.strike(signal.SIGKILL)
    return stage.strike(agent, began=began)


def kill_group(stage: Stage) -> Strike:
    """End every process of an agent with SIGKILL."""
    agent, began = stage.any_agent(), time.monotonic()
    agent.strike_group(signal.SIGKILL)
    return stage.strike(agent, began=began)


def kill_child(stage: Stage) -> Strike | None:
    """End a pool process with SIGKILL, one that runs a task if there's one."""
    agent = stage.any_agent()
    return _kill_one(stage, agent, stage.pool_of(agent)[:1])


def kill_helper(stage: Stage) -> Strike | None:
    """End the process that beats with SIGKILL."""
    agent = stage.any_agent()
    return _kill_one(stage, agent, stage.helpers_of(agent)[:1])


def _kill_one(stage: Stage, agent: Agent, pids: Iterable[int]) -> Strike | None:
    began = time.monotonic()
    for pid in pids:
        _signal([pid], signal.SIGKILL)
        return stage.strike(agent, began=began)
    return None


def freeze_and_kill(stage: Stage) -> Strike:
    """Stop every process of an agent, and end them a little later."""
    agent, began = stage.any_agent(), time.monotonic()
    _signal(agent.processes(), signal.SIGSTOP)
    strike = stage.strike(agent, began=began)
    pause(_BRIEFLY_FROZEN_SECONDS)
    agent.strike_group(signal.SIGKILL)
    return strike


def freeze(stage: Stage) -> Strike:
    """Stop every process of an agent for long, and let them go on."""
    agent = stage.any_agent()
    return _freeze_processes(stage, agent, agent.processes())


def freeze_main(stage: Stage) -> Strike:
    """Stop an agent's main process for long, and let it go on."""
    agent = stage.any_agent()
    return _freeze_processes(stage, agent, [agent.pid])


def _freeze_processes(stage: Stage, agent: Agent, pids: list[int]) -> Strike:
    began = time.monotonic()
    _signal(pids, signal.SIGSTOP)
    strike = stage.strike(agent, began=began)
    try:
        pause(_FROZEN_SECONDS)
    finally:
        _signal(pids, signal.SIGCONT)
    return strike


def stop_warmly(stage: Stage) -> Strike:
    """Ask an agent to end once its tasks have ended."""
    return _stop(stage, stage.any_agent(), signal.SIGTERM)


def stop_coldly(stage: Stage) -> Strike:
    """Ask an agent to end now."""
    return _stop(stage, stage.any_agent(), signal.SIGQUIT)


def stop_next_warmly(stage: Stage) -> Strike:
    """Ask the agent that has run longest to end once its tasks have ended, as a rolling restart does."""
    stage.any_agent()
    return _stop(stage, min((agent for agent in stage.fleet.agents if agent.ready), key=_started), signal.SIGTERM)


def _started(agent: Agent) -> float:
    return agent.started_at


def stop_all_warmly(stage: Stage) -> Strike:
    """Ask every agent to end once its tasks have ended."""
    stage.fleet.wait_ready()
    began = time.monotonic()
    for agent in stage.fleet.agents:
        agent.stop(signal.SIGTERM)
    return stage.strike_all(began=began)


def _stop(stage: Stage, agent: Agent, request: signal.Signals) -> Strike:
    began = time.monotonic()
    agent.stop(request)
    return stage.strike(agent, began=began)


def _signal(pids: Iterable[int], fault: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            if alive(pid):
                os.kill(pid, fault)
