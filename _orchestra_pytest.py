"""
The fixtures that pytest finds in every project that has Agent Orchestra installed.

They stand beside the package, not in it: importing anything from the package imports all of it, half a second that
pytest would spend in projects which use none of this. So the package is imported when a test asks for a fixture.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from orchestra.embedded import EmbeddedServer
    from orchestra.frozen_clock import FrozenClock
    from orchestra.local_agents import LocalAgent

__all__ = ["frozen_clock", "orchestra_agent", "orchestra_app", "orchestra_server", "orchestra_url"]


@pytest.fixture(scope="session")
def orchestra_server() -> "Iterator[EmbeddedServer]":
    """Give the session's own server; tests that ask for it are skipped where the extra `embedded` isn't installed."""
    from orchestra.embedded import EmbeddedServer
    from orchestra.exceptions import ConfigurationError

    try:
        server = EmbeddedServer.start()
    except ConfigurationError as error:
        pytest.skip(str(error))
    with server:
        yield server


@pytest.fixture
def orchestra_url(orchestra_server: "EmbeddedServer") -> str:
    """Give the address of a Redis that holds nothing yet."""
    from redis import Redis

    with Redis.from_url(orchestra_server.url) as client:
        client.flushall()
    return orchestra_server.url


@pytest.fixture
def orchestra_app(
    orchestra_url: str,
) -> Iterator[Any]:  # OrchestraCelery, whose tasks' options Celery's types don't know
    """Give an app on that Redis, whose tasks no other app gets; a project puts its own in this fixture's place."""
    from orchestra.private_app import PrivateApp

    app = PrivateApp(orchestra_url)
    yield app
    app.close()


@pytest.fixture
def orchestra_agent(orchestra_app: Any) -> "Iterator[Callable[..., LocalAgent]]":
    """Give a function that starts an agent of `orchestra_app`: `orchestra_agent("nlp,mem_gb=64")`; all are stopped."""
    from orchestra.local_agents import LocalAgent

    with ExitStack() as stack:
        started: list[LocalAgent] = []

        def start(capabilities: str | None = None, *, name: str | None = None, **options: Any) -> LocalAgent:
            agent = LocalAgent.start(
                orchestra_app, capabilities, name=name or f"agent-{len(started) + 1}@test", **options
            )
            started.append(stack.enter_context(agent))
            return agent

        yield start


@pytest.fixture
def frozen_clock() -> "FrozenClock":
    """Give a clock that moves when it's told to."""
    from orchestra.frozen_clock import FrozenClock

    return FrozenClock()
