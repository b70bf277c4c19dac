"""What a call's policy does to it before it is sent, where nobody can run it."""

from typing import Any

from orchestra.capabilities import Requirement
from orchestra.patience import Patience
from orchestra.submission import Call, Prepared
from orchestra.task_router import ROUTING_OPTIONS
from orchestra.unroutable import FALLBACK_HEADER, POLICY_HEADER, WAIT, Fallback, Raise, UnroutablePolicy, text_of_policy

__all__ = ["apply_policy"]


def apply_policy(
    app: Any,  # OrchestraCelery, which is built on this
    call: Call,
    prepared: Prepared,
    options: dict[str, Any],
    patience: Patience,
    *,
    again: bool,
) -> None:
    """
    Do what a call's policy says, in Celery's `options` of it.

    The policy travels in a header, for the next attempt and for whoever sweeps the queues. `again` is for what an agent
    sends by itself: nobody could answer an error then, which is why only who submits gets one.

    Raises:
        NoCapableAgentError: nobody can run it, and the policy says to raise.
        BrokerUnavailableError: Redis can't be asked, for as long as there is `patience`.

    """
    policy = _policy(app, call, prepared)
    if policy == WAIT and call.on_unroutable is None:
        return
    headers = options["headers"] = {**(options.get("headers") or {}), POLICY_HEADER: text_of_policy(policy)}
    if not isinstance(policy, (Raise, Fallback)) or (again and isinstance(policy, Raise)):
        return
    requirement = _requirement(app, call, prepared, options)
    if requirement is None:
        return
    other = app.routability.fallback_for(call.task, requirement, policy, patience)
    if other is not None:
        options["queue"] = app.queue_names.name_for(other)
        headers[FALLBACK_HEADER] = requirement.text


def _policy(app: Any, call: Call, prepared: Prepared) -> UnroutablePolicy:
    if prepared.on_unroutable is not None:
        return prepared.on_unroutable
    default: UnroutablePolicy = WAIT if call.task.startswith("celery.") else app.default_policy
    return default


def _requirement(app: Any, call: Call, prepared: Prepared, options: dict[str, Any]) -> Requirement | None:
    """Return the requirement by which a call is routed; None for one that somebody has routed himself."""
    if not app.is_on_redis:
        return None
    if prepared.requires is not None:
        return prepared.requires
    if any(options.get(option) for option in ROUTING_OPTIONS):
        return None
    route = app.amqp.router.route(dict(options), call.task, call.args, call.kwargs, options.get("task_type"))
    text = app.queue_names.requires(str(getattr(route.get("queue"), "name", "")))
    return Requirement.parse(text) if text else None
