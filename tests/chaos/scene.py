"""Where a run takes place: servers, agents and a producer that is ready to start."""

import json
import random
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.chaos.deeds import remove_cgroups
from tests.chaos.fleet import Agent, Fleet, running_fleet
from tests.chaos.oracle import ORACLE_VARIABLE, Oracle
from tests.chaos.producer import Producer
from tests.chaos.servers import server_in
from tests.chaos.sites import Site
from tests.chaos.stage import Fault, Stage, Strike
from tests.chaos.systems import BROKER_VARIABLE, OPTIONS_VARIABLE, SYSTEM_VARIABLE, app_of, worker_options
from tests.chaos.workloads import WORKLOADS, Workload

__all__ = ["AGENTS", "RATE", "TASKS", "Plan", "Scene", "set_scene"]

TASKS: Final = 2000
RATE: Final = 200.0
AGENTS: Final = 3

_CONCURRENCY: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to run; the same plan strikes the same agents at the same times, as far as processes allow."""

    system: str
    fault: str
    seed: int
    folder: Path
    tasks: int = TASKS
    rate: float = RATE
    agents: int = AGENTS


@dataclass(slots=True, kw_only=True)
class Scene:
    """A run while it lasts."""

    app: Any  # Celery or OrchestraCelery
    stage: Stage
    workload: Workload
    producer: Producer
    strikes: list[Strike] = field(default_factory=list)


@contextmanager
def set_scene(plan: Plan, fault: Fault) -> Iterator[Scene]:
    """Give servers, agents and a producer that is ready to start; what is random follows from the plan's seed."""
    dice = random.Random(f"{plan.fault} {plan.seed}")
    names = tuple(f"agent{number}@chaos" for number in range(1, plan.agents + 1))
    with ExitStack() as stack:
        stack.callback(remove_cgroups)
        oracle_server = stack.enter_context(server_in(plan.folder / "oracle", append_only=False))
        oracle = Oracle(oracle_server.plain_socket_url)
        stack.callback(oracle.close)
        site = stack.enter_context(fault.site.open(plan.folder, names))
        app = app_of(plan.system, site.url, site.options, fault.settings)
        stack.callback(_close, app)
        environment = {
            ORACLE_VARIABLE: oracle_server.plain_socket_url,
            SYSTEM_VARIABLE: plan.system,
            OPTIONS_VARIABLE: json.dumps(site.options),
            **{f"ORCHESTRA_{name.upper()}": str(value) for name, value in fault.settings.items()},
        }
        fleet = stack.enter_context(_fleet(plan, site, names, environment))
        workload = WORKLOADS[fault.workload](plan.tasks, plan.rate, dice)
        stage = Stage(fleet=fleet, site=site, oracle=oracle, dice=dice)
        producer = Producer(app, workload)
        stack.callback(producer.forget)  # while the server is there
        yield Scene(app=app, stage=stage, workload=workload, producer=producer)


@contextmanager
def _fleet(plan: Plan, site: Site, names: tuple[str, ...], environment: Mapping[str, str]) -> Iterator[Fleet]:
    options = ("-c", str(_CONCURRENCY), *worker_options(plan.system))
    agents = []
    for name in names:
        reach = site.reach(name)
        told = {**environment, BROKER_VARIABLE: reach.url, **reach.environment}
        agents.append(Agent(name, plan.folder / name, options, told, prefix=reach.prefix))
    with running_fleet(agents) as fleet:
        yield fleet


def _close(app: Any) -> None:  # Celery or OrchestraCelery
    """Close what the app holds; closing its pool would end it for later apps."""
    for connection in list(app.pool._resource.queue):
        app.pool.collect_resource(connection)
    app.backend.result_consumer.stop()
    app.backend.client.connection_pool.disconnect()
    app.close()
