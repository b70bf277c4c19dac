"""The `orchestra` command as a person meets it: in processes, shells and terminals."""

import fcntl
import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from orchestra.app import OrchestraCelery
from orchestra.registry import CatalogueEntry
from tests.fleets import app_at
from tests.integration.agents import Agents
from tests.stores import publish, register

SHOP = """
from orchestra import OrchestraCelery

app = OrchestraCelery("fleet")


@app.task(requires={"nlp"})
def index(text: str, limit: int = 10) -> list[str]:
    return text.split()[:limit]
"""

EVERY_HELP = """
from orchestra.cli import orchestra
for name in orchestra.commands:
    orchestra.main([name, "--help"], prog_name="orchestra", standalone_mode=False)
"""


TAB_KEY = """
eval "$(orchestra completion bash)"
for line in "$@"; do
    COMP_WORDS=($line) COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMPREPLY=()
    _orchestra_completion orchestra
    echo "${COMPREPLY[*]}"
done
"""


@pytest.fixture
def environment(tmp_path: Path, redis_url: str) -> dict[str, str]:
    """Give the environment of a shell in the project's folder, which isn't on Python's path."""
    (tmp_path / "fleet.py").write_text(SHOP, encoding="utf-8")
    (tmp_path / "pyproject.toml").write_text('[tool.orchestra]\napp = "fleet"\n', encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ORCHESTRA_", "COLUMNS"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
    return {**kept, "PATH": path, "ORCHESTRA_BROKER_URL": redis_url, "TERM": "xterm-256color"}


class Shell:
    """Runs commands in the project's folder."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.environment = environment

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start a command."""
        return subprocess.Popen(
            words,
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str) -> tuple[int, str, str]:
        """Run a command to its end; return its exit code and what it wrote to stdout and stderr."""
        process = self.start(*words)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def on_terminal(self, *words: str) -> list[str]:
        """Run a command in a terminal of 80 columns; return the lines as they are seen."""
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        process = subprocess.Popen(
            words, cwd=self.folder, env=self.environment, stdin=theirs, stdout=theirs, stderr=theirs
        )
        os.close(theirs)
        seen = b"".join(_read(ours))
        os.close(ours)
        process.wait(60)
        return re.sub(r"\x1b\[[0-9;]*m", "", seen.decode()).splitlines()


def _read(terminal: int) -> Iterator[bytes]:
    """Yield what is written to a terminal, until its last writer has gone."""
    with suppress(OSError):  # what Linux answers then
        while select.select([terminal], [], [], 60)[0] and (some := os.read(terminal, 4096)):
            yield some


@pytest.fixture
def shell(tmp_path: Path, environment: dict[str, str]) -> Shell:
    """Give a shell in a project without agents."""
    return Shell(tmp_path, environment)


@pytest.fixture
def app(redis_url: str) -> Iterator[OrchestraCelery]:
    """Give an app of the same fleet, to prepare what the commands show."""
    with app_at(redis_url, main="fleet") as app:
        yield app


@pytest.mark.slow
class TestTerminal:
    def test_nothing_is_wider_than_80_columns(self, shell: Shell, app: OrchestraCelery) -> None:
        """Tables and help fit into a terminal of 80 columns, and all of a long name can be read."""
        requirement = "cuda~ge~v12+gpu+licence=very-special-one+mem_gb~ge~640+vram_gb~ge~80"
        agent = "vision-and-language-1@worker-7d9f8b6c5-x2x7k.eu-central-1.compute.internal"
        queue = f"fleet:{requirement}"
        demanding = CatalogueEntry(requires="gpu,licence=very-special-one,mem_gb>=640", urgency="critical")
        about = {
            "capabilities": "gpu,mem_gb=640",
            "host": "h",
            "pid": 1,
            "pool": "solo",
            "concurrency": 1,
            "version": "1",
        }
        register(app.registry, agent, "1", about=about, tasks={f"fleet.{'long_name_' * 5}task": demanding})
        app.registry.beat(agent, "1", version="", queues=[queue, "fleet:gpu"], running=3)
        publish(app.store, "1", suffix="nlp", queue="fleet:nlp", name="fleet.index")
        publish(app.store, "2", suffix=requirement, queue=queue)
        calls = [["agents"], ["queues"], ["tasks"], ["health"], ["result", "1"], ["version"], ["--help"]]

        for call in [["orchestra", *call] for call in calls] + [[sys.executable, "-c", EVERY_HELP]]:
            lines = shell.on_terminal(*call)

            assert lines, call
            assert 80 >= max(map(len, lines)), call
        assert agent in "".join(column(shell.on_terminal("orchestra", "agents"), "agent", "capabilities"))
        assert queue in "".join(column(shell.on_terminal("orchestra", "queues"), "queue", "requires"))


def column(lines: list[str], header: str, following: str) -> list[str]:
    """Cut a column out of a table."""
    first, last = lines[0].index(header), lines[0].index(following)
    return [line[first:last].strip() for line in lines[1:]]


@pytest.mark.integration
class TestProcesses:
    def test_both_names_are_one_command(self, shell: Shell) -> None:
        """`orchestra` and `celery -A APP orchestra` do the same, from a folder that isn't on Python's path."""
        mine = shell.run("orchestra", "queues", "--json")
        celerys = shell.run("celery", "-A", "fleet", "orchestra", "queues", "--json")

        assert mine == celerys
        assert (0, "") == (mine[0], mine[2])
        assert "celery" == json.loads(mine[1])[0]["name"]

    def test_error_within_celery(self, shell: Shell) -> None:
        """As a command of Celery's it fails in the same way: one line, and exit code 2."""
        code, out, err = shell.run("celery", "-A", "fleet", "orchestra", "result", "nope")

        assert (2, "", 1) == (code, out, err.count("\n"))
        assert err.startswith("error: Nothing is known of a task nope")

    def test_closed_pipe_is_silent(self, shell: Shell) -> None:
        """Who reads the first line only sees no trace."""
        for arguments in ("agents --json", "tasks", "--help", "queues"):
            process = shell.start("bash", "-c", f"orchestra {arguments} | true")
            _, err = process.communicate(timeout=60)

            assert "" == err

    def test_piped_output_is_plain(self, shell: Shell) -> None:
        """Where nobody looks there are no colours, and 80 columns."""
        _, out, _ = shell.run("orchestra", "queues")

        assert "\x1b" not in out
        assert out == "\n".join(line.rstrip() for line in out.splitlines()) + "\n"

    def test_unreachable_redis(self, shell: Shell) -> None:
        """It's one line with host and port, and no password, for each command that needs it."""
        shell.environment["ORCHESTRA_BROKER_URL"] = "redis://:hidden@127.0.0.1:1/0"

        for call in (["agents"], ["result", "1"], ["submit", "fleet.index", "--json", '{"text": ""}'], ["drain", "a"]):
            code, out, err = shell.run("orchestra", *call)

            assert (2, "", 1) == (code, out, err.count("\n"))
            assert "127.0.0.1:1" in err
            assert "hidden" not in err

    def test_interrupted_wait(self, shell: Shell) -> None:
        """Ctrl-C while waiting leaves the task alone: exit code 130, no trace, and the id was told."""
        waiting = shell.start("orchestra", "submit", "fleet.index", "--json", '{"text": ""}', "--wait")
        assert waiting.stderr is not None
        task_id = waiting.stderr.readline().strip()

        waiting.send_signal(signal.SIGINT)

        assert ("", "\n") == waiting.communicate(timeout=30)
        assert 130 == waiting.returncode
        assert "state     submitted" in shell.run("orchestra", "result", task_id)[1]


@pytest.mark.integration
class TestWithAgent:
    @pytest.fixture(autouse=True)
    def agent(self, fleet: Agents) -> None:
        """Let an agent run."""
        fleet.write_app(SHOP)
        fleet.start("--capabilities", "nlp", name="text")

    def test_a_first_walk(self, shell: Shell) -> None:
        """Submit, wait, look: what a newcomer tries works at once."""
        submitted = shell.run("orchestra", "submit", "fleet.index", "--json", '{"text": "a b"}', "--wait", "20")
        result = shell.run("orchestra", "result", submitted[2].strip())
        agents = shell.run("orchestra", "agents")
        health = shell.run("orchestra", "health")

        assert (0, '["a", "b"]\n') == submitted[:2]
        assert "state     succeeded" in result[1]
        assert "text@test" in result[1]
        assert ["text@test", "nlp", "fleet:nlp", "idle"] == agents[1].splitlines()[1].split()
        assert 0 == health[0]

    @pytest.mark.skipif(shutil.which("bash") is None, reason="there's no bash")
    def test_bash_completes(self, shell: Shell) -> None:
        """After `orchestra completion bash`, the tab key offers commands, tasks, agents and values, or nothing."""
        offered = {
            "orchestra he": ["health"],
            "orchestra submit fleet.i": ["fleet.index"],
            "orchestra drain te": ["text@test"],
            "orchestra -A absent drain te": [],
            "orchestra submit x --urgency h": ["high"],
        }

        _, out, err = shell.run("bash", "-c", TAB_KEY, "bash", *offered)

        assert "" == err
        assert list(offered.values()) == [line.split() for line in out.splitlines()]
