"""Apps and agents within the test's own process, as unit tests of the Celery floor need them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery import Celery, signals
from celery import _state as celery_state
from celery.contrib.testing.worker import start_worker
from celery.worker import state as worker_state
from redis import Redis

from orchestra.app import OrchestraCelery
from orchestra.config import OrchestraSettings, load_settings
from orchestra.store import text_of

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
    """Run an agent in a thread of this process; one at a time, since Celery keeps much of it in globals."""
    known: Any = celery_state  # celery-types leaves most of it out
    current, default = known._tls.current_app, known.default_app
    signals.setup_logging.connect(_leave_logging_alone)
    try:
        with start_worker(app, perform_ping_check=False, hostname=name, capabilities=capabilities, **options) as worker:
            yield worker
            used = list(app._backends)  # the agent's thread takes its own with it
            worker_state.should_terminate = 0  # type: ignore[assignment]  # an exit code
            _wake(app)
        for backend in used:
            if hasattr(backend, "disconnect"):
                backend.disconnect()
    finally:
        signals.setup_logging.disconnect(_leave_logging_alone)
        known._set_current_app(current)
        known.set_default_app(default)


def _wake(app: Any) -> None:
    """End the agent's look at its queues, which it would else wait out before it stops."""
    for line in text_of(app.store.command("CLIENT", "LIST")).splitlines():
        client = dict(field.split("=", 1) for field in line.split())
        if client["cmd"] == "brpop":
            app.store.command("CLIENT", "UNBLOCK", client["id"])


def _leave_logging_alone(**_: Any) -> None:
    """Keep Celery from replacing the handlers that pytest has set."""


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
