"""Flower over the reference fleet, as a person sees it: in a headless Chromium."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from orchestra.embedded import EmbeddedServer
from orchestra.fleet import AgentSpec, Fleet
from tests.docs_pages import ROOT
from tests.fleets import stock_at
from tests.integration.agents import wait_until
from tests.integration.chromium import CHROMIUM, Browser, browser_in
from tests.integration.flower_server import FlowerServer, flower_of

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(120),
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here (Debian and Ubuntu: apt install chromium)"),
]

AGENTS = (
    AgentSpec(name="io", capabilities="io", concurrency=1),
    AgentSpec(name="text", capabilities="nlp", concurrency=1, processes=2),
)


@dataclass(frozen=True)
class Seen:
    """The fleet's Flower, a browser in front of it, the agents' names, io's first, and the broker."""

    flower: FlowerServer
    browser: Browser
    agents: tuple[str, ...]
    server: EmbeddedServer

    @property
    def password(self) -> str:
        """The broker's."""
        return str(urlsplit(self.server.url).password)

    def open(self, path: str) -> None:
        """Go to a page, with the login that Flower asks for."""
        self.browser.open(self.flower.url(path))

    def wait_for_row(self, table: str, *cells: str) -> list[str]:
        """Wait until a table has a row with these cells, and return all of it."""
        rows: list[list[str]] = []

        def found() -> bool:
            rows[:] = [row for row in self.browser.rows(table) if set(cells) <= set(row)]
            return bool(rows)

        wait_until(found, what=f"a row with {cells}")
        return rows[0]


@contextmanager
def fleet_in(folder: Path) -> Iterator[Seen]:
    """Give the fleet with Flower and a browser in front of it."""
    with EmbeddedServer.start() as server:
        environment = {"ORCHESTRA_BROKER_URL": server.url}
        with Fleet("workers", AGENTS, environment=environment, directory=ROOT, sink=lambda *_: None) as fleet:
            fleet.wait_ready(30)
            with (
                flower_of("workers", ROOT, folder / "flower.log", **environment) as flower,
                browser_in(folder) as browser,
            ):
                wait_until(lambda: len(flower.online()) == 3)
                agents = tuple(sorted(flower.online()))
                flower.ask(*agents)
                yield Seen(flower, browser, agents, server)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    """Give the fleet; it serves the whole module."""
    with fleet_in(tmp_path_factory.mktemp("pages")) as made:
        yield made


@pytest.fixture
def picture(seen: Seen, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[None]:
    """Keep a picture of what the test has seen last."""
    yield
    seen.browser.save(tmp_path / f"{request.node.name}.png")


@pytest.fixture
def unserved(seen: Seen) -> Iterator[None]:
    """Let the text agents take no more tasks meanwhile."""
    with stock_at(seen.server.url) as app:
        asked = {"destination": list(seen.agents[1:]), "reply": True, "timeout": 10, "limit": 2}
        assert 2 == len(app.control.broadcast("drain", **asked))
        yield
        assert 2 == len(app.control.broadcast("resume", **asked))


class TestLogin:
    def test_is_asked_for(self, seen: Seen) -> None:
        """Whoever has no password sees nothing."""
        shown = seen.browser.open(seen.flower.url("/", login=False))

        assert "net::ERR_INVALID_AUTH_CREDENTIALS" == shown


@pytest.mark.usefixtures("picture")
class TestPages:
    def test_agents(self, seen: Seen) -> None:
        """The first page lists the agents, and which of them are online."""
        seen.open("/")

        for agent in seen.agents:
            assert "Online" in seen.wait_for_row("#workers-table", agent, "Online")

    def test_tasks(self, seen: Seen, tmp_path: Path) -> None:
        """Tasks have their names, their states, the queues that they were sent to, and the agents that ran them."""
        done = seen.flower.send("workers.text.keywords", "A fleet of agents, and agents are a fleet.")
        failed = seen.flower.send("workers.io.find", str(tmp_path / "missing"))
        waiting = seen.flower.send("workers.text.keywords", "une flotte", requires="nlp,lang=fr")
        for task_id, state in ((done, "SUCCESS"), (failed, "FAILURE"), (waiting, "PENDING")):
            seen.flower.wait_for_state(task_id, state)

        seen.open("/tasks")

        row = seen.wait_for_row("#tasks-table", done)
        assert ["workers.text.keywords", "SUCCESS", "workers:nlp"] == row[:3]
        assert row[3] in seen.agents
        row = seen.wait_for_row("#tasks-table", failed)
        assert ["workers.io.find", "FAILURE", "workers:io", seen.agents[0]] == row[:4]
        row = seen.wait_for_row("#tasks-table", waiting)
        assert ["workers.text.keywords", "PENDING", "workers:lang=fr+nlp", ""] == row[:4]
        assert "flotte" not in seen.browser.source()

    def test_one_agent(self, seen: Seen) -> None:
        """An agent's page has its queues, and its settings without the password."""
        agent = seen.agents[0]

        seen.open(f"/worker/{agent}")
        seen.browser.click("#worker-tab-queues")

        assert "workers:io" in seen.wait_for_row("#tab-queues table", "workers:io")
        seen.browser.click("#worker-tab-config")
        wait_until(lambda: "redis://:********@" in seen.browser.text())
        assert seen.password not in seen.browser.source()

    @pytest.mark.usefixtures("unserved")
    def test_queues(self, seen: Seen) -> None:
        """The broker's page counts what waits in each capability queue, whatever its urgency."""
        for urgency in ("critical", "normal", "low"):
            seen.flower.send("workers.text.keywords", "It waits.", urgency=urgency)
        # An agent that was just looking into the queue gives back what it found.
        wait_until(lambda: seen.flower.lengths()["workers:nlp"] == 3)

        seen.open("/broker")

        assert seen.wait_for_row("#queue-table", "workers:nlp", "3")
        assert seen.wait_for_row("#queue-table", "workers:io", "0")
        assert seen.password not in seen.browser.source()
