"""What an agent has in hand and what another server has for it."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from celery.worker import state as worker_state

from orchestra.exceptions import BrokerUnavailableError
from orchestra.leases import Lease, LeaseHolder
from orchestra.stocktaking import take_stock
from tests.stores import store_at
from tests.transit import Transit, transit_at


@pytest.fixture
def transit(redis_url: str) -> Iterator[Transit]:
    """Give the shop's messages."""
    with transit_at(redis_url) as transit:
        yield transit


class Running:
    """Stands for Celery's request of a task that runs."""

    def __init__(self, lease: Lease) -> None:
        self.message = SimpleNamespace(delivery_tag=str(lease))


class TestTakeStock:
    @pytest.fixture
    def ended(self, transit: Transit) -> tuple[LeaseHolder, Lease]:
        """Give an agent's holder, and a started lease of which it has nothing in hand any more."""
        holder = LeaseHolder(agent="text@a")
        lease = transit.lease(holder, "letter")
        transit.start(lease)
        return holder, lease

    def test_on_another_server(self, transit: Transit, ended: tuple[LeaseHolder, Lease]) -> None:
        """What the next server has running for an agent that is done with it runs again; the first server has none."""
        holder, lease = ended

        assert set() == take_stock(transit.store, holder, "first")
        assert set() == take_stock(transit.store, holder, "first")
        assert {lease.number} == take_stock(transit.store, holder, "second")
        assert ["letter"] == transit.waiting()

    def test_on_a_server_that_does_not_tell(self, transit: Transit, ended: tuple[LeaseHolder, Lease]) -> None:
        """One that may not be asked for its name may be another one each time."""
        holder, lease = ended

        assert set() == take_stock(transit.store, holder, "")
        assert {lease.number} == take_stock(transit.store, holder, "")

    def test_what_runs_goes_on(self, transit: Transit, ended: tuple[LeaseHolder, Lease]) -> None:
        """A task that runs is in hand, whichever server has its lease."""
        holder, lease = ended
        take_stock(transit.store, holder, "first")
        running = Running(lease)
        worker_state.active_requests.add(running)
        try:
            assert set() == take_stock(transit.store, holder, "second")
        finally:
            worker_state.active_requests.discard(running)

        assert {f"leases:{holder.name}"} == transit.places("letter")

    def test_where_the_server_is_gone_again(self, transit: Transit, ended: tuple[LeaseHolder, Lease]) -> None:
        """What couldn't be asked this time is asked the next time."""
        holder, lease = ended
        holder.server = "first"
        with store_at("redis://127.0.0.1:1/0") as nowhere, pytest.raises(BrokerUnavailableError):
            take_stock(nowhere, holder, "second")

        assert {lease.number} == take_stock(transit.store, holder, "second")
