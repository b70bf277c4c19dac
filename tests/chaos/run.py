"""One run: a fault is struck at a scene, and counted what came of it."""

import time
from dataclasses import dataclass
from threading import Event
from typing import Final

from tests.chaos.ending import alive_agents, failed_tasks, missing_results, settle
from tests.chaos.faults import FAULTS
from tests.chaos.measure import Outcome, counted
from tests.chaos.scene import Plan, Scene, set_scene
from tests.chaos.stage import Fault

__all__ = ["conclude", "run"]

_PUBLISHED_SECONDS: Final = 120.0  # beyond the time that it should take
_ERROR_LENGTH: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ending:
    """What is found when a run is over."""

    stuck: dict[str, int]
    failed: set[int]
    without_result: list[int]
    alive: set[str]


def run(plan: Plan) -> Outcome:
    """Strike one system with one fault, wait until it has recovered or won't, and count."""
    began = time.monotonic()
    with set_scene(plan, FAULTS[plan.fault]) as scene:
        scene.producer.start()
        try:
            _strike(scene, FAULTS[plan.fault])
            scene.producer.wait(seconds=scene.workload.length + _PUBLISHED_SECONDS)
        finally:
            scene.producer.stop()
        return conclude(plan, FAULTS[plan.fault], scene, began)


def conclude(plan: Plan, fault: Fault, scene: Scene, began: float) -> Outcome:
    """Wait until a system has recovered or won't, and count; `began` is when the run did."""
    publishes, stage = scene.producer.publishes, scene.stage
    ending = _Ending(
        stuck=settle(publishes, stage.oracle, stage.broker),
        failed=failed_tasks(publishes),
        without_result=missing_results(publishes, stage.oracle.executions()),
        alive=alive_agents(scene.app, stage),
    )
    return _outcome(plan, fault, scene, ending, time.monotonic() - began)


def _strike(scene: Scene, fault: Fault) -> None:
    """Spread the acts over the workload, each somewhere in the middle half of its part."""
    part = scene.workload.length / max(1, len(fault.acts))
    for turn, act in enumerate(fault.acts):
        moment = scene.producer.began + part * (turn + scene.stage.dice.uniform(0.25, 0.75))
        Event().wait(max(0.0, moment - time.monotonic()))
        strike = act(scene.stage)
        if strike is not None:
            scene.strikes.append(strike)


def _outcome(plan: Plan, fault: Fault, scene: Scene, ending: _Ending, seconds: float) -> Outcome:
    publishes, strikes = scene.producer.publishes, scene.strikes
    executions, agents = scene.stage.oracle.executions(), scene.stage.fleet.agents
    return Outcome(
        system=plan.system,
        fault=plan.fault,
        seed=plan.seed,
        **counted(publishes, executions, strikes, ending.failed),
        loses=fault.loses,
        stuck=ending.stuck,
        without_result=ending.without_result,
        agents=len(agents),
        alive=len(ending.alive),
        own_ends=sum(agent.own_ends for agent in agents),
        hung_stops=sum(agent.hung_stops for agent in agents),
        orphans=sum(len(agent.orphans()) for agent in agents),
        errors=sorted({publish.error[:_ERROR_LENGTH] for publish in publishes if publish.error}),
        struck=[(strike.began, strike.ended, sorted(strike.agents)) for strike in strikes],
        seconds=seconds,
    )
