"""What an agent has in hand and what Redis has for it, compared when it meets another process of Redis."""

from celery.worker import state as worker_state

from orchestra.exceptions import BrokerUnavailableError
from orchestra.leases import Lease, LeaseHolder, disown
from orchestra.logging_utils import get_logger
from orchestra.store import Store

__all__ = ["take_stock"]

log = get_logger(__name__)


def take_stock(store: Store, holder: LeaseHolder, server: str) -> set[int]:
    """
    Give back what a server has for an agent that was done with it, where this isn't the server that was told so.

    Redis's `server` names its process; '' is taken for another one each time. Call it on a new connection before
    anything else is said on it.

    Raises:
        BrokerUnavailableError: the server is gone again; the next connection asks again.

    """
    if holder.server is None or (server and server == holder.server):
        holder.server = server
        return set()
    former, told_of = holder.server, holder.changed_server(server)
    try:
        given = disown(store, holder, _running() | told_of)
    except BrokerUnavailableError:
        holder.server = former
        raise
    if given:
        log.warning("ends of tasks forgotten by redis", agent=holder.agent, tasks=len(given), then="run again")
    return given


def _running() -> set[int]:
    """Return the numbers of the leases whose tasks run now."""
    leases = (Lease.from_tag(request.message.delivery_tag) for request in list(worker_state.active_requests))
    return {lease.number for lease in leases if lease is not None}
