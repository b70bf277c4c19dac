"""What agents write, line by line, on every pool."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestra import OrchestraCelery
from orchestra.fleet import AgentSpec, Fleet
from tests.integration.agents import AgentProcess, Agents, wait_until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

APP = """
import logging
import sys
import warnings

import structlog
from celery.utils.log import get_task_logger

from orchestra import OrchestraCelery
from orchestra.exceptions import RetryableError
from orchestra.logging_utils import get_logger, performance_logging

app = OrchestraCelery("fleet")


@app.task
@performance_logging(threshold_seconds=0)
def talk(word: str) -> str:
    get_logger("orchestra.sample").info("ours said", word=word)
    structlog.get_logger("shop").info("structlog said", word=word)
    logging.getLogger("shop").info("stdlib said %s", word)
    get_task_logger("shop.tasks").info("celery said %s", word)
    print("print said", word)
    print("stderr said", word, file=sys.stderr)
    warnings.warn(f"warning said {word}")
    return word


@app.task(bind=True, max_attempts=2)
def pass_by(self):
    structlog.contextvars.bind_contextvars(shelf=5)
    if self.request.retries == 0:
        raise RetryableError("not yet", retry_after=0)
    logging.getLogger("shop").info("passed")


@app.task
def fail():
    raise ValueError('password=hunter2 ' + chr(10) + '{"level": "info", "event": "forged"}')
"""

SOURCES = [
    ("ours said", "orchestra.sample"),
    ("structlog said", "shop"),
    ("stdlib said", "shop"),
    ("celery said", "shop.tasks"),
    ("print said", "celery.redirected"),
    ("stderr said", "celery.redirected"),
    ("warning said", "py.warnings"),
    ("operation slow", "orchestra.performance"),
]
WORDS = ("one", "two", "three")

QUIET_ROOT = "ignore:You're running the worker"  # Celery warns of it before it has read how to log


def start(fleet: Agents, pool: str, concurrency: int) -> AgentProcess:
    """Start an agent that writes JSON."""
    fleet.write_app(APP)
    options = ["-c", str(concurrency)] if pool != "solo" else []
    return fleet.start(*options, name="text", pool=pool, ORCHESTRA_LOG_FORMAT="json", PYTHONWARNINGS=QUIET_ROOT)


def lines_of(agent: AgentProcess) -> list[dict[str, Any]]:
    """Return every line that an agent wrote, to either stream."""
    return [json.loads(line) for line in agent.log.read_text(encoding="utf-8").splitlines()]


def told(line: dict[str, Any]) -> tuple[str, str]:
    """Return which of the sources a line is from: its event without the word, and its logger."""
    source = next(event for event, _ in SOURCES if event in line["event"])
    return source, line["logger"]


@pytest.mark.parametrize("pool", ["solo", "threads", "prefork"])
class TestJson:
    def test_every_line(self, fleet: Agents, sender: OrchestraCelery, pool: str) -> None:
        """Whatever an agent writes, from its set-up to its end, is JSON; what a task writes names the task."""
        agent = start(fleet, pool, concurrency=2)
        results = {word: sender.send_task("fleet.talk", [word]) for word in WORDS}
        failed = sender.send_task("fleet.fail")
        assert list(WORDS) == [result.get(timeout=30) for result in results.values()]
        failed.get(timeout=30, propagate=False)

        assert 0 == agent.stop()
        lines = lines_of(agent)
        assert {"text@test"} == {line["agent"] for line in lines}
        for result in results.values():
            of_task = [line for line in lines if line.get("task_id") == result.id]
            assert {"fleet.talk"} == {line["task"] for line in of_task}
            within = [line for line in of_task if not line["event"].startswith("Task ")]
            assert {1} == {line["attempt"] for line in within}
            assert sorted(SOURCES) == sorted(told(line) for line in within)
        (error,) = [line for line in lines if line["level"] == "error"]
        assert (failed.id, "fleet.fail", "ValueError") == (error["task_id"], error["task"], error["error_type"])
        assert "hunter2" not in agent.log.read_text(encoding="utf-8")
        assert [("agent stops", "warm")] == [(line["event"], line["how"]) for line in lines if "how" in line]

    def test_nothing_stays_bound(self, fleet: Agents, sender: OrchestraCelery, pool: str) -> None:
        """A child, a thread or an agent that runs one task after the other binds each anew, and its attempt."""
        agent = start(fleet, pool, concurrency=1)
        first = sender.send_task("fleet.pass_by")
        first.get(timeout=30)
        second = sender.send_task("fleet.talk", ["one"])
        second.get(timeout=30)

        assert 0 == agent.stop()
        lines = lines_of(agent)
        (passed,) = [line for line in lines if line["event"] == "passed"]
        assert (first.id, "fleet.pass_by", 2, 5) == (
            passed["task_id"],
            passed["task"],
            passed["attempt"],
            passed["shelf"],
        )
        assert {None} == {line.get("shelf") for line in lines if line.get("task_id") == second.id}


@pytest.fixture
def restartable(tmp_path: Path, redis_url: str) -> Iterator[AgentProcess]:
    """Give an agent that was started by the `celery` script; one of `python -m celery` can't start itself anew."""
    (tmp_path / "fleet.py").write_text(APP, encoding="utf-8")
    environment = {"ORCHESTRA_BROKER_URL": redis_url, "ORCHESTRA_LOG_FORMAT": "json", "PYTHONWARNINGS": QUIET_ROOT}
    log = tmp_path / "text.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [Path(sys.executable).parent / "celery", "-A", "fleet", "worker", "-n", "text@test", "-P", "solo"],
            cwd=tmp_path,
            env={**os.environ, **environment, "PYTHONPATH": str(tmp_path)},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    agent = AgentProcess(process, log)
    yield agent
    agent.stop()


class TestRestart:
    def test_keeps_format_and_streams(self, restartable: AgentProcess) -> None:
        """On SIGHUP an agent starts itself anew, and its successor writes JSON as well, to the same streams."""
        restartable.wait_for("text@test ready.")
        restartable.process.send_signal(signal.SIGHUP)
        wait_until(lambda: restartable.log.read_text(encoding="utf-8").count("text@test ready.") == 2, seconds=30)

        streams = Path(f"/proc/{restartable.process.pid}/fd")
        assert [restartable.log, restartable.log] == [(streams / number).readlink() for number in ("1", "2")]
        assert 0 == restartable.stop()
        assert {"text@test"} == {line["agent"] for line in lines_of(restartable)}


class TestFleet:
    @pytest.mark.parametrize("log_format", ["json", "console"])
    def test_hears_that_an_agent_is_ready(self, tmp_path: Path, redis_url: str, log_format: str) -> None:
        """The line that `orchestra up` waits for is found in either format."""
        (tmp_path / "fleet.py").write_text(APP, encoding="utf-8")
        heard: list[str] = []
        environment = {
            "ORCHESTRA_BROKER_URL": redis_url,
            "ORCHESTRA_LOG_FORMAT": log_format,
            "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
        }
        agents = Fleet(
            "fleet",
            [AgentSpec(name="text", pool="solo")],
            environment=environment,
            directory=tmp_path,
            sink=lambda _, line: heard.append(line),
        )

        with agents:
            agents.wait_ready(30)

        (ready,) = [line for line in heard if " ready." in line or 'ready."' in line]
        assert (log_format == "json") is ready.startswith("{")
