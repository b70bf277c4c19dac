"""What every way of sending a task goes through, in an app of ours: checked, routed, claimed, and sent."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from math import inf
from typing import Any, Final
from uuid import uuid4

from orchestra.backend import StopBound
from orchestra.broker import make_repeatable, named_broker, patience_of
from orchestra.claims import Claim, claim_of, refuse_other_payload
from orchestra.exceptions import ValidationError
from orchestra.followers import followers_of
from orchestra.invariants import refuse_serializer
from orchestra.logging_utils import get_logger
from orchestra.parts import Parts
from orchestra.patience import Patience
from orchestra.publishing import PublishId, Sample
from orchestra.short_way import ShortWay, Way
from orchestra.submission import Call, Declared, Prepared, complete_signatures, plain, prepare
from orchestra.task import OrchestraTask
from orchestra.task_router import BY_INNER_TASK
from orchestra.templates import Holes, are_flat
from orchestra.unroutable_calls import apply_policy

__all__ = ["Sending"]

_SIGNATURE_OPTIONS: Final = ("link", "link_error", "chain", "chord")

log = get_logger(__name__)


class Sending(Parts):
    """How an app sends: Celery's `send_task`, behind our checks."""

    def send_task(
        self,
        name: str,
        args: Any = None,
        kwargs: Any = None,
        countdown: Any = None,
        eta: Any = None,
        task_id: Any = None,
        *more: Any,
        requires: Any = None,
        urgency: Any = None,
        on_unroutable: Any = None,
        unique: Any = None,
        idempotency_key: Any = None,
        **options: Any,
    ) -> Any:  # Celery's signature
        """
        Send a task by its name; every way of sending passes here.

        Raises:
            ValidationError: the call doesn't fit what the task declares, by its code or the fleet's catalogue.
            NoCapableAgentError: no agent can run it, and its policy for that is `raise`.
            IdempotencyError: the key stands for a task with other arguments.
            QueueFullError: too many tasks wait in its queue already.
            SubmissionError: Redis can't be reached in time; it tells host, port, and if the task may be enqueued.

        """
        refuse_serializer(name, options)
        follows_up = self._follows_up()
        is_short = not (countdown or eta or more or follows_up) and self.short_way.takes(name, args, kwargs, options)
        if follows_up and urgency is not None:
            options["priority"] = None  # Celery hands a parent's priority to its followers
        call = Call(
            task=name,
            args=args if isinstance(args, (list, tuple)) else tuple(args or ()),
            kwargs=kwargs or {},
            requires=requires,
            urgency=urgency,
            on_unroutable=on_unroutable,
            priority=options.get("priority"),
            queue=options.get("queue"),
        )
        patience = self._patience_of(options, follows_up=follows_up)
        publish_id, given_id, task_id = PublishId.new(), task_id, task_id or str(uuid4())
        again = follows_up or bool(options.get("retries"))  # whose task's own message is acknowledged later
        if not again:  # so that a replica has either that message or these
            publish_id.replicas = self.settings.confirm_replicas
        with named_broker(name, self.broker_location, task_id=task_id, publish_id=publish_id):
            declared = self._declared_in_time(name, patience)
            prepared = prepare(call, declared, self.limits, enforce=declared.enforced and not follows_up)
            self._remark(name, prepared.remarks)
            self._apply(prepared, options, inherits=urgency is None and declared.urgency is None)
            apply_policy(self, call, prepared, options, patience, again=again)
            publish_id.most_waiting = 0 if again else self._most_waiting(name, declared)
            publish_id.claim = self._claimed(call, declared, options, unique, idempotency_key)
            is_flat = is_short and are_flat(call.args, call.kwargs)
            if not is_flat:
                carried = [args, kwargs, *(options.get(option) for option in _SIGNATURE_OPTIONS)]
                complete_signatures(carried, lambda task: self._declared_in_time(task, patience).requires)
            way = self._way(name, declared, options, patience) if is_short else None
            if way is not None:
                publish_id.patience = patience
                result = self._send_by(way, call, task_id, publish_id, options, is_flat=is_flat)
            else:
                make_repeatable(options, publish_id, patience, self.conf)
                publish_id.was_noted = follows_up
                publish_id.followers = followers_of(
                    task_id, options.get("chain"), options.get("chord"), next_only=follows_up
                )
                result = super().send_task(name, args, kwargs, countdown, eta, task_id, *more, **options)
        if publish_id.claim is not None:
            self._reconcile(name, result, publish_id, given_id)
        return result

    def _claimed(
        self, call: Call, declared: Declared, options: Mapping[str, Any], unique: Any, idempotency_key: Any
    ) -> Claim | None:
        """Return what a call claims; a further attempt of a task has what the first one did."""
        asked = unique is not None or idempotency_key is not None or declared.unique is not None
        if not asked or options.get("retries"):
            return None
        return self._claim(call, declared, options, unique, idempotency_key)

    def _reconcile(self, name: str, result: Any, publish_id: PublishId, given_id: str | None) -> None:
        """Have a handle be that of the task which has what this one claimed; refuse one with other arguments."""
        publish_id.hand_over(result)
        refuse_other_payload(name, publish_id.standing)
        if publish_id.standing is not None and given_id not in {None, publish_id.standing.task_id}:
            self.backend.mark_as_revoked(given_id, f"a duplicate of {publish_id.standing.task_id}")

    @cached_property
    def short_way(self) -> ShortWay:
        """What sends the calls whose message is alike but for ids and arguments."""
        return ShortWay(self, self.wires)

    def _way(self, name: str, declared: Declared, options: Mapping[str, Any], patience: Patience) -> Way | None:
        def make(sample: Sample) -> None:
            given = {**options, "add_to_parent": False, "result_cls": None}
            make_repeatable(given, sample, patience, self.conf)
            super(Sending, self).send_task(name, task_id=str(uuid4()), **given)

        routed_by = None if declared.requires is None else declared.requires.text
        return self.short_way.way(name, options, make, routed_by=routed_by)

    def _send_by(
        self, way: Way, call: Call, task_id: str, publish_id: PublishId, options: Mapping[str, Any], *, is_flat: bool
    ) -> Any:  # AsyncResult
        """Send a call the short way, and do what Celery's `send_task` does beside sending."""
        parent = self.current_worker_task
        holes = self._holes(parent, task_id, publish_id)
        message = way.template.filled(call.args, call.kwargs, holes, is_flat=is_flat)
        self.short_way.send(way, [(task_id, publish_id, message)], publish_id)
        result = (options.get("result_cls") or self.AsyncResult)(task_id)
        result.ignored = options.get("ignore_result")
        if parent is not None and options.get("add_to_parent", True):
            parent.add_trail(result)
        return result

    def _holes(self, parent: Any, task_id: str, tag: str) -> Holes:  # the task that sends it, if one does
        if parent is None:
            return Holes(task_id, task_id, None, self.thread_oid, tag)
        root_id, parent_id = parent.request.root_id or parent.request.id, parent.request.id
        return Holes(task_id, root_id, None if parent_id == task_id else parent_id, self.thread_oid, tag)

    def _most_waiting(self, name: str, declared: Declared) -> int:
        """Return how many tasks may wait where somebody submits this one; Celery's own are always let in."""
        if name.startswith("celery.") and name not in BY_INNER_TASK:
            return 0
        return self.settings.max_queue_depth if declared.max_queue_depth is None else declared.max_queue_depth

    def send_many(
        self, name: str, payloads: Sequence[Mapping[str, Any]], options: Mapping[str, Any]
    ) -> list[str] | None:
        """
        Send a task once for each payload, all of them checked before, in round trips of 500; return the tasks' ids.

        None where they have to be sent one by one: what `ShortWay` doesn't take, tasks whose project has a part in how
        they are sent, and what is sent by another task, which keeps track of it.

        Raises:
            NoCapableAgentError: no agent can run them, and the policy for that is `raise`.
            FullQueueError: the queue has no room for all.
            LostBatchError: Redis can't be reached in time, or refused a message.

        """
        task: Any = self.tasks.get(name)
        given = self._given_to_many(task, options)
        if given is None or self.current_worker_task is not None:
            return None
        own = {option: given.pop(option, None) for option in ("requires", "urgency", "on_unroutable")}
        call = Call(task=name, args=(), kwargs={}, priority=given.get("priority"), queue=given.get("queue"), **own)
        if not self.short_way.takes(name, (), {}, given):
            return None
        patience = self._patience_of(given, follows_up=False)
        declared = self._declared_in_time(name, patience)
        if declared.unique is not None:
            return None
        prepared = prepare(call, replace(declared, arguments=None), self.limits, enforce=False)
        self._apply(prepared, given, inherits=own["urgency"] is None and declared.urgency is None)
        apply_policy(self, call, prepared, given, patience, again=False)
        way = self._way(name, declared, given, patience)
        if way is None:
            return None
        made = partial(self._made, way, revives=bool(task is not None and declared.enforced and task.arguments.revives))
        return self.short_way.send_many(
            way,
            map(made, payloads),
            most_waiting=self._most_waiting(name, declared),
            replicas=self.settings.confirm_replicas,
        )

    def _given_to_many(self, task: Any, options: Mapping[str, Any]) -> dict[str, Any] | None:  # any task, or None
        if task is None:
            return dict(options)
        if not isinstance(task, OrchestraTask) or not task.is_sent_plainly:
            return None
        by_urgency = task.urgency is not None or options.get("urgency") is not None
        return task.sent_with({"priority": None, **options} if by_urgency else options)

    def _made(self, way: Way, payload: Mapping[str, Any], *, revives: bool) -> tuple[str, str, str]:
        """Return the message of one payload, behind its task's id and its own."""
        task_id, tag = str(uuid4()), str(uuid4())
        kwargs = plain(payload) if revives else dict(payload)
        is_flat = are_flat((), kwargs)
        if not is_flat:
            complete_signatures(kwargs, lambda task: self.declared(task).requires)
        return task_id, tag, way.template.filled((), kwargs, self._holes(None, task_id, tag), is_flat=is_flat)

    def _claim(self, call: Call, declared: Declared, options: Mapping[str, Any], unique: Any, key: Any) -> Claim | None:
        """Return what a call claims, which somebody has to be able to keep."""
        claim = claim_of(
            call.task,
            call.args,
            call.kwargs,
            declared,
            idempotency_key=key,
            unique=unique,
            keys=self.store.keys,
            key_seconds=self.settings.idempotency_seconds,
        )
        if claim is not None and options.get("chord") is not None:
            message = (
                f"{call.task} was not submitted: a chord would wait for ever for a part that is another call's task. "
                "Leave idempotency_key= out, and give unique=False where the task declares it."
            )
            raise ValidationError(message)
        return claim if self.is_on_redis else None

    def _apply(self, prepared: Prepared, options: dict[str, Any], *, inherits: bool) -> None:
        """Say what was prepared in Celery's words; `inherits` where a parent's priority may come before ours."""
        if prepared.requires is not None:
            options["queue"] = self.queue_names.name_for(prepared.requires)
            options["headers"] = {**(options.get("headers") or {}), "requires": prepared.requires.text}
        inherits = inherits and self.current_worker_task is not None and self.conf.task_inherit_parent_priority
        if prepared.priority is not None and not inherits:
            options["priority"] = prepared.priority

    def _patience_of(self, options: Mapping[str, Any], *, follows_up: bool) -> Patience:
        """Return how long to try; what follows a task is tried until Redis is back, or the agent has to stop."""
        seconds = self.settings.connect_timeout_seconds
        if follows_up:
            return Patience(inf, told=StopBound(seconds), until_taken=True)
        return patience_of(options, seconds)

    def _declared_in_time(self, name: str, patience: Patience) -> Declared:
        declared = patience.insist(lambda: self.declared(name))
        if patience.was_tried:
            pool: Any = self.pool
            pool.disconnect()  # its idle connections are as old as the one that was lost, and so are the wires
            self.wires.drop_idle()
        return declared

    def _follows_up(self) -> bool:
        """
        Tell whether Celery itself is sending what follows a task: the rest of a chain, a callback, a chord's body.

        A mismatch there isn't the sender's error: the follower fails on its agent, where its errbacks see it.
        """
        task = self.current_worker_task
        return task is not None and getattr(task.request, "performed", False)

    def _remark(self, name: str, remarks: ValidationError | None) -> None:
        if remarks is not None and name not in self._remarked:
            self._remarked.add(name)
            log.warning("arguments don't fit type hints", task=name, error=str(remarks))

    @cached_property
    def _remarked(self) -> set[str]:
        return set()
