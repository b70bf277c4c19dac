"""The public API as a user types it; mypy checks every line, and what each expression is."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, assert_type

from celery import chain, group
from celery.result import AsyncResult
from pydantic import BaseModel

from orchestra import (
    Agent,
    AgentManager,
    Backoff,
    CapabilitySet,
    Orchestra,
    OrchestraCelery,
    PermanentError,
    Requirement,
    RetryableError,
    StateManager,
    TaskHandle,
    TaskRouter,
    TaskState,
    Urgency,
    ValidationError,
)
from orchestra.explanations import CauseKind, EstimatedWait, Explanation
from orchestra.letters import DeadLetter
from orchestra.retry_budget import RetryBudget
from orchestra.task import OrchestraTask
from orchestra.types import Cancelled, Health, HistoryEntry, QueueInfo, TaskRecord

app = OrchestraCelery("shop", broker="redis://127.0.0.1:1/0", set_as_current=False)


class Document(BaseModel):
    """What the tasks take."""

    title: str
    pages: int = 1


# ── declaring ──


@app.task
def bare(number: int) -> str:
    """Declare nothing."""
    return str(number)


@app.task(
    requires={"nlp", "mem_gb>=16"},
    urgency="high",
    on_unroutable="dead_letter_after:600",
    timeout=30,
    max_attempts=3,
    backoff=Backoff(base_seconds=1.0, max_seconds=60.0, jitter="none"),
    retry_on=(LookupError,),
    never_retry=KeyError,
    retry_budget=RetryBudget(ratio=0.5, floor_per_second=1.0, window_seconds=60.0),
    acks_late=False,
    name="shop.index",
    shared=False,
)
def index(document: Document, *, limit: int = 10) -> list[str]:
    """Declare everything."""
    if limit < 0:
        raise PermanentError("no words are asked for")
    if not document.pages:
        raise RetryableError("not there yet", retry_after=2.5)
    return document.title.split()[:limit]


@app.task(bind=True, max_attempts=2, shared=False)
def bound(self: OrchestraTask[Any, Any], number: int) -> int:
    """Have the task as the first argument."""
    return number + self.request.retries


class ClassBased(OrchestraTask[..., int]):
    """A task that is a class."""

    name = "shop.class"
    requires = ("gpu",)

    def run(self, number: int) -> int:
        """Return it."""
        return number


def declared() -> None:
    """Call a task as the function that it was made from."""
    assert_type(bare(3), str)
    assert_type(index(Document(title="a b"), limit=1), list[str])
    assert_type(bound(3), int)
    app.register_task(ClassBased())


# ── sending ──


def sent(document: Document, moment: datetime) -> None:
    """Send tasks in Celery's ways, with our options."""
    assert_type(index.delay(document), AsyncResult[list[str]])
    index.apply_async((document,), {"limit": 3}, requires="gpu", urgency=Urgency.LOW, on_unroutable="raise")
    index.apply_async(kwargs={"document": document}, eta=moment, expires=60, queue="mine")
    index.s(document).set(requires={"gpu"}, urgency="high").apply_async()  # type: ignore[call-arg]  # unknown to celery-types
    chain(index.s(document), bare.s()).apply_async()
    group(bare.s(number) for number in range(3)).apply_async()
    app.send_task("shop.index", (document,), requires=["nlp"], urgency="critical")


def submitted(document: Document, moment: datetime) -> None:
    """Submit tasks through the engine, and follow them."""
    with Orchestra(app) as orchestra:
        handle = orchestra.submit(
            "shop.index", {"document": document}, requires=Requirement.parse("gpu"), urgency="high", timeout=30
        )
        many = orchestra.submit_many(
            "shop.index", [{"document": document}], requires=["gpu"], eta=moment, expires=moment + timedelta(hours=1)
        )
        orchestra.submit("shop.index", {}, countdown=1.5, expires=60, on_unroutable="fallback:cpu")
    assert_type(handle, TaskHandle)
    assert_type(many, list[TaskHandle])
    assert_type(handle.id, str)
    assert_type(handle.state, TaskState | None)
    assert_type(handle.cancel(), Cancelled)
    assert_type(orchestra.cancel("id"), Cancelled)
    assert_type(handle.history(), tuple[HistoryEntry, ...])
    assert_type(handle.record(), TaskRecord | None)
    assert_type(handle.result, AsyncResult[Any])
    assert_type(orchestra.handle("id"), TaskHandle)
    words: list[str] = handle.get(timeout=10)
    assert_type(words, list[str])


def refused(payload: Mapping[str, object]) -> list[tuple[str, str, str]]:
    """Read what was wrong with a submission."""
    try:
        Orchestra(app).submit("shop.index", payload)
    except ValidationError as error:
        return [(field.field, field.message, field.given) for field in error.errors]
    return []


# ── the fleet ──


def seen() -> None:
    """See agents, queues, health and records."""
    orchestra = Orchestra(app)
    assert_type(orchestra.agents(), list[Agent])
    assert_type(orchestra.queues(), list[QueueInfo])
    assert_type(orchestra.health(), Health)
    assert_type(orchestra.dead_letters.list(reason="poison", limit=10).letters, tuple[DeadLetter, ...])
    assert_type(orchestra.dead_letters.replay(task="shop.*", rate_per_second=50, dry_run=True), int)
    assert_type(orchestra.health().redis_ms, float | None)
    assert_type(orchestra.explain("id"), Explanation)
    assert_type(orchestra.explain({"gpu", "mem_gb>=16"}).causes[0].kind, CauseKind)
    assert_type(orchestra.explain(Requirement.parse("gpu")).wait, EstimatedWait | None)
    assert_type(AgentManager(app).capable_of({"gpu"}), list[Agent])
    assert_type(orchestra.agents()[0].last_beat_at, datetime)
    assert_type(app.state, StateManager)
    assert_type(app.state.read("id"), TaskRecord | None)
    assert_type(app.task_router, TaskRouter)
    app.close()


def matched() -> None:
    """Match requirements with capabilities."""
    requirement = Requirement.parse({"nlp", "mem_gb>=16"})
    can = CapabilitySet.parse("nlp,mem_gb=64")
    assert_type(requirement.satisfied_by(can), bool)
    assert_type(requirement.missing(can), tuple[str, ...])
    assert_type(requirement.text, str)
    assert_type(Urgency.parse("high"), Urgency)
