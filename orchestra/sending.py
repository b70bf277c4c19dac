"""What every way of sending a task goes through, in an app of ours: checked, routed, claimed, and sent."""

from collections.abc import Mapping
from math import inf
from typing import Any, Final
from uuid import uuid4

from kombu.utils.objects import cached_property

from orchestra.backend import StopBound
from orchestra.broker import make_repeatable, named_broker, patience_of
from orchestra.claims import Claim, claim_of, refuse_other_payload
from orchestra.exceptions import ValidationError
from orchestra.followers import followers_of
from orchestra.invariants import refuse_serializer
from orchestra.logging_utils import get_logger
from orchestra.parts import Parts
from orchestra.patience import Patience
from orchestra.publishing import PublishId
from orchestra.submission import Call, Declared, Prepared, complete_signatures, prepare
from orchestra.task_router import BY_INNER_TASK
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
        if follows_up and urgency is not None:
            options["priority"] = None  # Celery hands a parent's priority to its followers
        call = Call(
            task=name,
            args=tuple(args or ()),
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
            if unique is not None or idempotency_key is not None or declared.unique is not None:
                first = not options.get("retries")  # a further attempt of a task has what that claimed
                publish_id.claim = self._claim(call, declared, options, unique, idempotency_key) if first else None
            make_repeatable(options, publish_id, patience, self.conf)
            publish_id.was_noted = follows_up
            if options.get("chain") or options.get("chord"):
                publish_id.followers = followers_of(
                    task_id, options.get("chain"), options.get("chord"), next_only=follows_up
                )
            carried = [args, kwargs, *(options.get(option) for option in _SIGNATURE_OPTIONS)]
            complete_signatures(carried, lambda task: self._declared_in_time(task, patience).requires)
            result = super().send_task(name, args, kwargs, countdown, eta, task_id, *more, **options)
        if publish_id.claim is not None:
            publish_id.hand_over(result)
            refuse_other_payload(name, publish_id.standing)
            if publish_id.standing is not None and given_id not in {None, publish_id.standing.task_id}:
                self.backend.mark_as_revoked(given_id, f"a duplicate of {publish_id.standing.task_id}")
        return result

    def _most_waiting(self, name: str, declared: Declared) -> int:
        """Return how many tasks may wait where somebody submits this one; Celery's own are always let in."""
        if name.startswith("celery.") and name not in BY_INNER_TASK:
            return 0
        return self.settings.max_queue_depth if declared.max_queue_depth is None else declared.max_queue_depth

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
        inherits = inherits and self.conf.task_inherit_parent_priority and self.current_worker_task is not None
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
            pool.disconnect()  # its idle connections are as old as the one that was lost
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
