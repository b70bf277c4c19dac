"""
A leak test: many tasks through a fleet that nothing strikes, and the memory after each tenth of them.

    python -m tests.chaos.leak [--tasks 100000] [--output FILE]
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tests.chaos.memory import Memory, families, without_history
from tests.chaos.oracle import Execution
from tests.chaos.scene import Plan, Scene, set_scene
from tests.chaos.stage import Fault
from tests.chaos.tasks import WORK
from tests.processes import until

__all__ = ["grown", "main"]

_STEPS: Final = 10
_PER_BATCH: Final = 500
_STEP_SECONDS: Final = 900.0
_CALM: Final = Fault(name="leak", what="nothing", acts=())
# Bytes. A process settles within the first tenth or so; beyond it there's nothing that should stay.
_MOST_GROWN: Final = {"main": 8 << 20, "all": 24 << 20, "server": 2 << 20}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print the figures as JSON, and return 1 when something has grown."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.leak", description="Look for memory that isn't freed.")
    parser.add_argument("--tasks", type=int, default=100_000, metavar="N", help="default: 100000")
    parser.add_argument("--agents", type=int, default=2, metavar="N", help="default: 2")
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to write the figures, besides here")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        plan = Plan(
            system="ours", fault="leak", seed=1, folder=Path(folder), tasks=_STEPS, rate=1.0, agents=given.agents
        )
        figures = _run(plan, given.tasks)
    text = json.dumps(figures, indent=2)
    sys.stdout.write(text + "\n")
    if given.output is not None:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.write_text(text + "\n", encoding="utf-8")
    return int(bool(figures["grown too much"]))


def _run(plan: Plan, tasks: int) -> dict[str, Any]:
    measured: list[Memory] = []
    with set_scene(plan, _CALM) as scene:
        for step in range(_STEPS):
            _step(scene, range(step * tasks // _STEPS, (step + 1) * tasks // _STEPS))
            with scene.stage.broker.client() as client:
                without_history(client)
                measured.append(Memory.of(scene.stage.fleet.agents, client))
        executions = scene.stage.oracle.executions()
        with scene.stage.broker.client() as client:
            left = families(client)
    growth = grown(measured)
    return {
        "tasks": tasks,
        "executed": len(executions),
        "ended": sum(execution.ended is not None for execution in executions),
        "memory": [one.to_json() for one in measured],
        "grown since the first tenth": growth,
        "grown too much": sorted(name for name, most in _MOST_GROWN.items() if growth[name] > most),
        "keys": dict(sorted(left.items())),
    }


def _step(scene: Scene, numbers: range) -> None:
    """Publish tasks, and wait until all have ended and their acknowledgements are heard."""
    task = scene.app.tasks[WORK]
    with scene.app.producer_pool.acquire(block=True) as producer, producer.batch(_PER_BATCH):
        for number in numbers:
            task.apply_async((number, 0.0), producer=producer)
    executions: list[Execution] = []

    def done() -> bool:
        executions[:] = scene.stage.oracle.executions()
        return sum(execution.ended is not None for execution in executions) >= numbers.stop

    until(done, seconds=_STEP_SECONDS)
    with scene.stage.broker.client() as client:
        until(lambda: not any(client.hlen(key) for key in client.scan_iter("*:leases:*")), seconds=60)


def grown(measured: Sequence[Memory]) -> dict[str, int]:
    """Return by how many bytes memory has grown from the first measurement to the last: the most of any agent's."""
    first, last = measured[0], measured[-1]
    return {
        "main": max(last.main[agent] - first.main[agent] for agent in last.main),
        "all": max(last.all[agent] - first.all[agent] for agent in last.all),
        "server": last.server - first.server,
    }


if __name__ == "__main__":
    sys.exit(main())
