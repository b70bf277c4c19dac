"""What a task may ask, and have done, while it runs."""

from collections.abc import Iterator
from typing import Any

import pytest
from celery.exceptions import TaskRevokedError

from orchestra.exceptions import RetryableError, ValidationError
from orchestra.orchestra import Orchestra
from orchestra.types import Cancelled, TaskState
from tests.fleets import agent_of, app_at
from tests.processes import until
from tests.test_effects import paid


@pytest.fixture
def app(redis_url: str) -> Iterator[Any]:
    """Give an app."""
    with app_at(redis_url) as app:
        yield app


class TestCancelled:
    def test_is_seen(self, app: Any) -> None:
        """A running task sees that it was cancelled, and what it returns then is dropped."""
        begun: list[bool] = []

        @app.task(name="shop.crawl", bind=True, shared=False)
        def crawl(self: Any) -> str:
            begun.append(self.cancelled)
            until(lambda: self.cancelled, seconds=30)
            return "done"

        handle = Orchestra(app).submit("shop.crawl", {})
        with agent_of(app):
            until(lambda: begun)
            assert Cancelled.RUNNING is handle.cancel()
            with pytest.raises(TaskRevokedError):
                handle.get(timeout=20)
        assert ([False], TaskState.CANCELLED) == (begun, handle.state)

    @pytest.mark.parametrize("eager", [False, True])
    def test_where_nobody_can_cancel(self, app: Any, eager: bool) -> None:
        """A task that is called as a function, or eagerly, isn't cancelled."""

        @app.task(name="shop.crawl", bind=True, shared=False)
        def crawl(self: Any) -> bool:
            return bool(self.cancelled)

        assert not (crawl.apply().get() if eager else crawl())


class TestOnce:
    def test_through_retries(self, app: Any) -> None:
        """Further attempts of a task have its effect behind them."""

        @app.task(name="shop.pay", bind=True, max_attempts=3, shared=False)
        def pay(self: Any) -> Any:
            receipt = self.once("pay", paid)
            if self.request.retries < 2:
                raise RetryableError("the printer is out of paper", retry_after=0)
            return receipt

        with agent_of(app):
            assert {"receipt": "A7"} == pay.delay().get(timeout=20)
        assert b"1" == app.store.command("GET", "balance")

    def test_called_as_a_function(self, app: Any) -> None:
        """Without a task's id there's nothing to remember an effect by, and the error says so."""

        @app.task(name="shop.pay", bind=True, shared=False)
        def pay(self: Any) -> Any:
            return self.once("pay", paid)

        with pytest.raises(ValidationError, match="called as a function"):
            pay()
