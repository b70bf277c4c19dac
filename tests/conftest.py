"""What every test may ask for: a private server, a clean database, and hypothesis set for here or for CI."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings
from redis import Redis

from orchestra.embedded import EmbeddedServer

settings.register_profile("here", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") == "true" else "here")


@pytest.fixture(scope="session")
def redis_server() -> Iterator[EmbeddedServer]:
    """Give the session's own server; a test that stops or kills a server starts one for itself."""
    with EmbeddedServer.start() as server:
        yield server


@pytest.fixture
def redis_url(redis_server: EmbeddedServer) -> str:
    """Give the address of a Redis that holds nothing yet."""
    with Redis.from_url(redis_server.url) as client:
        client.flushall()
    return redis_server.url
