"""The wheel and the sdist, installed in empty environments, far from the checkout."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import orchestra

APP = """
from orchestra import OrchestraCelery

app = OrchestraCelery("shop")


@app.task(name="shop.shout", requires={"nlp"})
def shout(text: str) -> str:
    return text.upper()
"""

JOURNEY = """
import os, subprocess, sys

from orchestra.embedded import EmbeddedServer

with EmbeddedServer.start() as server:
    os.environ["ORCHESTRA_BROKER_URL"] = server.url
    command = [sys.executable, "-m", "celery", "-A", "shop", "--quiet", "worker", "-P", "solo", "--capabilities", "nlp"]
    agent = subprocess.Popen(command)
    try:
        from shop import shout

        print(shout.delay("it works").get(timeout=30))
        shout.app.close()
    finally:
        agent.terminate()
        agent.wait(20)
"""

SERVER = """
from orchestra.embedded import EmbeddedServer
from orchestra.exceptions import ConfigurationError

try:
    EmbeddedServer.start()
except ConfigurationError as error:
    print(error)
"""


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command in an environment that knows nothing of this one; return what it printed."""
    left_out = ("PYTHON", "VIRTUAL_ENV", "ORCHESTRA_", "COV_", "COVERAGE_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env=environment, check=False, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """Give the Python of an environment that holds nothing but pip."""
    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    return tmp_path / "venv/bin/python"


@pytest.mark.slow
@pytest.mark.timeout(300)
class TestInstalled:
    def test_wheel(self, built: Path, empty: Path, tmp_path: Path) -> None:
        """The wheel alone is enough for a server, an agent, a task and its result."""
        (wheel,) = built.glob("*.whl")
        (tmp_path / "shop.py").write_text(APP, encoding="utf-8")

        run(empty, "-m", "pip", "install", "--quiet", f"{wheel}[embedded]", cwd=tmp_path)

        assert "IT WORKS" in run(empty, "-c", JOURNEY, cwd=tmp_path).splitlines()
        for command in (["orchestra"], ["celery", "orchestra"]):
            said = run(empty.with_name(command[0]), *command[1:], "version", cwd=tmp_path)
            assert ["agent-orchestra", orchestra.__version__] == said.splitlines()[0].split()

    def test_sdist(self, built: Path, empty: Path, tmp_path: Path) -> None:
        """The sdist builds and installs by itself; without the extra the server's absence is told with what to do."""
        (sdist,) = built.glob("*.tar.gz")

        run(empty, "-m", "pip", "install", "--quiet", sdist, cwd=tmp_path)

        assert "agent-orchestra[embedded]" in run(empty, "-c", SERVER, cwd=tmp_path)
