"""Calls under a breaker, started and reported by the scripts alone, as agents do it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from orchestra.breaker import Admission, BreakerPhase, BreakerState, CircuitBreaker, Said
from orchestra.breaker_policy import Breaker
from orchestra.leases import Begun, Lease, LeaseHolder, Start, start
from orchestra.state import advance_arguments
from orchestra.types import TaskState
from tests.processes import until
from tests.transit import QUEUE, Transit, transit_at

__all__ = ["API", "Call", "Circuit", "circuit_at"]

API = Breaker("api", failures=3, ratio=0.5, window=60, cooldown=60)


class Call(NamedTuple):
    """One call that was let in."""

    lease: Lease
    admission: Admission


class Circuit:
    """One breaker, and the messages of tasks that call by it."""

    def __init__(self, transit: Transit, policy: Breaker = API) -> None:
        self.transit = transit
        self.policy = policy
        self.breakers = CircuitBreaker(transit.store)
        self._numbers = iter(range(1, 1_000_000))

    # ── calls ──

    def ask(
        self, lease: Lease, *, on_open: str = "wait", once: bool = False, task_id: str = "1", attempt: int = 1
    ) -> Begun:
        """Start a leased task under the breaker."""
        record = advance_arguments(TaskState.RUNNING, ttl_seconds=60, agent="text@a", attempt=attempt)
        guard = (self.policy.name, self.policy.window, on_open, 30)
        return start(self.transit.store, lease, task_id, once=once, followed=False, record=record, guard=guard)

    def begin(self, holder: LeaseHolder, message: str = "", *, queue: str = "shop:calls", once: bool = False) -> Call:
        """Put a message, fetch it and start its task, which is let in."""
        lease = self.transit.lease(holder, message or f"call {next(self._numbers)}", queue=queue)
        return self.admitted(lease, self.ask(lease, once=once, task_id="one of the calls"))

    def begin_when_cool(self, holder: LeaseHolder) -> Call:
        """Begin a task that was fetched while the breaker was open, just when its cooldown is over."""
        lease = self.transit.lease(holder, "fetched before", queue="shop:calls")
        self.cool_down()
        return self.admitted(lease, self.ask(lease, task_id="one of the calls"))

    def fetched(self, holder: LeaseHolder) -> list[Lease]:
        """Fetch, and return the leases."""
        fetched = self.transit.fetch(holder)
        assert fetched is not None
        return [Lease(holder.name, one.number, one.queue) for one in fetched.deliveries]

    def admitted(self, lease: Lease, begun: Begun) -> Call:
        """Return the call that a start let in."""
        assert begun.verdict is Start.STARTED
        kind, epoch, _ = begun.told
        return Call(lease, Admission(self.policy.name, epoch, f"{lease.holder}:{lease.number}", kind == "probe", "1"))

    def park(self, holder: LeaseHolder, message: str, *, queue: str = QUEUE) -> None:
        """Have a message wait for the breaker, which is open."""
        assert self.ask(self.transit.lease(holder, message, queue=queue)).verdict is Start.PARKED

    def end(self, holder: LeaseHolder, call: Call, said: Said) -> BreakerPhase | None:
        """Tell what became of a call, and acknowledge its message."""
        changed = self.say(call, said)
        self.transit.say(holder, "settle", call.lease)
        return changed

    def say(self, call: Call, said: Said, *, may_run_again: bool = False) -> BreakerPhase | None:
        """Tell what a call says of the service; return what the breaker changed to."""
        return self.breakers.report(call.admission, said, self.policy, by="text@a", may_run_again=may_run_again).changed

    # ── the breaker ──

    def trip(self, holder: LeaseHolder) -> None:
        """Have it opened by as many failures as it takes."""
        for _ in range(self.policy.failures):
            self.end(holder, self.begin(holder), "failed")
        assert self.state.state is BreakerPhase.OPEN

    def cool_down(self) -> None:
        """Have the cooldown be over."""
        past = self.transit.now() - 1
        self.transit.client.hset(self.transit.keys.breaker(self.policy.name), "until", past)
        self.transit.client.zadd(self.transit.keys.due, {f"\n{self.policy.name}": past}, xx=True)

    def wait_out(self) -> None:
        """Wait until messages that were let out are waited for no more."""
        key = self.transit.keys.breaker(self.policy.name)
        ends = [float(end) for end in self.transit.client.hmget(key, "unparked_until", "handed_until") if end]
        until(lambda: self.transit.now() > max(ends, default=0))

    @property
    def state(self) -> BreakerState:
        """The breaker as it stands."""
        return next(state for state in self.breakers.states() if state.name == self.policy.name)

    def parked(self) -> list[str]:
        """Return the messages that wait for it, the first one first."""
        values: list[Any] = self.transit.client.zrange(self.transit.keys.parked(self.policy.name), 0, -1)
        return [value.decode().split("\n", 2)[2] for value in values]


@contextmanager
def circuit_at(url: str, policy: Breaker = API) -> Iterator[Circuit]:
    """Give a breaker on a server."""
    with transit_at(url) as transit:
        yield Circuit(transit, policy)
