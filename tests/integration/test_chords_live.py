"""Chords, live: the body runs once all parts have, whoever is killed meanwhile."""

from pathlib import Path
from typing import Any

import pytest
from celery import chord

from tests.fleets import app_at
from tests.integration.agents import agents

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

APP = """
import os
import signal
from pathlib import Path

from celery.signals import before_task_publish

from orchestra import OrchestraCelery

app = OrchestraCelery("shop")
FOLDER = Path(__file__).parent


@app.task(name="shop.add")
def add(x: int, y: int) -> int:
    return x + y


@app.task(name="shop.total")
def total(numbers: list) -> int:
    return sum(numbers)


@before_task_publish.connect(sender="shop.total")
def die_once(**_):
    try:
        (FOLDER / "died").touch(exist_ok=False)
    except FileExistsError:
        return
    os.kill(os.getppid() if os.environ.get("TAKES_ALONG") else os.getpid(), signal.SIGKILL)
    if os.environ.get("TAKES_ALONG"):
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("killed", ["process", "agent"])
def test_who_sends_the_body_is_killed(tmp_path: Path, redis_url: str, killed: str) -> None:
    """Whoever counts the last part has claimed to send the body; another one sends it once that claim has run out."""
    with agents(tmp_path, redis_url) as fleet, app_at(redis_url) as app:
        fleet.write_app(APP)
        environment: Any = {"TAKES_ALONG": "1"} if killed == "agent" else {}
        fleet.start("-c", "1", name="first", pool="prefork", ORCHESTRA_BEAT_SECONDS="0.4", **environment)
        tasks: Any = {name: app.task(name=name, shared=False)(_never) for name in ("shop.add", "shop.total")}

        result = chord([tasks["shop.add"].s(number, 1) for number in range(3)])(tasks["shop.total"].s())
        if killed == "agent":
            fleet.start("-c", "1", name="second", pool="prefork", ORCHESTRA_BEAT_SECONDS="0.4")

        assert 6 == result.get(timeout=60)
    assert (tmp_path / "died").exists()


def _never(*_: Any) -> None:
    """Be run by agents alone, who have code of their own for it."""
    raise AssertionError
