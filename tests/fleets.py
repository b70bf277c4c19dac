"""Apps and agents within the test's own process, as unit tests of the Celery floor need them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery import Celery
from redis import Redis

from orchestra.app import OrchestraCelery
from orchestra.config import OrchestraSettings, load_settings
from orchestra.local_agents import LocalAgent

__all__ = ["agent_of", "app_at", "commands_at", "quick", "stock_at"]


def quick(**settings: Any) -> OrchestraSettings:
    """Return settings under which nothing takes long."""
    return load_settings(**{"beat_seconds": 0.2, "connect_timeout_seconds": 2.0, **settings})


@contextmanager
def app_at(
    url: str | None, *, main: str | None = "shop", settings: OrchestraSettings | None = None, **options: Any
) -> Iterator[Any]:  # OrchestraCelery, whose tasks' options Celery's types don't know
    """Give an app with its broker at `url`, and close it with every connection that it holds."""
    app: Any = OrchestraCelery(main, broker=url, set_as_current=False, settings=settings or quick(), **options)
    try:
        yield app
    finally:
        app.close()


@contextmanager
def stock_at(url: str) -> Iterator[Any]:  # Celery, as above
    """Give a plain Celery app with its broker at `url`, and close it with its connections."""
    app: Any = Celery("stock", broker=url, set_as_current=False)
    try:
        yield app
    finally:
        for connection in app.pool._resource.queue:  # closing the pool would end it for later apps at this URL
            app.pool.collect_resource(connection)
        app.close()


@contextmanager
def agent_of(app: Any, capabilities: str | None = None, *, name: str = "agent@test", **options: Any) -> Iterator[Any]:
    """Run an agent in a thread of this process; give Celery's worker."""
    with LocalAgent.start(app, capabilities, name=name, **options) as agent:
        yield agent.worker


@contextmanager
def commands_at(url: str) -> Iterator[list[str]]:
    """Give a list that holds, at the end of the block, the commands that the server at `url` got from clients."""
    seen: list[str] = []
    with Redis.from_url(url) as marker, Redis.from_url(url) as watcher:
        marker.ping()
        with watcher.monitor() as monitor:
            yield seen
            marker.echo("the end")
            while (command := monitor.next_command())["command"] != "ECHO the end":
                if command["client_type"] != "lua":
                    seen.append(command["command"])
