"""Orchestra, the main engine: submit work, follow it, and see the fleet."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from difflib import get_close_matches
from time import perf_counter
from types import TracebackType
from typing import Any, Final, Self

from celery.result import AsyncResult, EagerResult

from orchestra.agent import Agent, AgentManager
from orchestra.app import OrchestraCelery
from orchestra.backend import STATES
from orchestra.broker import named_broker
from orchestra.capabilities import Requirement
from orchestra.exceptions import AgentOrchestraException, UnknownTaskError, ValidationError
from orchestra.queues import CapabilityQueue
from orchestra.task import GRACE_SECONDS, OrchestraTask
from orchestra.types import Health, HistoryEntry, QueueInfo, TaskRecord, TaskState, Urgency
from orchestra.validation import check_payload, validate_delay, validate_task_type, validate_timeout

__all__ = ["Orchestra", "TaskHandle"]

_NEAREST: Final = 3
_PER_ROUND_TRIP: Final = 500


@dataclass(frozen=True, slots=True)
class TaskHandle:
    """One submitted task. `result` is Celery's AsyncResult, for canvas and for code that knows it."""

    id: str
    _app: OrchestraCelery
    _eager: EagerResult[Any] | None = field(default=None, repr=False, compare=False)  # where tasks run at once

    @property
    def result(self) -> AsyncResult[Any]:
        """Celery's own handle of the task."""
        return self._app.AsyncResult(self.id) if self._eager is None else self._eager

    @property
    def state(self) -> TaskState | None:
        """Where the task stands now; None when nothing is known of this id."""
        if self._eager is not None:
            return STATES.get(self._eager.state)
        record = self.record()
        return None if record is None else record.state

    def get(self, timeout: float | None = None) -> Any:  # the task's own type
        """
        Wait for the task and return what it returned.

        Args:
            timeout: seconds to wait at most; None waits for ever.

        Raises:
            celery.exceptions.TimeoutError: it isn't done in time.
            Exception: what the task raised.

        """
        return self.result.get(timeout=timeout)

    def record(self) -> TaskRecord | None:
        """Return what is written down of the task; None when nothing is known of this id."""
        return self._app.state.read(self.id)

    def history(self) -> tuple[HistoryEntry, ...]:
        """Return the task's states in the order they came, with their times and agents; empty when it isn't known."""
        record = self.record()
        return () if record is None else record.history

    def cancel(self) -> bool:
        """
        Cancel the task unless it has started; return whether it is cancelled.

        A cancelled task's `get` raises Celery's TaskRevokedError.
        """
        before = self._app.state.cancel(self.id, note="by its submitter")
        if before is not TaskState.CANCELLED:
            return False
        self._app.backend.mark_as_revoked(self.id, "cancelled before it started")
        return True


class Orchestra:
    """
    The engine over one app: `with Orchestra(app) as orchestra: orchestra.submit(…)`.

    It holds no connection of its own, so it may be made where it is needed; leaving the `with` block closes nothing
    that the app still uses.
    """

    def __init__(self, app: OrchestraCelery) -> None:
        self.app = app
        self._manager = AgentManager(app)

    def __enter__(self) -> Self:
        """Return the engine."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect the app's idle connections, which connect anew when they are needed; those in use go on."""
        pool: Any = self.app.pool
        pool.disconnect()

    def submit(
        self,
        task_type: str,
        payload: Mapping[str, Any],
        *,
        requires: str | Iterable[str] | Requirement | None = None,
        urgency: str | Urgency | None = None,
        timeout: float | None = None,
        countdown: float | None = None,
        eta: datetime | None = None,
        expires: float | datetime | None = None,
    ) -> TaskHandle:
        """
        Submit one task; `payload` holds its arguments by name.

        Args:
            task_type: the task's name, known to this process or published by an agent.
            payload: JSON values; checked against the task's type hints before Redis is touched.
            requires: what an agent must be able to do, in place of what the task declares.
            urgency: `critical`, `high`, `normal` or `low`, in place of what the task declares.
            timeout: seconds that an attempt may take.
            countdown: seconds to wait before it may start.
            eta: the moment before which it may not start.
            expires: seconds, or the moment, after which it is no longer to be started.

        Raises:
            UnknownTaskError: no code and no agent knows the task; it carries the nearest names.
            ValidationError: an argument or option isn't right; it lists every one.
            SubmissionError: Redis can't be reached.

        """
        options = self._options(timeout, countdown, eta, expires)
        return self._send(task_type, payload, {**options, "requires": requires, "urgency": urgency})

    def submit_many(
        self,
        task_type: str,
        payloads: Iterable[Mapping[str, Any]],
        *,
        requires: str | Iterable[str] | Requirement | None = None,
        urgency: str | Urgency | None = None,
        timeout: float | None = None,
        countdown: float | None = None,
        eta: datetime | None = None,
        expires: float | datetime | None = None,
    ) -> list[TaskHandle]:
        """
        Submit a task once for each payload; the handles come in the payloads' order.

        They are sent in round trips of 500. All payloads are checked before the first is sent, so that a wrong one
        leaves nothing behind. When Redis is lost on the way, those sent before stay submitted.

        Raises:
            ValidationError: as for `submit`, naming the payload by its place.

        """
        options = self._options(timeout, countdown, eta, expires)
        batch = list(payloads)
        for place, payload in enumerate(batch):
            try:
                self._check(task_type, payload)
            except ValidationError as error:
                message = f"Payload {place} of {len(batch)}: {error}"
                raise ValidationError(message, errors=error.errors) from error
        with (
            named_broker(f"A batch of {len(batch)} {task_type}", self.app.broker_location),
            self.app.producer_pool.acquire(block=True) as producer,
            producer.batch(_PER_ROUND_TRIP),  # type: ignore[attr-defined]  # newer than celery-types
        ):
            extra = {**options, "requires": requires, "urgency": urgency, "producer": producer}
            return [self._send(task_type, payload, extra) for payload in batch]

    def _send(self, task_type: str, payload: Mapping[str, Any], options: Mapping[str, Any]) -> TaskHandle:
        self._check(task_type, payload)
        given = {name: value for name, value in options.items() if value is not None}
        task = self.app.tasks.get(task_type)
        if task is not None:
            result = task.apply_async(kwargs=dict(payload), **given)
            return TaskHandle(result.id, self.app, result if isinstance(result, EagerResult) else None)
        return TaskHandle(self.app.send_task(task_type, kwargs=dict(payload), **given).id, self.app)

    def _check(self, task_type: str, payload: Mapping[str, Any]) -> None:
        """Refuse what isn't enforced elsewhere: here every task's type hints are."""
        name = validate_task_type(task_type)
        if not isinstance(payload, Mapping):
            kind = type(payload).__name__
            message = f"{name} was not submitted: the payload is of type {kind}; a mapping of arguments is needed."
            raise ValidationError(message)
        task = self.app.tasks.get(name)
        declared = task.declared if isinstance(task, OrchestraTask) else self._published(name)
        if declared.arguments is not None:
            declared.arguments.check(name, (), payload)
        check_payload((), payload, max_bytes=self.app.limits.max_bytes, max_depth=self.app.limits.max_depth)

    def _published(self, name: str) -> Any:  # Declared
        declared = self.app.catalogue.find(name)
        if declared is None:  # its agent may have joined since the catalogue was read
            self.app.catalogue.forget()
            declared = self.app.catalogue.find(name)
        if declared is not None:
            return declared
        known = {one for one in (*self.app.tasks, *self.app.catalogue.names()) if not one.startswith("celery.")}
        nearest = tuple(get_close_matches(name, sorted(known), n=_NEAREST))
        hint = f"did you mean {', '.join(nearest)}?" if nearest else "is an agent that knows it running?"
        message = f"No task named {name} is known: {hint}"
        raise UnknownTaskError(message, task_type=name, nearest=nearest)

    def _options(
        self,
        timeout: float | None,
        countdown: float | None,
        eta: datetime | None,
        expires: float | datetime | None,
    ) -> dict[str, Any]:
        """Return the options in Celery's words, checked."""
        if countdown is not None and eta is not None:
            message = "Give countdown= or eta=, not both."
            raise ValidationError(message)
        limit = validate_timeout(timeout, max_seconds=self.app.settings.max_timeout_seconds)
        return {
            "soft_time_limit": limit,
            "time_limit": None if limit is None else limit + GRACE_SECONDS,
            "countdown": validate_delay(countdown),
            "eta": eta,
            "expires": expires if isinstance(expires, (datetime, timedelta)) else validate_delay(expires),
        }

    def handle(self, task_id: str) -> TaskHandle:
        """Return the handle of a task that was submitted before, here or elsewhere."""
        return TaskHandle(task_id, self.app)

    def agents(self) -> list[Agent]:
        """Return every agent that is known, by name; the lost ones aren't `alive`."""
        return self._manager.agents()

    def drain(self, names: Iterable[str], *, timeout_seconds: float | None = None) -> dict[str, int]:
        """
        Let agents take no more tasks, and wait until they have finished those that they fetched; they stay up.

        A name is `text@host`, or `text` alone for every `text@…`; `*` and `?` stand for any text and any character.

        Returns:
            For each agent how many tasks it still has in hand: 0, unless `timeout_seconds` came first.

        Raises:
            ValidationError: no live agent has one of the names; it tells the nearest.

        """
        return self._manager.drain(names, timeout_seconds=timeout_seconds)

    def resume(self, names: Iterable[str]) -> list[str]:
        """Let drained agents take tasks again; return their names."""
        return self._manager.resume(names)

    def queues(self) -> list[QueueInfo]:
        """Return the capability queues, with the messages that wait in each and the live agents that serve it."""
        return self._queues(self.agents())

    def _queues(self, agents: list[Agent]) -> list[QueueInfo]:
        names = {self.app.queue_names.default: "general"}
        for suffix in self.app.registry.queues():
            queue = CapabilityQueue.from_suffix(suffix)
            names[self.app.queue_names.name(queue)] = queue.requirement.text
        depths = self.app.registry.depths(list(names), steps=self.app.priority_steps)
        return [
            QueueInfo(
                name=name,
                requires=requires,
                depth=depth,
                agents=tuple(agent.name for agent in agents if agent.alive and name in agent.queues),
            )
            for (name, requires), depth in sorted(zip(names.items(), depths, strict=True))
        ]

    def health(self) -> Health:
        """
        Tell whether the fleet can work: Redis answers, an agent lives, and nothing waits where no live agent looks.

        It never raises: an unreachable Redis is a finding.
        """
        started = perf_counter()
        try:
            self.app.store.command("PING")
            redis_ms = (perf_counter() - started) * 1000
            agents = self.agents()
            queues = self._queues(agents)
        except AgentOrchestraException as error:
            return Health(ok=False, redis_ms=None, agents=0, waiting=0, unserved=(), problems=(str(error),))
        alive = sum(agent.alive for agent in agents)
        unserved = tuple(queue.name for queue in queues if queue.depth and not queue.agents)
        problems = [f"{name} has waiting tasks and no live agent" for name in unserved]
        if not alive:
            problems.append("no live agent")
        return Health(
            ok=not problems,
            redis_ms=redis_ms,
            agents=alive,
            waiting=sum(queue.depth for queue in queues),
            unserved=unserved,
            problems=tuple(problems),
        )
