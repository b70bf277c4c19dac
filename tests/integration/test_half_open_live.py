"""An agent whose connections fell silent, as they do when a firewall forgets them or a cable is pulled."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestra.embedded import EmbeddedServer
from tests.fleets import app_at
from tests.integration.agents import agents, wait_until
from tests.proxies import Proxy, proxy_to

APP = """
import time
from orchestra.app import OrchestraCelery

app = OrchestraCelery("shop")

@app.task
def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds
"""
NOTICED_WITHIN_SECONDS = 12.0  # ten, and what a machine with much else to do takes longer

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]


@pytest.fixture
def proxy(server: EmbeddedServer) -> Iterator[Proxy]:
    """Give a way to the server that can fall silent."""
    with proxy_to(server.port) as proxy:
        yield proxy


@pytest.fixture
def server() -> Iterator[EmbeddedServer]:
    """Give a server of the test's own."""
    with EmbeddedServer.start() as server:
        yield server


class TestSilence:
    @pytest.mark.parametrize("pool", ["solo", "prefork"])
    def test_an_idle_agent(self, server: EmbeddedServer, proxy: Proxy, tmp_path: Path, pool: str) -> None:
        """A task that is submitted after all of an agent's connections fell silent runs within ten seconds."""
        with agents(tmp_path, proxy.through(server.url)) as fleet, app_at(server.url) as app:
            fleet.write_app(APP)
            fleet.start("-c", "1", name="a", pool=pool)
            app.send_task("fleet.nap", (0.0,)).get(timeout=10)
            proxy.silence()
            started = time.monotonic()

            app.send_task("fleet.nap", (0.0,)).get(timeout=30)

            assert time.monotonic() - started < NOTICED_WITHIN_SECONDS

    def test_a_task_in_hand(self, server: EmbeddedServer, proxy: Proxy, tmp_path: Path) -> None:
        """A task that runs meanwhile ends well: its result is stored, its message settled, and it ran once."""
        with agents(tmp_path, proxy.through(server.url)) as fleet, app_at(server.url) as app:
            fleet.write_app(APP)
            fleet.start("-c", "1", name="a", pool="prefork")
            result = app.send_task("fleet.nap", (3.0,))
            wait_until(lambda: app.state.read(result.id).state == "running")
            proxy.silence()

            assert 3.0 == result.get(timeout=30)
            wait_until(lambda: 0 == app.store.command("ZCARD", app.store.keys.leased("celery")))
            assert ["submitted", "running", "succeeded"] == [e.state for e in app.state.read(result.id).history]

    def test_a_busy_agent(self, server: EmbeddedServer, proxy: Proxy, tmp_path: Path) -> None:
        """An agent that had nothing to ask for a while, all its processes being busy, goes on by a new connection."""
        with agents(tmp_path, proxy.through(server.url)) as fleet, app_at(server.url) as app:
            fleet.write_app(APP)
            agent = fleet.start("-c", "1", name="a", pool="prefork")
            results = [app.send_task("fleet.nap", (seconds,)) for seconds in (5.0, 0.0, 0.0)]
            wait_until(lambda: app.state.read(results[0].id).state == "running")
            proxy.silence()

            assert [5.0, 0.0, 0.0] == [result.get(timeout=60) for result in results]
            assert not agent.says("Connection to broker lost")
