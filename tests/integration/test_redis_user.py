"""The Redis user that docs/security.md recommends: enough for a fleet, too little for an intruder."""

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import chord
from redis import Redis

from orchestra.api_keys import ApiKeys
from orchestra.embedded import EmbeddedServer
from orchestra.exceptions import AgentOrchestraException
from orchestra.orchestra import Orchestra
from tests.fleets import app_at
from tests.integration.agents import Agents, agents

PAGE = Path(__file__).parents[2] / "docs" / "security.md"

FLEET = """
from orchestra import OrchestraCelery

app = OrchestraCelery("fleet")


@app.task(requires={"nlp"})
def words(text: str) -> int:
    return len(text.split())


@app.task
def total(numbers: list[int]) -> int:
    return sum(numbers)
"""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Give the address of a server for the user that the page recommends."""
    (rules,) = re.findall(r"^user fleet on >PASSWORD (.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    with EmbeddedServer.start() as server:
        with Redis.from_url(server.url) as admin:
            admin.execute_command("ACL", "SETUSER", "fleet", "on", ">hunter2", *rules.split())
        yield f"redis://fleet:hunter2@{server.host}:{server.port}/0"


@pytest.fixture
def agent(tmp_path: Path, url: str) -> Iterator[Agents]:
    """Give an agent that connects as this user."""
    with agents(tmp_path, url) as started:
        started.write_app(FLEET)
        started.start("--capabilities", "nlp,general", name="text")
        yield started


@pytest.mark.integration
class TestTheRecommendedUser:
    def test_is_enough_for_a_fleet(self, agent: Agents, url: str) -> None:
        """Tasks, chords, delays, control commands, purging and API keys work with these rights."""
        with app_at(url, main="fleet") as app:
            orchestra, keys = Orchestra(app), ApiKeys(app.store)
            words: Any = app.signature("fleet.words", ("one two",))

            assert 2 == words.apply_async().get(timeout=20)
            assert 2 == words.apply_async(countdown=0.2).get(timeout=20)
            both = chord([words, words], app.signature("fleet.total"), app=app)
            assert 4 == both.apply_async().get(timeout=20)
            assert orchestra.health().ok
            assert ["fleet:nlp"] == [queue.name for queue in orchestra.queues() if queue.requires == "nlp"]
            assert [{"text@test": {"ok": "pong"}}] == app.control.broadcast("ping", reply=True, limit=1, timeout=20)
            assert 0 == app.control.purge()
            assert "ann" == keys.verify(keys.create("ann", ["viewer"], expires=timedelta(1)).text).principal

    @pytest.mark.parametrize(
        "command",
        ["FLUSHALL", "FLUSHDB", "CONFIG GET requirepass", "KEYS *", "MONITOR", "ACL LIST", "SHUTDOWN", "REPLICAOF h 1"],
    )
    def test_is_too_little_for_an_intruder(self, url: str, command: str) -> None:
        """What empties the server, shows its settings, or watches others isn't allowed."""
        with app_at(url) as app, pytest.raises(AgentOrchestraException, match="has no permissions"):
            app.store.command(*command.split())
