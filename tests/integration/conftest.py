"""Fixtures for tests against real worker processes."""

import sys
from collections.abc import Iterator
from importlib import import_module, invalidate_caches
from pathlib import Path
from typing import Any

import pytest

from orchestra import OrchestraCelery
from orchestra.config import load_settings
from tests.integration.agents import Agents, agents


@pytest.fixture
def fleet(tmp_path: Path, redis_url: str) -> Iterator[Agents]:
    """Give a starter of agents over the test's own Redis."""
    with agents(tmp_path, redis_url) as started:
        yield started


@pytest.fixture
def sender(redis_url: str) -> Iterator[OrchestraCelery]:
    """Give an app of the same fleet that knows none of its tasks."""
    app = OrchestraCelery("fleet", broker=redis_url, settings=load_settings(broker_url=redis_url))
    yield app
    app.close()


@pytest.fixture
def imported(tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Give a function that imports the test's app module into this process."""
    monkeypatch.setenv("ORCHESTRA_BROKER_URL", redis_url)
    monkeypatch.syspath_prepend(str(tmp_path))

    loaded: list[Any] = []

    def load(module: str = "fleet") -> Any:
        invalidate_caches()
        sys.modules.pop(module, None)
        loaded.append(import_module(module))
        return loaded[-1]

    yield load
    for module in loaded:
        module.app.close()
    sys.modules.pop("fleet", None)
