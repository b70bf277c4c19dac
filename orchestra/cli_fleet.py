"""The commands that look at the fleet and steer its agents: agents, queues, health, drain, resume."""

from collections.abc import Sequence
from typing import Final

import click
from pydantic_core import to_jsonable_python

from orchestra.agent import Agent
from orchestra.capabilities import GENERAL, CapabilitySet, Requirement
from orchestra.cli_app import agent_command, agents_to_start, completing, engine_of
from orchestra.cli_base import OrchestraCommand
from orchestra.cli_output import ago, counted, json_option, say, show_json, show_table, spaced
from orchestra.orchestra import Orchestra
from orchestra.queues import CapabilityQueue
from orchestra.terms import Operator
from orchestra.types import Health, QueueInfo

__all__ = ["agents", "drain", "health", "queues", "resume"]

_SATISFIED_BY_ITS_VALUE: Final = frozenset({Operator.HAS, Operator.EQUAL, Operator.AT_LEAST, Operator.AT_MOST})


@click.command(cls=OrchestraCommand)
@json_option
@click.pass_context
def agents(ctx: click.Context, *, wants_json: bool) -> None:
    """List the agents: what they can do, serve, and do now."""
    known = engine_of(ctx).agents()
    if wants_json:
        show_json([{**to_jsonable_python(agent), "tasks": sorted(agent.tasks)} for agent in known])
        return
    if known:
        rows = [
            (agent.name, spaced(agent.capabilities) or "-", _listed(agent.queues), _doing(agent)) for agent in known
        ]
        lost = [number for number, agent in enumerate(known) if not agent.alive]
        show_table(("agent", "capabilities", "serves", "now"), rows, marked=lost)
    if not any(agent.alive for agent in known):
        say(*agents_to_start(ctx))


def _listed(names: Sequence[str]) -> str:
    return " ".join(names) or "-"


def _doing(agent: Agent) -> str:
    if not agent.alive:
        return f"lost, seen {ago(agent.last_beat_at)}"
    if agent.draining:
        return f"drains, has {counted(agent.running, 'task')}" if agent.running else "drained"
    return (f"has {counted(agent.running, 'task')}" if agent.running else "idle") + _by_the_short_way(agent)


def _by_the_short_way(agent: Agent) -> str:
    """Say how much of what an agent got took the short way, where its pool has one."""
    taken, all_of_them = agent.ways.get("express", 0), sum(agent.ways.values())
    return f", {taken} of {all_of_them} the short way" if all_of_them else ""


@click.command(cls=OrchestraCommand)
@json_option
@click.pass_context
def queues(ctx: click.Context, *, wants_json: bool) -> None:
    """
    List the queues: what is in them, and who serves them.

    A task is waiting for an agent, delayed until it's due, leased, which means that an agent has fetched it and not
    finished it, or parked until a breaker closes.
    """
    engine = engine_of(ctx)
    known = engine.queues()
    if wants_json:
        show_json(known)
        return
    unserved = [number for number, queue in enumerate(known) if queue.depth and not queue.agents]
    parked = any(queue.parked for queue in known)
    headers = ("queue", "requires", "waiting", "delayed", "leased", *(["parked"] if parked else []), "agents")
    show_table(headers, [_row(queue, shows_parked=parked) for queue in known], marked=unserved)
    for number in unserved:
        say("", *_remedy(ctx, engine, known[number].name))
    if not unserved and not any(queue.agents for queue in known):
        say("", *agents_to_start(ctx))


def _row(queue: QueueInfo, *, shows_parked: bool) -> tuple[str, ...]:
    counts = (queue.depth, queue.delayed, queue.leased, *([queue.parked] if shows_parked else []))
    return queue.name, spaced(queue.requires), *(f"{count:,}" for count in counts), _servers(queue)


def _servers(queue: QueueInfo) -> str:
    return "NONE" if queue.depth and not queue.agents else _listed(queue.agents)


def _remedy(ctx: click.Context, engine: Orchestra, name: str) -> list[str]:
    """Say, in lines, that nobody serves a queue in which tasks wait, and who could."""
    suffix = engine.app.queue_names.suffix(name) or GENERAL.suffix
    queue = CapabilityQueue.from_suffix(suffix)
    enough = _enough_for(queue.requirement)
    wanted = f"satisfies {queue.requirement.text}" + (f" and knows {queue.task}" if queue.task else "")
    told = f"{name} has waiting tasks and no live agent: start one that {wanted}"
    return [f"{told}."] if enough is None else [f"{told}, as with", f"  {agent_command(ctx, enough)}"]


def _enough_for(requirement: Requirement) -> str | None:
    """Return capabilities that satisfy a requirement; None where they can't be read off its terms."""
    named = [one for one in requirement.terms if one.operator in _SATISFIED_BY_ITS_VALUE]
    texts = [one.label if one.value is None else f"{one.label}={one.value}" for one in named] or [GENERAL.text]
    return ",".join(texts) if requirement.satisfied_by(CapabilitySet.parse(texts)) else None


@click.command(cls=OrchestraCommand)
@json_option
@click.pass_context
def health(ctx: click.Context, *, wants_json: bool) -> None:
    """
    Tell whether the fleet can work, and what to do if not.

    It can when Redis answers, an agent is alive, and no task waits where no live agent looks. The exit code is 0 if it
    can, else 1.
    """
    engine = engine_of(ctx)
    found = engine.health()
    if wants_json:
        show_json(found)
    else:
        say(f"health   {'ok' if found.ok else 'not ok'}", *_facts(engine, found))
        for problem in _problems(ctx, engine, found):
            say("", *problem)
    ctx.exit(0 if found.ok else 1)


def _facts(engine: Orchestra, found: Health) -> list[str]:
    where = engine.app.store.location
    if found.redis_ms is None:
        return [f"redis    no answer from {where}"]
    return [
        f"redis    answers in {found.redis_ms:.1f} ms at {where}",
        f"agents   {found.agents} alive",
        f"waiting  {counted(found.waiting, 'task')}",
    ]


def _problems(ctx: click.Context, engine: Orchestra, found: Health) -> list[list[str]]:
    """Say each problem with what to do about it, in lines."""
    if found.redis_ms is None:
        return [list(found.problems)]
    remedies = [_remedy(ctx, engine, name) for name in found.unserved]
    return remedies if found.agents or remedies else [agents_to_start(ctx)]


def _alive(engine: Orchestra) -> list[str]:
    return [agent.name for agent in engine.agents() if agent.alive]


@click.command(cls=OrchestraCommand)
@click.argument("names", nargs=-1, required=True, metavar="AGENT...", shell_complete=completing(_alive))
@click.option("--timeout", type=click.FloatRange(min=0), metavar="SECONDS", help="Wait no longer than this.")
@click.pass_context
def drain(ctx: click.Context, *, names: tuple[str, ...], timeout: float | None) -> None:
    """
    Let agents finish what they have, and take no more.

    This waits until they have nothing left. AGENT is text@host, or text alone for every text@…; * and ? match as in a
    shell. The agents stay up and can be stopped then, or take tasks again with `resume`. The exit code is 1 if the
    timeout came first.
    """
    left = engine_of(ctx).drain(names, timeout_seconds=timeout)
    for name, held in left.items():
        say(f"{name} still has {counted(held, 'task')}" if held else f"{name} is drained")
    ctx.exit(1 if any(left.values()) else 0)


@click.command(cls=OrchestraCommand)
@click.argument("names", nargs=-1, required=True, metavar="AGENT...", shell_complete=completing(_alive))
@click.pass_context
def resume(ctx: click.Context, *, names: tuple[str, ...]) -> None:
    """Let drained agents take tasks again."""
    for name in engine_of(ctx).resume(names):
        say(f"{name} takes tasks again")
