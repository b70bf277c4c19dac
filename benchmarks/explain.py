"""
How long an explanation takes in a large fleet, and how long Redis is held by it.

    python -m benchmarks.explain [--agents N] [--tasks N] [--rounds R]

The agents are registered and run nowhere; each satisfies other requirements than the tasks' but for the last one,
whose processes are all busy. The tasks are real messages, which wait in one queue.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from time import perf_counter
from typing import Any, Final

from redis import Redis
from rich.console import Console

from benchmarks.figures import Section, Spread
from orchestra.app import OrchestraCelery
from orchestra.config import load_settings
from orchestra.embedded import EmbeddedServer
from orchestra.explanations import CauseKind
from orchestra.orchestra import Orchestra
from orchestra.registry import AgentRegistry, CatalogueEntry

__all__ = ["main"]

_KNOWN: Final = 50  # tasks that each agent knows
_SLOW_MICROSECONDS: Final = 300  # from which on the server notes a command
_NOTED: Final = 10_000
_DONE: Final = {CauseKind.ALL_BUSY, CauseKind.NO_AGENT_SATISFIES, CauseKind.UNKNOWN}


def _declare(app: Any) -> None:  # OrchestraCelery
    @app.task(name="shop.summarise", requires={"nlp", "mem_gb>=16"}, shared=False)
    def summarise(text: str, sentences: int = 2) -> None: ...


def _register(registry: AgentRegistry, agents: int) -> None:
    tasks = {f"shop.task{number}": CatalogueEntry(requires="nlp") for number in range(_KNOWN)}
    tasks["shop.summarise"] = CatalogueEntry(requires="nlp,mem_gb>=16")
    for number in range(agents):
        can = "nlp,mem_gb=64" if number == agents - 1 else f"nlp,mem_gb={number % 16},zone=z{number % 40}"
        name = f"agent{number}@box"
        about = {"capabilities": can, "host": "box", "pid": number, "pool": "prefork", "concurrency": 4, "version": "1"}
        registry.register(name, name, about=about, tasks=tasks, queues=["nlp+mem_gb~ge~16"])
        served = ["shop:mem_gb~ge~16+nlp"] if number == agents - 1 else []
        registry.beat(name, name, version="", queues=served, running=4, mean_seconds=0.5)


def _move_forward(url: str, place: int, by: int) -> None:
    """Have a message change its place with one further back, as if the time of its submission told nothing."""
    key = "shop:mem_gb~ge~16+nlp\x06\x166"
    client: Any = Redis.from_url(url)  # whose types have every answer awaitable as well
    one, other = client.lindex(key, -1 - place), client.lindex(key, -1 - place - by)
    client.lset(key, -1 - place, other)
    client.lset(key, -1 - place - by, one)
    client.close()


@contextmanager
def _pinging(url: str, waits: list[float]) -> Iterator[None]:
    """Have another client ask for a sign of life over and over; `waits` gets the times of the answers, in ms."""
    over = Event()

    def ping() -> None:
        with Redis.from_url(url) as client:
            while not over.is_set():
                started = perf_counter()
                client.ping()
                waits.append((perf_counter() - started) * 1000)

    thread = Thread(target=ping)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _measured(client: Any, act: Callable[[], object], rounds: int) -> list[Spread | None]:  # Redis
    """Return how long an act takes, and the longest command of each round; in ms."""
    times, held = [], []
    for _ in range(rounds):
        client.slowlog_reset()
        started = perf_counter()
        act()
        times.append((perf_counter() - started) * 1000)
        held.append(max((one["duration"] / 1000 for one in client.slowlog_get(_NOTED)), default=0.0))
    return [Spread(tuple(times)), Spread(tuple(held))]


def _measure(url: str, *, agents: int, tasks: int, rounds: int) -> Section:
    settings = load_settings(broker_url=url, beat_seconds=60.0)
    app: Any = OrchestraCelery("shop", set_as_current=False, settings=settings)
    _declare(app)
    engine = Orchestra(app)
    _register(app.registry, agents)
    handles = engine.submit_many("shop.summarise", ({"text": f"{number} " + "words " * 50} for number in range(tasks)))
    moved = handles[tasks // 4]
    _move_forward(url, tasks // 4, tasks // 2)
    asked: dict[str, Any] = {
        "a task, the 1st": handles[0].id,
        "a task, in the middle": handles[tasks // 2].id,
        "a task, the last": handles[-1].id,
        "one that jumped the queue": moved.id,
        "a task type": "shop.summarise",
        "a requirement": "gpu,cuda>=v12",
        "an unknown id": "00000000-0000-0000-0000-000000000000",
    }
    rows: dict[str, list[Spread | None]] = {}
    with Redis.from_url(url) as client:
        client.config_set("slowlog-log-slower-than", _SLOW_MICROSECONDS)
        client.config_set("slowlog-max-len", _NOTED)
        for what, about in asked.items():
            found = engine.explain(about)
            if found.causes[0].kind not in _DONE:
                message = f"{what} was explained by {found.causes[0].kind}, which this fleet gives no cause for"
                raise AssertionError(message)
            rows[what] = _measured(client, lambda about=about: engine.explain(about), rounds)  # type: ignore[misc]
    waits: list[float] = []
    with _pinging(url, waits):
        for _ in range(rounds):
            engine.explain(handles[0].id)
    app.close()
    return Section(
        key="explain",
        title=f"orchestra.explain with {agents:,} agents and {tasks:,} queued tasks, in ms",
        columns=("time", "longest command"),
        rows=rows,
        note=f"Another client's PING took {max(waits):.1f} ms at most while the 1st was explained.",
    )


def main() -> None:
    """Measure on a private server, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.explain", description="How long explaining takes.")
    parser.add_argument("--agents", type=int, default=1_000)
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", action="store_true", help="print every round as JSON")
    given = parser.parse_args()
    with EmbeddedServer.start() as server:
        section = _measure(server.url, agents=given.agents, tasks=given.tasks, rounds=given.rounds)
    if given.json:
        print(json.dumps(section.to_json()))  # noqa: T201  # the answer
    else:
        Console(width=80).print(section.to_table())


if __name__ == "__main__":
    main()
