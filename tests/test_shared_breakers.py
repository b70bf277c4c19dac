"""Which queues may be left alone while a breaker is open."""

from typing import Any

import pytest

from orchestra.queues import QueueNames
from orchestra.registry import AgentRegistry, CatalogueEntry
from orchestra.shared_breakers import SharedBreakers, shared_breakers
from tests.stores import register, store_at

NAMES = QueueNames("shop", "celery")


def _entry(requires: str | None = "llm", breaker: str | None = "api", **more: Any) -> CatalogueEntry:
    policy = None if breaker is None else {"name": breaker, "on_open": "wait", **more}
    return CatalogueEntry(requires=requires, breaker=policy)


class TestSharedBreakers:
    def test_all_tasks_of_a_queue(self) -> None:
        """A queue counts where all its tasks wait for one breaker; so does what is handed on of each task."""
        found = shared_breakers({"a": _entry(), "b": _entry()}, NAMES)

        assert {"shop:llm": "api", "shop:llm@a": "api", "shop:llm@b": "api"} == found

    @pytest.mark.parametrize(
        "other",
        [
            _entry(breaker=None),
            _entry(breaker="other"),
            _entry(on_open="fail"),
            _entry(keyed=True),
            CatalogueEntry(requires="llm", breaker={}),
        ],
    )
    def test_another_kind_of_task(self, other: CatalogueEntry) -> None:
        """One task that waits for nothing, something else, or for each key, and the queue is looked into as ever."""
        assert "shop:llm" not in shared_breakers({"a": _entry(), "b": other}, NAMES)

    def test_the_general_queue(self) -> None:
        """Tasks without a requirement share the default queue with Celery's own, which wait for nothing."""
        found = shared_breakers({"a": _entry(requires=None), "celery.chord": CatalogueEntry()}, NAMES)

        assert {"shop:general@a": "api"} == found

    def test_what_cannot_be_read(self) -> None:
        """A requirement that a newer version wrote is passed over."""
        assert {} == shared_breakers({"a": _entry(requires="llm>>1")}, NAMES)


class TestReading:
    def test_from_the_catalogue(self, redis_url: str) -> None:
        """An agent asks the catalogue, where it has such a task itself."""
        with store_at(redis_url) as store:
            registry = AgentRegistry(store, lost_after_seconds=5)
            tasks = {"shop.ask": _entry()}
            register(registry, tasks=tasks)

            assert "api" == SharedBreakers(registry, NAMES, tasks).read()["shop:llm"]
            assert {} == SharedBreakers(registry, NAMES, {"shop.index": CatalogueEntry()}).read()
