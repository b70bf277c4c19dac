"""Every snippet of the README and of docs/ runs; a snippet that nobody runs fails here."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs_pages import FENCE_LINE, PAGES, ROOT, SNIPPETS, Snippet, snippets_of
from tests.docs_reader import Reader

# Commands that no page runs by itself, and the file that runs them. That file has to hold the words after the arrow.
RUN_ELSEWHERE = {
    "make demo": ".ci/run → make demo",
    "make demo INPUT=docs": "tests/test_demo.py → test_profiles_a_folder",
    "make test": ".ci/run → make test",
    "make test-all": "tests/test_packaging.py → test_every_target_is_known",
    "make lint typecheck": ".ci/run → make lint typecheck",
    "make format": "tests/test_packaging.py → test_every_target_is_known",
    "make bench-peers": "tests/test_packaging.py → test_every_target_is_known",
    "make up": "tests/test_cli.py → test_serves_until_ctrl_c",
    "make clean": "tests/test_packaging.py → test_clean_removes_what_was_made",
    ".venv/bin/pre-commit install": "tests/test_packaging.py → test_hooks_are_installed",
    ".ci/run": ".github/workflows/ci.yml → .ci/run",
}

# Pages that need more than a Redis, and the file that follows them.
FOLLOWED_ELSEWHERE = {"docs/deployment.md": "tests/docker/test_page.py"}

# What a page shows and nobody runs: trees, tables, grammar, output.
SHOWN_ONLY = {"text"}

TYPED_HERE = [
    (snippet.page, command)
    for snippet in SNIPPETS
    for command in snippet.commands
    if command not in RUN_ELSEWHERE and snippet.page not in FOLLOWED_ELSEWHERE
]
WITH_PYTHON = {snippet.page for snippet in SNIPPETS if snippet.language == "python"}
FOLLOWED = sorted({page for page, _ in TYPED_HERE} | (WITH_PYTHON - FOLLOWED_ELSEWHERE.keys()))
DIFFS = [snippet for snippet in SNIPPETS if snippet.language == "diff"]


class TestNothingIsLeftOut:
    @pytest.mark.parametrize("page", sorted(PAGES))
    def test_every_fence_is_read(self, page: str) -> None:
        """No fence is written in a way that hides it from the tests here."""
        assert 2 * len(snippets_of(page)) == len(FENCE_LINE.findall(PAGES[page].read_text(encoding="utf-8")))

    @pytest.mark.parametrize("snippet", SNIPPETS, ids=str)
    def test_every_language_has_its_runner(self, snippet: Snippet) -> None:
        """A block is Python, commands or a diff, which are run, a file for them, or it is named as shown only."""
        assert snippet.is_file or snippet.language in {"python", "console", "diff"} | SHOWN_ONLY
        assert snippet.language != "console" or snippet.typed

    @pytest.mark.parametrize(("command", "runner"), RUN_ELSEWHERE.items())
    def test_other_runners_are_there(self, command: str, runner: str) -> None:
        """A command that no page runs is run by the file that the table names, and a page shows it."""
        path, _, words = runner.partition(" → ")

        assert words in (ROOT / path).read_text(encoding="utf-8")
        assert command in {shown for snippet in SNIPPETS for shown in snippet.commands}

    @pytest.mark.parametrize(("page", "reader"), FOLLOWED_ELSEWHERE.items())
    def test_other_readers_are_there(self, page: str, reader: str) -> None:
        """A page that isn't followed here is followed by the file that the table names."""
        assert page in PAGES
        assert f'"{page}"' in (ROOT / reader).read_text(encoding="utf-8")

    @pytest.mark.parametrize("page", sorted(PAGES))
    def test_links_lead_somewhere(self, page: str) -> None:
        """A link to another file of the repository finds it."""
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", PAGES[page].read_text(encoding="utf-8")):
            assert (PAGES[page].parent / target).exists(), target


@pytest.fixture
def environment(redis_url: str) -> dict[str, str]:
    """Give the environment of a reader who has a Redis, and for whom pip finds here what it would have to fetch."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("ORCHESTRA_", "PYTHON"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    pip = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_NO_CACHE_DIR": "1"}
    return {**inherited, **pip, "PATH": path, "ORCHESTRA_BROKER_URL": redis_url}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give an empty folder with a checkout beside it."""
    (tmp_path / "agent-orchestra").symlink_to(ROOT)
    (tmp_path / "project").mkdir()
    return tmp_path / "project"


@pytest.mark.integration
class TestSnippetsRun:
    @pytest.mark.timeout(300)
    @pytest.mark.parametrize("page", FOLLOWED)
    def test_page(self, page: str, folder: Path, environment: dict[str, str]) -> None:
        """A page can be followed from top to bottom, and shows what comes back."""
        if any(shown == page and command.startswith("orchestra up") for shown, command in TYPED_HERE):
            del environment["ORCHESTRA_BROKER_URL"]  # its reader has no Redis
        with Reader(folder, environment) as reader:
            reader.follow(snippets_of(page), leaving_out=RUN_ELSEWHERE)

    @pytest.mark.parametrize("side", ["-", "+"])
    @pytest.mark.parametrize("snippet", DIFFS, ids=str)
    def test_diff(self, snippet: Snippet, side: str, tmp_path: Path, environment: dict[str, str]) -> None:
        """What a diff takes away runs, and what it puts in its place."""
        text = "".join(f"{line[1:]}\n" for line in snippet.text.splitlines() if line[0] in {side, " "})

        done = subprocess.run(
            [sys.executable, "-c", text], cwd=tmp_path, env=environment, check=False, capture_output=True, text=True
        )

        assert done.returncode == 0, done.stderr
