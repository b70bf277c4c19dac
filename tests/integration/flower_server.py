"""A real Flower for the tests: a `celery flower` process with the project's flowerconfig.py, and its HTTP API."""

import json
import os
import re
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.docs_pages import ROOT
from tests.integration.agents import AgentProcess, wait_until

__all__ = ["PASSWORD", "USER", "Answer", "FlowerServer", "flower_of"]

USER = "ada"
PASSWORD = "of,lovelace"
LOGIN = f"{USER}:{PASSWORD}"
BANNER = re.compile(r"Visit me at http://127\.0\.0\.1:(\d+)")


@dataclass(frozen=True)
class Answer:
    """What came back: the HTTP status and the text."""

    status: int
    text: str

    @property
    def json(self) -> Any:
        """The text, read as JSON."""
        return json.loads(self.text)


@dataclass(frozen=True)
class FlowerServer:
    """A running Flower."""

    process: AgentProcess
    port: int

    def url(self, path: str, *, login: bool = True) -> str:
        """Return a page's address for a browser, with user and password in it."""
        given = f"{USER}:{quote(PASSWORD)}@" if login else ""
        return f"http://{given}127.0.0.1:{self.port}{path}"

    def get(self, path: str, *, login: str | None = LOGIN) -> Answer:
        """Get a page."""
        return self._ask("GET", path, None, login)

    def post(self, path: str, fields: Mapping[str, object] | None = None, *, login: str | None = LOGIN) -> Answer:
        """Post to the API; the fields go as JSON."""
        return self._ask("POST", path, json.dumps(fields or {}), login)

    def send(self, task: str, *args: object, **options: object) -> str:
        """Send a task by its name, as anybody may through the API; return its id."""
        answer = self.post(f"/api/task/send-task/{task}", {"args": args, **options})
        assert 200 == answer.status, answer
        return str(answer.json["task-id"])

    def _ask(self, method: str, path: str, body: str | None, login: str | None) -> Answer:
        headers = {"Authorization": f"Basic {b64encode(login.encode()).decode()}"} if login else {}
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return Answer(response.status, response.read().decode())
        finally:
            connection.close()

    def ask(self, *agents: str) -> None:
        """Have it ask the agents about themselves, until it has heard these."""

        def heard() -> bool:
            about = self.get("/api/workers?refresh=1").json
            return all("active_queues" in about.get(agent, {}) for agent in agents)

        wait_until(heard, what=f"answers of {agents}")

    def online(self) -> set[str]:
        """Return the names of the agents that it shows as online."""
        answer = self.get("/api/workers?status=1").json
        return {name for name, alive in answer.items() if alive}

    def queues(self) -> dict[str, list[str]]:
        """Return the names of the queues that each agent serves, as Flower heard it last."""
        agents = self.get("/api/workers").json
        return {name: sorted(queue["name"] for queue in about["active_queues"]) for name, about in agents.items()}

    def heard_at(self, agent: str) -> float:
        """Return when an agent last beat, as seconds since the epoch; 0 where it has left since."""
        agents = self.get("/workers?json=1").json["data"]
        beats = (beat for about in agents if about["hostname"] == agent for beat in about["heartbeats"])
        return max(map(float, beats), default=0.0)

    def lengths(self) -> dict[str, int]:
        """Return the length of each queue that it lists."""
        return {queue["name"]: queue["messages"] for queue in self.get("/api/queues/length").json["active_queues"]}

    def task(self, task_id: str) -> dict[str, Any]:
        """Return what it knows of a task; nothing while it hasn't heard of it."""
        answer = self.get(f"/api/task/info/{quote(task_id)}")
        return dict(answer.json) if answer.status == 200 else {}

    def wait_for_state(self, task_id: str, state: str) -> dict[str, Any]:
        """Wait until it shows a task in a state, and return what it knows of it."""
        wait_until(lambda: self.task(task_id).get("state") == state, what=f"state {state} of {task_id}")
        return self.task(task_id)


@contextmanager
def flower_of(app: str, folder: Path, log: Path, **environment: str) -> Iterator[FlowerServer]:
    """Give a Flower for the app that lies in `folder`, on a free port, and end it."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith("FLOWER_")}
    ours = {"ORCHESTRA_FLOWER_USER": USER, "ORCHESTRA_FLOWER_PASSWORD": PASSWORD, "FLOWER_PORT": "0"}
    configuration = ROOT / "workers" / "flowerconfig.py"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", app, "flower", f"--conf={configuration}"],
            cwd=folder,
            env={**outside, "PYTHONPATH": str(folder), **ours, **environment},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    started = AgentProcess(process, log)
    try:
        started.wait_for("Visit me at")
        banner = BANNER.search(log.read_text(encoding="utf-8"))
        assert banner is not None
        yield FlowerServer(started, int(banner[1]))
    finally:
        assert 0 == started.stop()
