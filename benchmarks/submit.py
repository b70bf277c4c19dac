"""What one submission costs in a warm process, and where the difference to stock Celery lies."""

import json
from collections.abc import Callable, Mapping
from time import perf_counter_ns
from typing import Any, Final

from celery import Celery
from redis import Redis

from benchmarks import ours, stock
from benchmarks.figures import Cost, Section, Spread, column, costs, ratio
from orchestra.app import OrchestraCelery
from orchestra.publishing import PublishId
from orchestra.store import load_script
from orchestra.submission import Call, prepare

__all__ = ["measure_parts", "measure_submit"]

_ARGUMENTS: Final = (1, "two")
_STOCK: Final = "stock Celery"
_OURS: Final = {"ours, no hints": ours.bare, "ours, enforced hints": ours.enforced, "ours, requires": ours.requiring}

Act = Callable[[int], object]


def measure_submit(client: "Redis", *, rounds: int, times: int) -> Section:
    """Submit by `.delay()`, by turns."""
    acts = {name: _delay(task) for name, task in {_STOCK: stock.bare, **_OURS}.items()}
    acts["ours, Celery's way"] = lambda _: _celerys_way(ours.requiring)
    spent = costs(acts, rounds=rounds, times=times, client=client)
    clear(client)
    rows = {name: [column(spent[name], part) for part in ("wall", "cpu", "server")] for name in acts}
    rows["ours, requires : stock"] = [
        ratio(mine, theirs) for mine, theirs in zip(rows["ours, requires"], rows[_STOCK], strict=True)
    ]
    return Section(
        key="submit",
        title="1. One .delay() of a warm process, in µs",
        columns=("time", "CPU", "server's CPU"),
        rows=rows,
        note="CPU is the submitting process's.\n"
        "'Celery's way' is what a call takes that a template can't express, here for a header of its own.",
    )


def _celerys_way(task: Any) -> None:  # one of ours
    task.apply_async(_ARGUMENTS, headers={"own": 1})


def _delay(task: Any) -> Act:  # a task of either side
    return lambda _: task.delay(*_ARGUMENTS)


def clear(client: "Redis") -> None:
    """Empty the server; stock's result consumer would keep a subscription for every task that was ever sent."""
    stock.app.backend.result_consumer.stop()
    client.flushall()


class _Below(Celery):
    """Celery's own `send_task`, with a clock."""

    below_ns = 0

    def send_task(self, *args: Any, **options: Any) -> Any:  # Celery's signature
        start = perf_counter_ns()
        sent = super().send_task(*args, **options)
        self.below_ns += perf_counter_ns() - start
        return sent


class _Clocked(OrchestraCelery, _Below):  # whose send_task stands between ours and Celery's
    """Ours, with a clock around it: the difference of the two is what we do before Celery."""

    whole_ns = 0

    def send_task(self, *args: Any, **options: Any) -> Any:  # Celery's signature
        start = perf_counter_ns()
        sent = super().send_task(*args, **options)
        self.whole_ns += perf_counter_ns() - start
        return sent


def measure_parts(client: "Redis", *, rounds: int, times: int) -> Section:
    """Measure the steps of a submission one by one: those that we add, those that we replace, those that we spare."""
    acts = {**_checking(), **_publishing(client)}
    spent = costs(acts, rounds=rounds, times=times, client=client)
    rows = {name: [column(spent[name], part) for part in ("wall", "cpu", "server")] for name in acts}
    before = _before_celery(rounds, times)
    clear(client)
    return Section(
        key="parts",
        title="1b. A submission's steps, in µs",
        columns=("time", "CPU", "server's CPU"),
        rows={"added: before Celery": (before, None, None), **rows},
        note="'Before Celery' holds one prepare, and is timed inside a real call that goes Celery's way.\n"
        "Telling the backend makes stock's SUBSCRIBE and UNSUBSCRIBE; ours sends neither.",
    )


def _before_celery(rounds: int, times: int) -> Spread:
    app: Any = _Clocked("ours", set_as_current=False)
    app.config_from_object("benchmarks.settings")
    _, _, requiring = ours.declare_ours(app)
    spent: list[Cost] = []
    for _ in range(-1, rounds):
        app.below_ns = app.whole_ns = 0
        for _ in range(times):
            _celerys_way(requiring)
        spent.append(Cost(wall=(app.whole_ns - app.below_ns) / times))
    app.close()
    return column(spent[1:], "wall")


def _checking() -> Mapping[str, Act]:
    """Return the steps that come before Redis."""
    app, tasks = ours.app, {"no hints": ours.bare, "requires": ours.requiring}

    def act(task: Any) -> Act:  # OrchestraTask
        call = Call(task=task.name, args=_ARGUMENTS, kwargs={})
        return lambda _: prepare(call, task.declared, app.limits, enforce=task.enforced)

    return {
        **{f"added: prepare, {name}": act(task) for name, task in tasks.items()},
        "added: router": lambda _: app.task_router("requiring", _ARGUMENTS, {}, {}),
    }


def _publishing(client: "Redis") -> Mapping[str, Act]:
    """Return the ways to put one and the same message into a queue, each task with an id of its own."""
    queue = ours.app.queue_names.name_for(ours.requiring.declared.requires)
    ours.requiring.delay(*_ARGUMENTS)
    (key,) = client.keys(f"{queue}*")  # the name ends with the priority
    newest: Any = client.lindex(key, 0)
    message = json.loads(newest)
    channels = {side: app.connection_for_write().default_channel for side, app in _sides().items()}

    def put(channel: Any) -> Act:  # kombu's
        return lambda number: channel._put(queue, _numbered(message, number))  # noqa: SLF001  # the step itself

    numbered_keys = channels["ours"]._call(queue, message, message["headers"], PublishId())  # noqa: SLF001
    count = numbered_keys[0]
    keys, args = numbered_keys[1 : count + 1], numbered_keys[count + 1 :]
    script, text = load_script("publish"), args[0]
    return {
        "stock: channel puts": put(channels["stock"]),
        "ours: channel puts": put(channels["ours"]),
        "stock: LPUSH alone": lambda _: client.lpush(keys[0], text),
        "ours: script alone": lambda number: script.run(client, [keys[0], f"{keys[1]}{number}", *keys[2:]], args),
        **{f"{side}: tell backend": _telling(app) for side, app in _sides().items()},
    }


def _telling(app: Any) -> Act:  # of either side
    def tell(number: int) -> None:
        app.backend.on_task_call(None, f"{number}")
        app.AsyncResult(f"{number}")  # stock's subscription ends with it

    return tell


def _sides() -> Mapping[str, Any]:  # apps
    return {"stock": stock.app, "ours": ours.app}


def _numbered(message: Mapping[str, Any], number: int) -> dict[str, Any]:
    return {**message, "headers": {**message["headers"], "id": f"{message['headers']['id']}{number}"}}
