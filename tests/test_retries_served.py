"""Retries on an agent: what each keeps of the task that it's a retry of, and how a budget puts it off."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest
from celery import chain, chord, group
from redis import Redis

from orchestra.embedded import EmbeddedServer
from orchestra.exceptions import Backoff, RetryableError
from orchestra.orchestra import Orchestra
from orchestra.retry_budget import RetryBudget
from orchestra.store import load_script
from orchestra.types import TaskState
from tests.fleets import agent_of, app_at, commands_at
from tests.keys import keys_of
from tests.processes import until
from tests.sample_tasks import AT_ONCE

SEEN: list[dict[str, Any]] = []  # what each attempt of `t.kept` knew of itself
ENDS: list[str] = []

KEPT: Final = (
    *("id", "root_id", "parent_id", "correlation_id", "reply_to", "origin", "shadow", "headers", "expires"),
    *("timelimit", "group", "group_index", "chord", "chain", "callbacks", "errbacks", "stamps", "stamped_headers"),
    *("ignore_result", "args", "kwargs"),
)
ONE_AT_A_TIME: Final = RetryBudget(ratio=0, floor_per_second=0, window_seconds=0.5)
RARE: Final = RetryBudget(ratio=0, floor_per_second=1 / 3600, window_seconds=3600)


def declare(app: Any) -> None:
    """Declare the tasks of these tests; each fails at its first attempt."""
    _declare_budgeted(app)

    @app.task(name="t.kept", bind=True, requires="general", max_attempts=2, backoff=AT_ONCE, shared=False)
    def kept(self: Any, number: int = 0) -> int:
        request = self.request
        known = {name: getattr(request, name) for name in KEPT}
        SEEN.append({**known, "priority": request.delivery_info["priority"], "retries": request.retries})
        if request.retries == 0:
            raise RetryableError("the first attempt")
        return number + 1

    @app.task(name="t.total", shared=False)
    def total(numbers: list[int]) -> int:
        return sum(numbers)

    @app.task(name="t.end", shared=False)
    def end(word: str) -> None:
        ENDS.append(word)

    @app.task(name="t.late", bind=True, max_attempts=2, backoff=Backoff(2, 2, "none"), shared=False)
    def late(self: Any) -> None:
        SEEN.append({})
        raise RetryableError("later")


def _declare_budgeted(app: Any) -> None:
    @app.task(name="t.counted", bind=True, max_attempts=2, backoff=AT_ONCE, retry_budget=RARE, shared=False)
    def counted(self: Any, failing: bool = False) -> int:
        if failing and self.request.retries == 0:
            raise RetryableError("not yet")
        return int(self.request.retries)

    for name, options in {
        "t.budgeted": {"max_attempts": 2, "retry_budget": ONE_AT_A_TIME, "backoff": AT_ONCE},
        "t.unbudgeted": {"max_attempts": 2, "retry_budget": False, "backoff": AT_ONCE},
        "t.defaults": {},
    }.items():
        app.task(name=name, bind=True, shared=False, **options)(_fails_first)

    @app.task(name="t.by_hand", bind=True, retry_budget=RARE, shared=False)
    def by_hand(self: Any) -> int:
        if self.request.retries < 3:
            raise self.retry(countdown=0)
        return int(self.request.retries)


def _fails_first(self: Any) -> int:
    if self.request.retries == 0:
        raise RetryableError("not yet", retry_after=0)
    return int(self.request.retries)


@pytest.fixture(scope="module")
def served(redis_server: EmbeddedServer) -> Iterator[Any]:
    """Give an app with an agent that serves it; the tests that use it empty no database."""
    with Redis.from_url(redis_server.url) as client:
        client.flushall()
    with app_at(redis_server.url) as app:
        declare(app)
        with agent_of(app):
            yield app


@pytest.fixture(autouse=True)
def _nothing_seen() -> None:
    SEEN.clear()
    ENDS.clear()


def _counted(app: Any, part: str, task: str) -> int:
    """Return how many a kind of counter holds for a task, over all windows."""
    begin = getattr(app.store.keys, part)(task)
    with Redis.from_url(app.conf.broker_url) as client:
        return sum(int(client.get(key) or 0) for key in keys_of(client) if key.startswith(begin))


def _notes(app: Any, task_id: str) -> list[str]:
    return [str(entry.note) for entry in app.state.read(task_id).history if entry.state is TaskState.RETRYING]


class TestWhatARetryKeeps:
    def test_all_that_was_said_of_the_task(self, served: Any) -> None:
        """Id, deadline, limits, trace, headers, stamps, followers and priority are those of the first attempt."""
        deadline = datetime.now(UTC) + timedelta(minutes=5)
        signature = served.tasks["t.kept"].s(7)
        signature.stamp(tenant="acme")

        result = signature.apply_async(
            expires=deadline,
            time_limit=90.0,
            soft_time_limit=80.0,
            urgency="high",
            shadow="kept once",
            headers={
                "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
                "mine": {"a": [1, None]},
            },
            link=served.tasks["t.end"].si("linked"),
            link_error=served.tasks["t.end"].si("failed"),
        )

        assert 8 == result.get(timeout=20)
        first, second = SEEN
        assert {**first, "retries": 1} == second
        assert (result.id, "kept once", 3, [90.0, 80.0]) == tuple(
            second[name] for name in ("id", "shadow", "priority", "timelimit")
        )
        assert "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01" == second["headers"]["traceparent"]
        assert {"a": [1, None]} == second["headers"]["mine"]
        assert deadline == datetime.fromisoformat(second["expires"])
        assert "acme" in second["stamps"]["tenant"]
        until(lambda: ENDS == ["linked"], seconds=20)

    def test_what_submit_was_told(self, served: Any) -> None:
        """The timeout, the deadline and the urgency of a submission hold for each of its attempts."""
        handle = Orchestra(served).submit("t.kept", {"number": 1}, timeout=60, expires=300, urgency="critical")

        assert 2 == handle.get(timeout=20)
        first, second = SEEN
        assert {**first, "retries": 1} == second
        assert ([65.0, 60.0], 0) == (second["timelimit"], second["priority"])

    def test_its_place_in_a_canvas(self, served: Any) -> None:
        """Parts of a chain, a group and a chord are tried again as such, and what follows them follows once."""
        kept, total = served.tasks["t.kept"], served.tasks["t.total"]

        assert 3 == chain(kept.s(0), kept.s(), kept.s()).apply_async().get(timeout=30)
        assert [2, 3] == group(kept.s(1), kept.s(2)).apply_async().get(timeout=30)
        assert 9 == chord([kept.s(1), kept.s(2), kept.s(3)], total.s()).apply_async().get(timeout=30)
        by_id: dict[str, list[dict[str, Any]]] = {}
        for attempt in SEEN:
            by_id.setdefault(attempt["id"], []).append(attempt)
        assert 8 == len(by_id)
        for first, second in by_id.values():
            assert {**first, "retries": 1} == second

    def test_its_deadline_is_a_moment(self, served: Any) -> None:
        """A deadline doesn't move with the attempts: what's to be tried again after it expires."""
        result = served.tasks["t.late"].apply_async(expires=1)

        until(lambda: served.state.read(result.id).state is TaskState.EXPIRED)
        assert 1 == len(SEEN)


class TestBudget:
    def test_what_is_put_off_waits(self, served: Any, caplog: pytest.LogCaptureFixture) -> None:
        """Retries above the budget wait longer, the record and the log say so, and each task ends well."""
        results = [served.tasks["t.budgeted"].delay() for _ in range(4)]

        assert [1] * 4 == [result.get(timeout=30) for result in results]
        notes = [note for result in results for note in _notes(served, result.id)]
        put_off = [note for note in notes if "s by the retry budget; RetryableError: not yet" in note]
        assert 4 == len(notes)
        assert len(put_off) >= 2  # four fail within the time of one window, or two
        assert all("not before " in note for note in put_off)
        assert "retry put off" in caplog.text

    def test_first_attempts_are_counted(self, served: Any) -> None:
        """Each first attempt of a task with a budget is counted; its retry isn't one, but takes a place."""
        counted = served.tasks["t.counted"]

        assert [0, 0, 1] == [counted.delay(failing=failing).get(timeout=20) for failing in (False, False, True)]
        assert (3, 1) == (_counted(served, "first_attempts", "t.counted"), _counted(served, "retries", "t.counted"))

    def test_turned_off(self, served: Any) -> None:
        """Without a budget nothing is counted, whether it was turned off or the task has no policy."""
        for name in ("t.unbudgeted", "t.defaults"):
            assert 1 == served.tasks[name].delay().get(timeout=20)
            assert 0 == _counted(served, "first_attempts", name) + _counted(served, "retries", name)

    def test_hand_made_retries_are_not_budgeted(self, served: Any) -> None:
        """`self.retry` is as in Celery: when to come back is for whoever calls it."""
        assert 3 == served.tasks["t.by_hand"].delay().get(timeout=20)
        assert 0 == _counted(served, "retries", "t.by_hand")

    def test_eager_retries_are_not_budgeted(self, served: Any) -> None:
        """A task that runs here and now asks nobody."""
        before = _counted(served, "retries", "t.counted")

        assert 1 == served.tasks["t.counted"].apply((True,)).get()
        assert before == _counted(served, "retries", "t.counted")

    def test_what_it_costs(self, served: Any) -> None:
        """Counting rides with the start; a retry costs one call more, and only a retry does."""
        calls = {}
        for name in ("t.counted", "t.unbudgeted", "t.budgeted"):
            served.tasks[name].delay().get(timeout=20)  # connects, and has the scripts loaded
            with commands_at(served.conf.broker_url) as seen:
                served.tasks[name].delay().get(timeout=20)
            calls[name] = sum(command.startswith("EVALSHA") and _is_of_a_task(command) for command in seen)

        assert calls["t.unbudgeted"] + 1 == calls["t.budgeted"]
        assert 3 == calls["t.counted"]


_TASK_SCRIPTS: Final = ("submit", "publish", "start", "store_result", "spend_retry")


def _is_of_a_task(command: str) -> bool:
    return command.split()[1] in {load_script(name).sha for name in _TASK_SCRIPTS}
