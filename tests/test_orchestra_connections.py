"""The engine as a context manager, and what it and its app do with connections."""

from collections.abc import Iterator
from typing import Any

import pytest
from redis import Redis

from orchestra.orchestra import Orchestra
from orchestra.types import TaskState
from tests.fleets import app_at, quick


@pytest.fixture
def app(redis_url: str) -> Iterator[Any]:
    """Give an app with a task."""
    with app_at(redis_url) as app:
        declare(app)
        yield app


def declare(app: Any) -> None:
    """Let an app have a task."""

    @app.task(name="shop.index", requires={"nlp"}, shared=False)
    def index(number: int) -> int:
        return number


class TestContext:
    def test_leaving_it_ends_nothing(self, app: Any) -> None:
        """After the `with` block the app goes on, and so does another app at the same URL."""
        with Orchestra(app) as orchestra:
            first = orchestra.submit("shop.index", {"number": 1})

        second = orchestra.submit("shop.index", {"number": 2})
        assert {TaskState.SUBMITTED} == {first.state, second.state}

    def test_leaving_it_disconnects_what_is_idle(self, app: Any, redis_url: str) -> None:
        """Idle connections are closed; one that is in use stays."""
        with Redis.from_url(redis_url) as client:
            before = len(client.client_list())
            with app.pool.acquire() as used:
                used.default_channel.client.ping()
                with Orchestra(app) as orchestra:
                    app.send_task("celery.any")
                assert used.default_channel.client.ping()
                assert before < len(client.client_list())
            assert orchestra.app is app

    def test_an_app_that_is_closed(self, redis_url: str) -> None:
        """Closing an app closes its connections; it may be used again, as may others at the same URL."""
        with app_at(redis_url) as other, app_at(redis_url, settings=quick()) as app:
            declare(app)
            Orchestra(app).submit("shop.index", {"number": 1})
            app.close()

            assert TaskState.SUBMITTED is Orchestra(app).submit("shop.index", {"number": 1}).state
            assert other.send_task("celery.any").id
