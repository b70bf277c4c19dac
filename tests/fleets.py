"""Apps and agents within the test's own process, as unit tests of the Celery floor need them."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from celery import _state, signals
from celery.contrib.testing.worker import start_worker
from redis import Redis

from orchestra.app import OrchestraCelery
from orchestra.config import OrchestraSettings, load_settings

__all__ = ["agent_of", "app_at", "commands_of", "quick"]


def quick(url: str, **settings: Any) -> OrchestraSettings:
    """Return settings under which nothing takes long."""
    return load_settings(**{"beat_seconds": 0.2, "connect_timeout_seconds": 2.0, **settings})


@contextmanager
def app_at(url: str, *, main: str = "shop", settings: OrchestraSettings | None = None, **conf: Any) -> Iterator[Any]:
    """Give an app whose broker is at `url`, configured as a project would; close it and its connections."""
    app: Any = OrchestraCelery(
        main, broker=url, set_as_current=False, settings=settings or quick(url), changes={"worker_hijack_root_logger": False, **conf}
    )
    try:
        yield app
    finally:
        close(app)


def close(app: Any) -> None:
    """Close an app with every connection that it holds."""
    app.store.close_for_tests() if hasattr(app.store, "close_for_tests") else None
    app.close()


@contextmanager
def agent_of(app: Any, capabilities: str | None = None, *, name: str = "agent@test", **options: Any) -> Iterator[Any]:
    """Run an agent of `app` in a thread of this process; one at a time, since Celery keeps much of it in globals."""
    before = _state._tls.current_app, _state.default_app
    signals.setup_logging.connect(_leave_logging_alone)
    try:
        with start_worker(app, perform_ping_check=False, hostname=name, capabilities=capabilities, **options) as worker:
            yield worker
    finally:
        signals.setup_logging.disconnect(_leave_logging_alone)
        _state._set_current_app(before[0])
        _state.set_default_app(before[1])


def _leave_logging_alone(**_: Any) -> None:
    """Keep Celery from replacing the handlers that pytest has set."""
