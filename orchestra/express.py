"""The short way of an agent whose tasks are short: many begin in one step, run by turns, and end in one step."""

import logging
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from math import inf
from threading import Event, Thread
from typing import Any, Final

from celery.app.trace import LOG_RECEIVED, trace_task
from celery.exceptions import Reject
from celery.utils.imports import symbol_by_name
from celery.worker import state as worker_state
from celery.worker.request import create_request_cls  # type: ignore[attr-defined]  # newer than the stubs
from redis.exceptions import RedisError

from orchestra.backend import StopBound
from orchestra.exceptions import AgentOrchestraException
from orchestra.leases import Lease, LeaseHolder
from orchestra.logging_utils import get_logger
from orchestra.patience import Patience
from orchestra.rides import Ride, Slice, reason_against_message, reason_against_task, ride_of
from orchestra.state import LEGAL
from orchestra.store import Argument, text_of
from orchestra.types import TaskState

__all__ = ["ExpressLane"]

SLICE_SECONDS: Final = 0.02  # of work between two looks at everything else
HELD_UP_SECONDS: Final = 0.05  # that a task may hold up what is behind it
_CELERY_LOGGER: Final = logging.getLogger("celery.worker.strategy")

log = get_logger(__name__)


class ExpressLane:
    """
    The short way from messages to user code and back, in the thread of the consumer.

    A slice of messages begins by one script, which is what says that their tasks are ours to run; their results, their
    records and the ends of their leases follow by another one. In between no task has cost a round trip. What isn't
    plain takes Celery's own way: `counts` tells how many took which.

    A task that takes longer than expected holds up what has begun with it. A thread sees that, tells the results that
    wait, and has the others go back to their queues; one that holds Python's lock holds up that thread as well.
    """

    def __init__(self, consumer: Any) -> None:  # OrchestraConsumer
        self.counts: Counter[str] = Counter()
        self._consumer = consumer
        self._app = consumer.app
        self._holder: LeaseHolder = consumer.controller.lease_holder
        self._pending: deque[Ride] = deque()
        self._slice = Slice()
        self._means: dict[str, float] = {}
        self._scheduled = False
        self._ended = Event()
        self._watch = Thread(target=self._watch_slices, name="express-watch", daemon=True)
        self._reasons = {name: reason_against_task(task, self._app) for name, task in self._app.tasks.items()}
        self._watch.start()

    # ── from the transport ──

    @property
    def waiting(self) -> int:
        """How many messages wait here, leased and not begun."""
        return len(self._pending)

    @property
    def running(self) -> int:
        """How many tasks have begun, and have not been told of since."""
        one = self._slice
        return len(one.rest) + len(one.done) + (one.since != inf)

    def take(self, channel: Any, payload: Mapping[str, Any], lease: Lease) -> bool:
        """Take a message, unless it isn't plain; tell whether it was taken."""
        name = payload["headers"].get("task")
        reason = self._reasons.get(name, "unknown") or reason_against_message(
            payload, is_limited=self._consumer.task_buckets.get(name) is not None
        )
        ride = None if reason else ride_of(self._app.tasks[name], channel, payload, lease)
        if ride is None:
            self.counts[reason or "body"] += 1
            self.work_off()  # what came before it is to run before it
            return False
        self.counts["express"] += 1
        self._pending.append(ride)
        self._schedule()
        return True

    def forget(self, numbers: set[int]) -> None:
        """Let go of messages whose leases were given back."""
        self._pending = deque(ride for ride in self._pending if ride.lease.number not in numbers)

    # ── work ──

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._consumer.hub.call_later(0, self._work)

    def _work(self) -> None:
        self._scheduled = False
        self._work_slice()
        if self._pending:
            self._schedule()

    def work_off(self) -> None:
        """Run all that waits here."""
        while self._pending:
            self._work_slice()

    def _work_slice(self) -> None:
        """Run as much as takes the time of a slice, as far as is known."""
        if self._holder.stopping():
            self._pending.clear()  # what has not begun goes back with all that the agent has
            return
        begun = self._begun(self._next_slice())
        self._slice.rest.extend(begun)
        try:
            while (ride := self._next()) is not None:
                self._run(ride)
        finally:
            self._slice.since = inf
            self._give_back(self._taken_rest())
            self._tell(self._taken_done())

    def _next_slice(self) -> list[Ride]:
        """Take tasks off those that wait: of a kind that is new here one, and no more than fit into a slice's time."""
        chosen: list[Ride] = []
        seconds = 0.0
        while self._pending:
            mean = self._means.get(self._pending[0].task.name, SLICE_SECONDS)
            if chosen and seconds + mean > SLICE_SECONDS:
                break
            seconds += mean
            chosen.append(self._pending.popleft())
        return chosen

    def _begun(self, chosen: Sequence[Ride]) -> list[Ride]:
        """Begin tasks; return those that are ours to run."""
        if not chosen:
            return []
        self._holder.began()
        keys, settings = self._app.store.keys, self._app.settings
        words: list[Argument] = []
        for ride in chosen:
            words += (
                ride.lease.number,
                ride.lease.queue,
                ride.task_id,
                ride.attempt,
                ride.task.name,
                self._counting(ride),
            )
        try:
            verdicts = self._app.store.run(
                "begin_many",
                [keys.leases(self._holder.name)],
                [
                    *(keys.base, self._holder.name, self._consumer.hostname, _left_for(TaskState.RUNNING)),
                    *(int(settings.state_ttl_seconds * 1000), *words),
                ],
            )
        except AgentOrchestraException as error:
            log.warning("tasks not begun", tasks=len(chosen), error=str(error))
            for ride in reversed(chosen):
                self._holder.say("return", ride.lease)
            return []
        return [
            ride for ride, verdict in zip(chosen, map(text_of, verdicts), strict=True) if self._is_ours(ride, verdict)
        ]

    def _counting(self, ride: Ride) -> str:
        budget = None if ride.attempt > 1 else ride.task.retry_policy.budget
        return "" if budget is None else str(self._app.retry_budgets.counting(ride.task.name, budget))

    def _is_ours(self, ride: Ride, verdict: str) -> bool:
        """Tell whether a task may run; one that was cancelled, or has ended, takes the way on which that is told."""
        if verdict == TaskState.RUNNING:
            return True
        if verdict == "moved":
            log.info("task skipped", task_id=ride.task_id, reason="another agent has it")
        else:
            self._send_to_stock_way(ride)
        return False

    def _next(self) -> Ride | None:
        with self._slice.lock:
            if not self._slice.rest or self._holder.stopping():
                return None
            self._slice.since = time.monotonic()
            return self._slice.rest.popleft()

    def _taken_rest(self) -> list[Ride]:
        with self._slice.lock:
            rest, self._slice.rest = list(self._slice.rest), deque()
        return rest

    def _taken_done(self) -> list[Ride]:
        with self._slice.lock:
            done, self._slice.done = self._slice.done, []
        return done

    # ── one task ──

    def _run(self, ride: Ride) -> None:
        """Run a task; what goes wrong around it costs the others nothing, and has its message delivered again."""
        try:
            self._run_traced(ride)
        except Exception:
            log.exception("task not run", task=ride.task.name, task_id=ride.task_id, then="delivered again")
            self._holder.say("release", ride.lease)

    def _run_traced(self, ride: Ride) -> None:
        headers = ride.payload["headers"]
        worker_state.total_count[ride.task.name] += 1
        worker_state.all_total_count[0] += 1
        self._tell_of_begin(ride)
        traced, info, seconds, text = trace_task(
            ride.task, headers["id"], ride.args, ride.kwargs, self._request_of_trace(ride), app=self._app
        )
        ride.seconds = seconds or 0.0
        self._note(ride)
        if info:
            self._request_of(ride).on_success((1, traced, seconds))
            return
        if not ride.kept:  # stored by the backend's own way, as a part of a chord is
            self._request_of(ride).on_success((0, text, seconds))
        elif self._sends_events:
            self._consumer.event_dispatcher.send("task-succeeded", uuid=headers["id"], result=text, runtime=seconds)

    def _request_of_trace(self, ride: Ride) -> dict[str, Any]:
        kept = {"keep_success": lambda key, encoded: self._keep(ride, key, encoded)}
        return {**ride.request(self._consumer.hostname), **kept}

    def _keep(self, ride: Ride, key: str, encoded: str) -> None:
        """Keep a success, to be told with others."""
        ride.result, ride.kept = (key, encoded), True
        with self._slice.lock:
            self._slice.done.append(ride)

    def _note(self, ride: Ride) -> None:
        mean = self._means.get(ride.task.name)
        self._means[ride.task.name] = ride.seconds if mean is None else max(mean + (ride.seconds - mean) / 8, 1e-5)
        self._holder.pace.note(ride.seconds, ride.lease.queue)

    def _request_of(self, ride: Ride) -> Any:  # OrchestraRequest
        """Return the request that Celery's own way would have made, to answer what isn't a plain success."""
        message = ride.channel.Message(ride.payload, channel=ride.channel)
        ride.channel.qos.append(message, message.delivery_tag)
        eventer = self._consumer.event_dispatcher
        made = create_request_cls(
            symbol_by_name(ride.task.Request),
            ride.task,
            self._consumer.pool,
            self._consumer.hostname,
            eventer,
            app=self._app,
        )
        return made(
            message,
            on_ack=message.ack_log_error,
            on_reject=message.reject_log_error,
            app=self._app,
            hostname=self._consumer.hostname,
            eventer=eventer,
            task=ride.task,
            connection_errors=self._consumer.connection_errors,
            body=message.body,
            headers=message.headers,
            decoded=False,
        )

    def _send_to_stock_way(self, ride: Ride) -> None:
        message = ride.channel.Message(ride.payload, channel=ride.channel)
        ride.channel.qos.append(message, message.delivery_tag)
        self._consumer.handle_message(message)

    # ── events and logs ──

    @property
    def _sends_events(self) -> bool:
        eventer = self._consumer.event_dispatcher
        return bool(eventer and eventer.enabled and (not eventer.groups or "task" in eventer.groups))

    def _tell_of_begin(self, ride: Ride) -> None:
        """Tell of a task what Celery's own way tells before it runs."""
        headers = ride.payload["headers"]
        if _CELERY_LOGGER.isEnabledFor(logging.INFO):
            names = {"id": headers["id"], "name": ride.task.name, "eta": None}
            context = {**names, "args": headers.get("argsrepr"), "kwargs": headers.get("kwargsrepr")}
            _CELERY_LOGGER.info(LOG_RECEIVED, context, extra={"data": context})
        if not (self._sends_events and ride.task.send_events):
            return
        send = self._consumer.event_dispatcher.send
        send(
            "task-received",
            uuid=headers["id"],
            name=ride.task.name,
            args=headers.get("argsrepr"),
            kwargs=headers.get("kwargsrepr"),
            root_id=headers.get("root_id"),
            parent_id=headers.get("parent_id"),
            retries=headers.get("retries") or 0,
            eta=headers.get("eta"),
            expires=None,
        )
        send("task-started", uuid=headers["id"])

    # ── ends ──

    def _tell(self, done: Sequence[Ride]) -> None:
        """Store what has succeeded, however long Redis is away; an agent that has to stop has it run again."""
        if not done:
            return
        patience = Patience(inf, told=StopBound(self._app.settings.connect_timeout_seconds), until_taken=True)
        try:
            patience.insist(lambda: self._tell_once(done))
        except Reject:
            for ride in done:
                self._holder.say("release", ride.lease)

    def _tell_once(self, done: Sequence[Ride]) -> None:
        keys, settings, backend = self._app.store.keys, self._app.settings, self._app.backend
        words: list[Argument] = []
        for ride in done:
            words += (ride.lease.number, ride.lease.queue, ride.task_id, ride.attempt, ride.task.name, *ride.result)
        self._app.store.run(
            "finish_many",
            [keys.redelivered],
            [
                *(keys.base, self._holder.name, self._consumer.hostname, _left_for(TaskState.SUCCEEDED)),
                *(int(settings.state_ttl_seconds * 1000), int(backend.expires or 0), backend.success_prefix, *words),
            ],
        )

    def _give_back(self, rest: Sequence[Ride]) -> None:
        """Give back what had begun and wasn't run."""
        if not rest:
            return
        words: list[Argument] = []
        for ride in reversed(rest):
            words += (ride.lease.number, ride.lease.queue, ride.task_id, ride.attempt)
        ttl_ms = int(self._app.settings.state_ttl_seconds * 1000)
        try:
            self._app.store.run("unbegin_many", [], [self._app.store.keys.base, self._holder.name, ttl_ms, *words])
        except AgentOrchestraException as error:
            log.info("tasks not given back", tasks=len(rest), error=str(error), then="with the next news")
            for ride in reversed(rest):
                self._holder.say("return", ride.lease)

    # ── the thread beside ──

    def _watch_slices(self) -> None:
        while not self._ended.wait(HELD_UP_SECONDS):
            if time.monotonic() - self._slice.since > HELD_UP_SECONDS:
                self._relieve()

    def _relieve(self) -> None:
        """Take what a long task holds up off its hands."""
        rest, done = self._taken_rest(), self._taken_done()
        self._give_back(rest)
        if not done:
            return
        try:
            self._tell_once(done)
        except (AgentOrchestraException, RedisError, OSError) as error:
            log.info("results wait", tasks=len(done), error=str(error))
            with self._slice.lock:
                self._slice.done[:0] = done

    def stop(self) -> None:
        """Let go of what waits here, and end the thread."""
        self._pending.clear()
        self._ended.set()


def _left_for(state: TaskState) -> str:
    return f" {' '.join('-' if one is None else one.value for one in LEGAL[state])} "
