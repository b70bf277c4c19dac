"""
A soak: mixed load for a long time, a random fault again and again, and the memory at the begin and at the end.

    python -m tests.chaos.soak [--minutes 30] [--every 20] [--rate 60] [--seed 1] [--only A,B] [--output FILE]
        [--logs FOLDER]
"""

import argparse
import json
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any, Final

from orchestra.store import text_of
from tests.chaos import at_agents, at_servers
from tests.chaos.measure import Outcome
from tests.chaos.memory import Memory, families, without_history
from tests.chaos.run import conclude
from tests.chaos.scene import Plan, Scene, set_scene
from tests.chaos.stage import Act, Fault, Strike

__all__ = ["main", "soak"]

_ACTS: Final[tuple[Act, ...]] = (
    at_agents.kill_main,
    at_agents.kill_child,
    at_agents.kill_group,
    at_agents.kill_helper,
    at_agents.freeze_and_kill,
    at_agents.freeze,
    at_agents.stop_warmly,
    at_agents.stop_coldly,
    at_servers.kill_server,
    at_servers.shut_server_down,
    at_servers.kill_connections,
    at_servers.fill_memory,
)
_NEAR_SECONDS: Final = 60.0
_BY_NAME: Final = {act.__name__: act for act in _ACTS}


def main(arguments: Sequence[str] | None = None) -> int:
    """Soak, and print the figures as JSON; return 1 when a promise has been broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak", description="Strike a fleet for a long time.")
    parser.add_argument("--system", choices=("ours", "stock"), default="ours", help="default: ours")
    parser.add_argument("--minutes", type=float, default=30.0, metavar="M", help="default: 30")
    parser.add_argument("--every", type=float, default=20.0, metavar="S", help="seconds between faults (default: 20)")
    parser.add_argument("--rate", type=float, default=60.0, metavar="R", help="publishes a second (default: 60)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="default: 1")
    parser.add_argument("--only", type=_acts, default=_ACTS, metavar="A,B", help=f"of {', '.join(_BY_NAME)}")
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to write the figures, besides here")
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="keep what agents and servers wrote")
    given = parser.parse_args(arguments)
    for request in (signal.SIGINT, signal.SIGTERM):
        signal.signal(request, signal.default_int_handler)
    with _folder(given.logs) as folder:
        tasks = round(given.minutes * 60 * given.rate)
        plan = Plan(system=given.system, fault="soak", seed=given.seed, folder=folder, tasks=tasks, rate=given.rate)
        outcome, figures = soak(plan, given.only, every_seconds=given.every)
    text = json.dumps(figures, indent=2)
    sys.stdout.write(text + "\n")
    if given.output is not None:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.write_text(text + "\n", encoding="utf-8")
    return int(bool(outcome.broken))


@contextmanager
def _folder(kept: Path | None) -> Iterator[Path]:
    if kept is not None:
        yield kept.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        yield Path(folder).resolve()


def _acts(text: str) -> tuple[Act, ...]:
    names = text.split(",")
    if unknown := [name for name in names if name not in _BY_NAME]:
        message = f"there is no act {unknown[0]!r}; there are: {', '.join(_BY_NAME)}"
        raise argparse.ArgumentTypeError(message)
    return tuple(_BY_NAME[name] for name in names)


def soak(plan: Plan, acts: Sequence[Act] = _ACTS, *, every_seconds: float) -> tuple[Outcome, dict[str, Any]]:
    """Soak, and return what came of it, and all the figures."""
    began = time.monotonic()
    fault = Fault(name="soak", what="a random fault again and again", acts=tuple(acts), workload="soak")
    with set_scene(plan, fault) as scene:
        memory = {"begin": _memory(scene)}
        scene.producer.start()
        try:
            struck = _strike_again_and_again(scene, acts, every_seconds)
        finally:
            scene.producer.stop()
        outcome = conclude(plan, fault, scene, began)
        memory["end"] = _memory(scene)
        lost = [_traced(scene, struck, number) for number in outcome.lost]
        with scene.stage.broker.client() as client:
            without_history(client)
            left = families(client)
        memory["end, without results and records"] = _memory(scene)
    return outcome, {
        **_counts(outcome),
        "faults": dict(sorted(Counter(act for act, _ in struck).items())),
        "traces of what was lost": lost,
        "memory": {when: one.to_json() for when, one in memory.items()},
        "keys": dict(sorted(left.items())),
    }


def _memory(scene: Scene) -> Memory:
    scene.stage.fleet.wait_ready()
    with scene.stage.broker.client() as client:
        return Memory.of(scene.stage.fleet.agents, client)


def _strike_again_and_again(scene: Scene, acts: Sequence[Act], every_seconds: float) -> list[tuple[str, Strike]]:
    """Strike with a random act whenever it's time, until all is published; return what was done."""
    struck = []
    moment = scene.producer.began + every_seconds
    while scene.producer.running:
        if time.monotonic() < moment:
            Event().wait(0.25)
            continue
        act = scene.stage.dice.choice(acts)
        strike = act(scene.stage)
        if strike is not None:
            scene.strikes.append(strike)
            struck.append((act.__name__, strike))
        moment = max(moment + every_seconds, time.monotonic() + 1.0)
    return struck


def _traced(scene: Scene, struck: Sequence[tuple[str, Strike]], number: int) -> dict[str, Any]:
    """Tell what is left of a lost task, and how long its submission's return was before and after faults, in s."""
    publish = next(one for one in scene.producer.publishes if one.item.number == number)
    task_id, returned = getattr(publish.result, "id", ""), publish.ready
    near = [
        f"{name}: {strike.began - returned:+.3f} to {strike.ended - returned:+.3f} s"
        for name, strike in struck
        if strike.began - returned < _NEAR_SECONDS and returned - strike.ended < _NEAR_SECONDS
    ]
    with scene.stage.broker.client() as client:
        found: Any = [client.hgetall(key) for key in client.scan_iter(f"*:task:{task_id}")]
    record: dict[bytes, bytes] = found[0] if found else {}
    fields = {text_of(name): text_of(value) for name, value in record.items()}
    runs = [one for one in scene.stage.oracle.executions() if one.number == number]
    return {
        "number": number,
        "id": task_id,
        "submitted for": returned - publish.due,
        "near": near,
        "record": fields,
        "runs": len(runs),
    }


def _counts(outcome: Outcome) -> dict[str, Any]:
    told = outcome.to_json()
    counts = {name: len(value) if isinstance(value, list) else value for name, value in told.items()}
    return {**counts, "stuck": sum(outcome.stuck.values()), "errors": outcome.errors, "broken": outcome.broken}


if __name__ == "__main__":
    sys.exit(main())
