"""Celery's own commands over a live fleet."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.agents import AgentProcess, Agents, agents, wait_until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

APP = """
from orchestra import Orchestra, OrchestraCelery

app = OrchestraCelery("shop")
app.conf.beat_schedule = {"tick": {"task": "shop.index", "schedule": 0.2, "args": (1,)}}


@app.task(name="shop.index", requires={"nlp"})
def index(number: int = 0) -> int:
    return number


@app.task(name="shop.plain")
def plain(number: int = 0) -> int:
    return number
"""


@pytest.fixture
def fleet(tmp_path: Path, redis_url: str) -> Iterator[Agents]:
    """Give a starter of agents of the app above."""
    with agents(tmp_path, redis_url) as started:
        started.write_app(APP)
        yield started


@pytest.fixture
def celery(tmp_path: Path, redis_url: str) -> Any:
    """Give `celery -A fleet …`, which returns what it printed and fails where it fails."""
    environment = {**os.environ, "ORCHESTRA_BROKER_URL": redis_url, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "celery", "-A", "fleet"]

    def run(*arguments: str, status: int = 0) -> str:
        done = subprocess.run(
            [*command, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert status == done.returncode, done.stdout + done.stderr
        return done.stdout

    def start(log: Path, *arguments: str) -> AgentProcess:
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*command, *arguments],
                cwd=tmp_path,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return AgentProcess(process, log)

    run.start = start  # type: ignore[attr-defined]
    return run


class TestAsking:
    def test_status_and_inspect(self, fleet: Agents, celery: Any) -> None:
        """`status` and `inspect` see an agent with its capability queues and its tasks."""
        fleet.start("--capabilities", "nlp", name="text")

        assert "text@test: OK" in celery("status")
        assert "pong" in celery("inspect", "ping")
        assert "'name': 'shop:nlp'" in celery("inspect", "active_queues")
        assert "shop.index" in celery("inspect", "registered")
        assert '"uptime"' in celery("inspect", "stats")
        for question in ("active", "reserved", "report", "conf"):
            assert "text@test: OK" in celery("inspect", question)

    def test_call_and_result(self, fleet: Agents, celery: Any) -> None:
        """`call` routes by what the task requires, and `result` reads what came of it."""
        agent = fleet.start("--capabilities", "nlp", name="text")

        task_id = celery("call", "shop.index", "--kwargs", '{"number": 7}').strip()

        agent.wait_for(f"{task_id}] succeeded")
        assert "7" == celery("result", task_id).strip()

    def test_lists_of_commands(self, celery: Any, fleet: Agents) -> None:
        """`control --list` and `--help` show our commands among Celery's."""
        listed = celery("control", "--list")

        assert {"drain", "resume"} <= set(listed.split())
        assert "orchestra" in celery("--help")


class TestControl:
    def test_drain_resume_shutdown(self, fleet: Agents, celery: Any) -> None:
        """An agent is drained, resumed and shut down by `control`, whichever queues it served."""
        agent = fleet.start("--capabilities", "nlp", name="text")

        assert "left shop:nlp" in celery("control", "drain", "-d", "text@test")
        assert "serves shop:nlp" in celery("control", "resume", "-d", "text@test")
        assert "OK" in celery("control", "rate_limit", "shop.index", "10/m")
        celery("control", "add_consumer", "mine")
        assert "'name': 'mine'" in celery("inspect", "active_queues")

        celery("control", "shutdown", status=69)  # Celery's: whoever is shut down doesn't answer
        assert agent.process.wait(20) == 0


class TestPurge:
    def test_registered_capability_queues(self, fleet: Agents, celery: Any, redis_url: str) -> None:
        """`purge` empties queues that exist in the fleet alone, of all urgencies, and tells which they are."""
        send = (
            "from fleet import index, plain\n"
            "index.delay()\n"
            "plain.delay()\n"
            "plain.apply_async(requires='gpu,mem_gb>=40', urgency='high')\n"
            "plain.apply_async(requires='gpu,mem_gb>=40', urgency='low')\n"
        )
        subprocess.run(
            [sys.executable, "-c", send],
            cwd=fleet._folder,
            env={**os.environ, "ORCHESTRA_BROKER_URL": redis_url},
            check=True,
            timeout=60,
        )

        assert "Purged 4 messages from 3 known task queues" in celery("purge", "-f")
        assert "No messages purged from 3 queues" in celery("purge", "-f")


class TestLongRunning:
    def test_events(self, fleet: Agents, celery: Any, tmp_path: Path) -> None:
        """`events --dump` tells of agents and tasks, the sending of tasks included where that is on."""
        dump = celery.start(tmp_path / "events.log", "events", "--dump")
        try:
            agent = fleet.start("--capabilities", "nlp", "-E", name="text")
            wait_until(lambda: dump.says("worker-online") or dump.says("heartbeat"))

            task_id = celery("call", "shop.index").strip()
            agent.wait_for(f"{task_id}] succeeded")

            dump.wait_for(f"task succeeded: shop.index({task_id})")
        finally:
            dump.stop()

    def test_beat(self, fleet: Agents, celery: Any, tmp_path: Path) -> None:
        """What `beat` sends is routed by what its task requires."""
        beat = celery.start(tmp_path / "beat.log", "beat", "-s", str(tmp_path / "schedule"), "-l", "INFO")
        try:
            fleet.start("--capabilities", "nlp", name="text").wait_for("Task shop.index")
        finally:
            beat.stop()
