"""The demo as a person runs it: a program that shows its work, and leaves nothing behind."""

import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from orchestra.agent import Agent
from orchestra.config import load_settings
from orchestra.fleet import AgentSpec, Fleet
from orchestra.orchestra import Orchestra
from tests.fleets import app_at
from tests.processes import processes_within, until
from workers import web
from workers.demo import AGENTS, _able, _lacking

PROJECT = Path(__file__).resolve().parents[1]
PROSE = "It was the best of times, and it was the worst of times; the violin was all that we had to play. "

Starter = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def private() -> Iterator[Path]:
    """Give a folder for all temporary files of a demo; the paths of sockets in it have to be short."""
    folder = Path(tempfile.mkdtemp(prefix="demo-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def start(private: Path) -> Iterator[Starter]:
    """Give what starts a demo with some arguments, and ends those that still run after the test."""
    started = []

    def start_demo(*arguments: str | Path, output: int = subprocess.PIPE, **env: str) -> "subprocess.Popen[str]":
        demo = subprocess.Popen(
            [sys.executable, "-u", "-m", "workers.demo", *arguments],
            cwd=PROJECT,
            env={**os.environ, "TMPDIR": str(private), "COLUMNS": "80", "TERM": "xterm-256color", **env},
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(demo)
        return demo

    yield start_demo
    for demo in started:
        with demo:
            demo.kill()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Give a folder that holds one of everything."""
    tree = tmp_path / "tree"
    (tree / "prose").mkdir(parents=True)
    (tree / "code").mkdir()
    (tree / "prose" / "one.txt").write_text(PROSE * 20)
    (tree / "prose" / "two.txt").write_text(PROSE * 20 + "The end.")
    (tree / "prose" / "utf16.txt").write_text("A violin, naïve and alone.", encoding="utf-16")
    (tree / "code" / "player.py").write_text('def play_violin():\n    """Play."""\n')
    (tree / "code" / "koi8.py").write_bytes("# coding: koi8-r\n# скрипка\n".encode("koi8-r"))
    (tree / "binary").write_bytes(bytes(range(256)))
    (tree / "empty").touch()
    (tree / "broken").symlink_to("nowhere")
    (tree / "circle").symlink_to("circle")
    (tree / "up").symlink_to(tree)
    os.mkfifo(tree / "pipe")
    with (tree / "huge").open("wb") as file:
        file.truncate(2 * 1024 * 1024)
    return tree


def processes_of(private: Path) -> list[int]:
    """List the processes that were started with `private` for their temporary files, or work within it."""
    mark = f"TMPDIR={private}\0".encode()
    found = processes_within(private)  # the server, which writes its title over its environment
    for process in Path("/proc").iterdir():
        with suppress(OSError):
            if process.name.isdecimal() and mark in (process / "environ").read_bytes():
                found.append(int(process.name))
    return found


def assert_nothing_left(private: Path) -> None:
    """Fail when a process or a file outlived its demo."""
    until(lambda: not processes_of(private), seconds=10)

    assert list(private.iterdir()) == []


@pytest.mark.integration
class TestDemo:
    def test_profiles_a_folder(self, start: Starter, tree: Path, private: Path) -> None:
        """Every file gets its outcome, every kind of agent its share, and nothing stays."""
        demo = start("--input", tree)

        shown, errors = demo.communicate(timeout=90)

        assert (demo.returncode, errors) == (0, "")
        assert f"profiling 8 files of {tree}" in shown
        assert re.search(r"100 % +24/24 steps", shown)
        for queue in ("io", "nlp", "cpu_intensive", "general"):
            assert re.search(rf"^\S+ +workers:{queue} +\d", shown, re.MULTILINE)
        assert re.search(r"^prose/one.txt +prose/two.txt +(0\.[89]\d|1\.00)$", shown, re.MULTILINE)
        assert re.search(r"^prose +(\w+, )*violin", shown, re.MULTILINE)
        for outcome in ("binary +1 +binary", "empty +1 +empty", "huge +1 +huge", "unreadable +4 "):
            assert re.search(rf"^{outcome}", shown, re.MULTILINE)
        assert shown.splitlines()[-2].startswith("12 files, ")
        assert shown.splitlines()[-1].startswith("Next: ")
        assert_nothing_left(private)

    def test_in_a_terminal(self, start: Starter, tree: Path, private: Path) -> None:
        """A terminal shows a progress bar, and no line is wider than 80 columns."""
        ours, theirs = pty.openpty()
        demo = start("--input", tree, output=theirs)
        os.close(theirs)

        written = b""
        with suppress(OSError):  # the terminal's way of telling the end
            while piece := os.read(ours, 4096):
                written += piece
        os.close(ours)

        assert demo.wait(timeout=30) == 0
        lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.decode()).replace("\r", "\n").splitlines()
        assert any("━━━" in line and "24/24 steps" in line for line in lines)
        tables = lines[next(place for place, line in enumerate(lines) if line.startswith("agent ")) :]
        assert max(map(len, tables)) <= 80
        assert_nothing_left(private)

    @pytest.mark.parametrize(
        ("moment", "signals", "exit_code"),
        [
            ("● server", [signal.SIGINT], 130),
            ("● agents", [signal.SIGINT, signal.SIGINT], 130),
            ("  profiling", [signal.SIGINT], 130),
            ("  profiling", [signal.SIGTERM], 143),
        ],
    )
    def test_an_interrupt(
        self, start: Starter, private: Path, moment: str, signals: list[signal.Signals], exit_code: int
    ) -> None:
        """Ctrl-C ends it whenever it comes, and as often: no process, no folder, no traceback."""
        demo = start()
        assert demo.stdout is not None
        assert any(line.startswith(moment) for line in demo.stdout)

        for number in signals:
            demo.send_signal(number)
        _, errors = demo.communicate(timeout=30)

        assert (demo.returncode, errors) == (exit_code, "")
        assert_nothing_left(private)

    def test_only_what_is_passed_over(self, start: Starter, tmp_path: Path, private: Path) -> None:
        """A folder in which there is nothing to profile says so, once that is known."""
        (tmp_path / "__pycache__").mkdir()
        (tmp_path / "__pycache__" / "a.pyc").touch()
        demo = start("--input", tmp_path)

        _, errors = demo.communicate(timeout=60)

        assert demo.returncode == 2
        assert errors == f"{tmp_path} holds no files: name a folder with something to profile.\n"
        assert_nothing_left(private)


@pytest.mark.integration
class TestAttached:
    def test_uses_the_fleet_that_is_up(self, start: Starter, tree: Path, private: Path, redis_url: str) -> None:
        """With `--attach` nothing is started: the agents that are there do the work, and stay."""
        environment = {"ORCHESTRA_BROKER_URL": redis_url}
        with (
            Fleet("workers", AGENTS, environment=environment, directory=PROJECT, log_level="WARNING") as fleet,
            app_at(redis_url, main="workers", settings=load_settings()) as app,
        ):
            fleet.wait_ready(ready=lambda: {agent.name for agent in Orchestra(app).agents() if agent.alive})
            before = fleet.pids
            demo = start("--attach", "--input", tree, **environment)

            shown, errors = demo.communicate(timeout=90)

            assert fleet.tend() == []
            assert before == fleet.pids
        assert (demo.returncode, errors) == (0, "")
        assert "(of the fleet that is up)" in shown
        assert "io ✓  text ✓ ✓  compute ✓ ✓  general ✓    4 kinds, 6 processes, up" in shown
        assert re.search(r"100 % +24/24 steps", shown)
        assert_nothing_left(private)

    def test_folder_is_the_agents(self, start: Starter, redis_url: str) -> None:
        """The folder is looked for where the agents are, which may be elsewhere."""
        environment = {"ORCHESTRA_BROKER_URL": redis_url}
        with Fleet("workers", AGENTS, environment=environment, directory=PROJECT, log_level="WARNING"):
            demo = start("--attach", "--input", "/nowhere", **environment)

            _, errors = demo.communicate(timeout=60)

        assert demo.returncode == 1
        assert errors == "The demo failed: a task failed: FileNotFoundError(2, 'No such file or directory')\n"

    def test_no_redis(self, start: Starter) -> None:
        """A Redis that doesn't answer is told at once, in one line."""
        demo = start("--attach", ORCHESTRA_BROKER_URL="redis://127.0.0.1:1/0")

        _, errors = demo.communicate(timeout=30)

        assert demo.returncode == 1
        assert re.fullmatch(r"The demo failed: Redis at 127\.0\.0\.1:1 cannot be reached: .*\n", errors)


def agent(name: str, capabilities: str, **changes: Any) -> Agent:
    """Return a live agent."""
    then = datetime(2025, 1, 1, tzinfo=UTC)
    known = {
        "host": "box",
        "pid": 1,
        "pool": "solo",
        "concurrency": 1,
        "queues": (),
        "tasks": frozenset(),
        "running": 0,
    }
    life = {"draining": False, "version": "1", "started_at": then, "last_beat_at": then, "alive": True}
    return Agent(name=name, capabilities=capabilities, **{**known, **life, **changes})


class TestWhoIsThere:
    def test_only_who_can_take_work_counts(self) -> None:
        """An agent counts for each kind of work that it can do, whatever its name, unless it's lost or drains."""
        agents = [
            agent("all@a", "io,nlp"),
            agent("text@b", "nlp"),
            agent("compute@c", "cpu_intensive", alive=False),
            agent("general@d", "general", draining=True),
        ]

        assert {"io": 1, "text": 2, "compute": 0, "general": 0} == _able(agents)

    def test_what_is_lacking_is_named(self) -> None:
        """Whoever runs a fleet is told which agents to start."""
        assert (
            "the fleet has no live agent for compute (cpu_intensive) and general (general) after 60 s; "
            "start what is missing"
        ) == _lacking({"io": 1, "text": 2, "compute": 0, "general": 0})


class TestBadInput:
    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("nowhere", "can't be profiled: no such file or directory"),
            ("file", "can't be profiled: not a directory"),
            ("empty", "holds no files"),
            ("\x1b[2J", "can't be profiled: no such file or directory"),
        ],
    )
    def test_is_told_in_one_line(self, start: Starter, tmp_path: Path, private: Path, name: str, reason: str) -> None:
        """A folder that can't be profiled is refused before anything is started."""
        (tmp_path / "empty").mkdir()
        (tmp_path / "file").touch()
        demo = start("--input", tmp_path / name)

        shown, errors = demo.communicate(timeout=30)

        assert (demo.returncode, shown) == (2, "")
        assert len(errors.splitlines()) == 1
        assert reason in errors
        assert "\x1b" not in errors
        assert_nothing_left(private)


class TestAgents:
    def test_are_those_of_the_project(self) -> None:
        """The demo runs the fleet that the project declares, but for the agent that needs a network."""
        project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
        declared = [AgentSpec.parse(text) for text in project["tool"]["orchestra"]["agents"]]
        fleet = [(spec.names, spec.capabilities) for spec in declared]

        assert [(spec.names, spec.capabilities) for spec in AGENTS] == fleet[:-1]
        assert [(("web",), web.CAPABILITIES)] == fleet[-1:]
