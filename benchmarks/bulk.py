"""How fast many tasks are submitted, one by one and in batches."""

from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any, Final

from redis import Redis

from benchmarks import ours, stock
from benchmarks.figures import Section, Spread, ratio
from benchmarks.submit import clear
from orchestra.orchestra import Orchestra

__all__ = ["SENDERS", "measure_bulk"]

_BATCH: Final = 500  # as `submit_many` has it

Send = Callable[[int], object]  # so many tasks


def _one_by_one(task: Any) -> Send:  # a task of either side
    def send(count: int) -> None:
        for _ in range(count):
            task.delay(1, "two")

    return send


def _stock_batch(count: int) -> None:
    with stock.app.producer_pool.acquire(block=True) as producer, producer.batch(_BATCH):
        for _ in range(count):
            stock.bare.apply_async((1, "two"), producer=producer)


def _our_batch(count: int) -> None:
    Orchestra(ours.app).submit_many("bare", [{"_x": 1, "_y": "two"}] * count)


SENDERS: Final[Mapping[str, Mapping[str, Send]]] = {  # way -> side -> how it sends
    "one by one": {"stock": _one_by_one(stock.bare), "ours": _one_by_one(ours.bare)},
    "in batches": {"stock": _stock_batch, "ours": _our_batch},
}


def measure_bulk(client: "Redis", *, rounds: int, tasks: int) -> Section:
    """Submit so many tasks each way, by turns."""
    ways = {f"{side}, {way}": send for way, sides in SENDERS.items() for side, send in sides.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):  # the first one only warms up
        for name, send in ways.items():
            start = perf_counter()
            send(tasks)
            if turn:
                seconds[name].append(perf_counter() - start)
            clear(client)
    rates = {name: Spread(tuple(tasks / took for took in each)) for name, each in seconds.items()}
    for way in SENDERS:
        rates[f"{way}, ours : stock"] = ratio(rates[f"ours, {way}"], rates[f"stock, {way}"])
    return Section(
        key="bulk",
        title=f"1c. {tasks:,} tasks submitted by one process",
        columns=("tasks/s",),
        rows={name: (rate,) for name, rate in rates.items()},
        note=f"A batch of stock's is kombu's Producer.batch({_BATCH}), one of ours is submit_many.",
    )
