"""The command line in this process, over a project of the test's own."""

import os
import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module, invalidate_caches
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from orchestra.cli import orchestra
from orchestra.cli_project import PROJECT
from orchestra.queues import QueueNames
from tests.fleets import agent_of, quick
from tests.logs import logging_left_alone
from tests.stores import register

__all__ = ["SHOP", "Shop", "clean_environment", "invoke", "shop_at"]

SHOP = """
from orchestra.app import OrchestraCelery
from orchestra.exceptions import PermanentError

app = OrchestraCelery("shop", set_as_current=False)


@app.task(name="shop.index", requires={"nlp"}, urgency="high", shared=False)
def index(text: str, limit: int = 10) -> list[str]:
    return text.split()[:limit]


@app.task(name="shop.fail", requires={"nlp"}, shared=False)
def fail(why: str) -> None:
    raise PermanentError(why)


@app.task(name="shop.quiet", requires={"nlp"}, ignore_result=True, shared=False)
def quiet() -> int:
    return 1


@app.task(name="shop.train", requires={"gpu", "mem_gb>=16"}, shared=False)
def train() -> None:
    return None
"""


def invoke(*words: str, **options: Any) -> Result:
    """Call the command in this process."""
    with logging_left_alone():
        return CliRunner().invoke(orchestra, words, **options)


def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave no setting from outside."""
    for name in [name for name in os.environ if name.startswith(("ORCHESTRA_", "CELERY_"))]:
        monkeypatch.delenv(name)


class Shop:
    """A project that holds one app, in the working directory; its pyproject.toml names it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.write("shop.py", SHOP)
        self.write(PROJECT.name, '[tool.orchestra]\napp = "shop"\n')

    def write(self, name: str, text: str) -> None:
        """Write a file of the project."""
        (self._folder / name).write_text(text, encoding="utf-8")
        invalidate_caches()

    @property
    def app(self) -> Any:  # OrchestraCelery
        """The app that the commands find."""
        return import_module("shop").app

    @property
    def queues(self) -> QueueNames:
        """How its queues are called."""
        names: QueueNames = self.app.queue_names
        return names

    def agent(self, name: str = "text@a", *, capabilities: str = "nlp", running: int = 0, **doing: Any) -> None:
        """Register an agent that runs nowhere, and lives as long as its first beat lasts."""
        about = {"capabilities": capabilities, "host": "a", "pid": 7, "pool": "solo", "concurrency": 1, "version": "1"}
        register(self.app.registry, name, name, about=about)
        queues = doing.pop("queues", [self.queues.default])
        self.app.registry.beat(name, name, version="", queues=queues, running=running, **doing)

    @contextmanager
    def running(self, capabilities: str = "nlp") -> Iterator[None]:
        """Run an agent in a thread of this process, over an app of its own."""
        app = runpy.run_path(str(self._folder / "shop.py"))["app"]
        app.settings = quick()
        with agent_of(app, capabilities):
            yield
        app.close()


@contextmanager
def shop_at(redis_url: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    """Give a project at a Redis; it's the working directory."""
    clean_environment(monkeypatch)
    monkeypatch.setenv("ORCHESTRA_BROKER_URL", redis_url)
    monkeypatch.setenv("ORCHESTRA_BEAT_SECONDS", "60")  # a registered agent outlives the test
    monkeypatch.setenv("ORCHESTRA_CONNECT_TIMEOUT_SECONDS", "2")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    sys.modules.pop("shop", None)
    try:
        yield Shop(folder)
    finally:
        if "shop" in sys.modules:
            sys.modules.pop("shop").app.close()
