"""Every snippet of the README and of docs/ runs; a snippet that nobody runs fails here."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from redis import Redis

from tests.integration.agents import AgentProcess, wait_until

ROOT = Path(__file__).parents[1]
PAGES = {path.relative_to(ROOT).as_posix(): path for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))}

# Commands that no page runs by itself, and the file that runs them. That file has to hold the words after the arrow.
RUN_ELSEWHERE = {
    "make demo": ".ci/run → make demo",
    "make demo INPUT=docs": "tests/test_demo.py → test_profiles_a_folder",
    "make test": ".ci/run → make test",
    "make test-all": "tests/test_packaging.py → test_every_target_is_known",
    "make lint typecheck": ".ci/run → make lint typecheck",
    "make format": "tests/test_packaging.py → test_every_target_is_known",
    "make up": "tests/test_cli.py → test_serves_until_ctrl_c",
    "make clean": "tests/test_packaging.py → test_clean_removes_what_was_made",
    ".venv/bin/pre-commit install": "tests/test_packaging.py → test_hooks_are_installed",
    ".ci/run": ".github/workflows/ci.yml → .ci/run",
}

# What a page shows and nobody runs: trees, tables, grammar, output.
SHOWN_ONLY = {"text"}

FENCE = re.compile(r"^```(?P<language>\w*)(?: title=\"(?P<title>.+?)\")?\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
FENCE_LINE = re.compile(r"^\s*```", re.MULTILINE)
AGENT = re.compile(r"celery -A \w+ worker ")

# Runs a page's Python in the page's order and in one namespace, as a reader would type it.
RUNNER = """
import doctest, pathlib, sys

names = {"__name__": "page"}
for path in sys.argv[1:]:
    text = pathlib.Path(path).read_text(encoding="utf-8")
    if ">>>" not in text:
        exec(compile(text, path, "exec"), names)
        continue
    test = doctest.DocTestParser().get_doctest(text, names, path, path, 0)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    runner.run(test, clear_globs=False)
    names.update(test.globs)
    if runner.failures:
        sys.exit(1)
"""


@dataclass(frozen=True)
class Snippet:
    """One fenced block of a page."""

    page: str
    line: int
    language: str
    title: str | None
    text: str

    def __str__(self) -> str:
        """Return where it stands."""
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """The lines that a reader types into a terminal; the others are what comes back."""
        return [line.removeprefix("$ ") for line in self.text.splitlines() if line.startswith("$ ")]


def snippets_of(page: str) -> list[Snippet]:
    """Return a page's fenced blocks, in order."""
    text = PAGES[page].read_text(encoding="utf-8")
    return [
        Snippet(page, text.count("\n", 0, found.start()) + 1, found["language"], found["title"], found["text"])
        for found in FENCE.finditer(text)
    ]


SNIPPETS = [snippet for page in sorted(PAGES) for snippet in snippets_of(page)]
PAGES_WITH_PYTHON = sorted({snippet.page for snippet in SNIPPETS if snippet.language == "python"})
COMMANDS = [(snippet, command) for snippet in SNIPPETS if snippet.language == "console" for command in snippet.commands]
DIFFS = [snippet for snippet in SNIPPETS if snippet.language == "diff"]


class TestNothingIsLeftOut:
    @pytest.mark.parametrize("page", sorted(PAGES))
    def test_every_fence_is_read(self, page: str) -> None:
        """No fence is written in a way that hides it from the tests here."""
        assert 2 * len(snippets_of(page)) == len(FENCE_LINE.findall(PAGES[page].read_text(encoding="utf-8")))

    @pytest.mark.parametrize("snippet", SNIPPETS, ids=str)
    def test_every_language_has_its_runner(self, snippet: Snippet) -> None:
        """A block is Python, commands or a diff, which are run, or it is named as shown only."""
        assert snippet.language in {"python", "console", "diff"} | SHOWN_ONLY
        assert snippet.language != "console" or snippet.commands

    @pytest.mark.parametrize(("snippet", "command"), COMMANDS, ids=str)
    def test_every_command_is_run(self, snippet: Snippet, command: str) -> None:
        """A command starts an agent for its page's Python, or a named file runs it."""
        if AGENT.match(command):
            assert snippet.page in PAGES_WITH_PYTHON
            return
        path, _, words = RUN_ELSEWHERE[command].partition(" → ")
        assert words in (ROOT / path).read_text(encoding="utf-8")

    def test_no_runner_is_stale(self) -> None:
        """The table of commands names those that a page shows, and no others."""
        assert not set(RUN_ELSEWHERE) - {command for _, command in COMMANDS}

    @pytest.mark.parametrize("page", sorted(PAGES))
    def test_links_lead_somewhere(self, page: str) -> None:
        """A link to another file of the repository finds it."""
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", PAGES[page].read_text(encoding="utf-8")):
            assert (PAGES[page].parent / target).exists(), target


@contextmanager
def agents_of(page: str, folder: Path, environment: dict[str, str]) -> Iterator[None]:
    """Keep the agents running that a page's commands start; go on when all have joined."""
    commands = [command for snippet, command in COMMANDS if snippet.page == page and AGENT.match(command)]
    with ExitStack() as stack:
        agents = [
            started(command, folder / f"agent-{number}.log", stack, environment)
            for number, command in enumerate(commands)
        ]
        redis = stack.enter_context(Redis.from_url(environment["ORCHESTRA_BROKER_URL"]))
        wait_until(lambda: joined(redis) == len(agents) or not all(agent.process.poll() is None for agent in agents))
        assert joined(redis) == len(agents), [agent.log.read_text(encoding="utf-8") for agent in agents]
        yield


def started(command: str, log: Path, stack: ExitStack, environment: dict[str, str]) -> AgentProcess:
    """Start an agent by the command that a page shows; `stack` stops it."""
    process = subprocess.Popen(
        [sys.executable, "-m", *shlex.split(command)],
        cwd=log.parent,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=stack.enter_context(log.open("wb")),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    agent = AgentProcess(process, log)
    stack.callback(agent.stop)
    return agent


def joined(redis: Redis) -> int:
    """Count the agents in the registries of all fleets."""
    return sum(redis.zcard(key) for key in redis.scan_iter("orchestra:{*}:agents"))


def run_python(files: list[Path], folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run Python files one after the other, in one process and one namespace."""
    return subprocess.run(
        [sys.executable, "-c", RUNNER, *map(str, files)],
        cwd=folder,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def environment(redis_url: str) -> dict[str, str]:
    """Give the environment of a reader who has a Redis, and the page's folder on the import path."""
    return {**os.environ, "ORCHESTRA_BROKER_URL": redis_url, "PYTHONPATH": "."}


@pytest.mark.integration
class TestSnippetsRun:
    @pytest.mark.parametrize("page", PAGES_WITH_PYTHON)
    def test_python(self, page: str, tmp_path: Path, environment: dict[str, str]) -> None:
        """A page's Python runs from top to bottom, with the agents that the page starts, and prints what it says."""
        files = []
        for snippet in (snippet for snippet in snippets_of(page) if snippet.language == "python"):
            file = tmp_path / (snippet.title or f"line_{snippet.line}.py")
            file.write_text(snippet.text, encoding="utf-8")
            files += [] if snippet.title else [file]

        with agents_of(page, tmp_path, environment):
            done = run_python(files, tmp_path, environment)

        assert done.returncode == 0, done.stdout + done.stderr

    @pytest.mark.parametrize("side", ["-", "+"])
    @pytest.mark.parametrize("snippet", DIFFS, ids=str)
    def test_diff(self, snippet: Snippet, side: str, tmp_path: Path, environment: dict[str, str]) -> None:
        """What a diff takes away runs, and what it puts in its place."""
        file = tmp_path / "side.py"
        file.write_text("".join(f"{line[1:]}\n" for line in snippet.text.splitlines() if line[0] in {side, " "}))

        done = run_python([file], tmp_path, environment)

        assert done.returncode == 0, done.stderr
