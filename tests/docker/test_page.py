"""docs/deployment.md, followed from top to bottom in a copy of the checkout."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.docker.engine import PROJECT, Images, compose_command, done
from tests.docs_pages import snippets_of
from tests.docs_reader import Reader

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1200)]

PAGE = "docs/deployment.md"
COPIED = ("docker", "docs", "orchestra", "workers")
BUILT_ELSEWHERE = {"docker build --tag shop shop": "tests/docker/test_image.py"}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Give a copy of all that the page works with, and the folder that it writes an app into."""
    for folder in COPIED:
        shutil.copytree(PROJECT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in PROJECT.iterdir():
        if file.is_file():
            shutil.copy(file, tmp_path)
    (tmp_path / ".env").unlink(missing_ok=True)
    (tmp_path / "shop").mkdir()
    return tmp_path


@pytest.fixture
def environment(images: Images, checkout: Path) -> Iterator[dict[str, str]]:
    """Give the environment of a reader whose project nobody else has; what they leave is removed."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("ORCHESTRA_")},
        "COMPOSE_PROJECT_NAME": f"orchestra-test-{uuid4().hex[:8]}",
        "PYTHON_IMAGE": images.python,
        "REDIS_IMAGE": images.redis,
        "AGENT_IMAGE": images.agent,
        "FLOWER_PORT": "0",
    }
    yield environment
    command = compose_command()
    assert command is not None
    passwords = {"REDIS_PASSWORD": "-", "ORCHESTRA_FLOWER_PASSWORD": "-"}
    done(*command, "--profile", "demo", "down", "--volumes", "--timeout", "20", env={**environment, **passwords})


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="the page calls docker-compose by its own name")
class TestPage:
    def test_can_be_followed(self, checkout: Path, environment: dict[str, str]) -> None:
        """Every command of the page works, in its order."""
        snippets = [snippet for snippet in snippets_of(PAGE) if snippet.is_file or snippet.language == "console"]

        with Reader(checkout, environment) as reader:
            reader.follow(snippets, leaving_out=BUILT_ELSEWHERE)

    def test_leaves_nothing_out(self) -> None:
        """What isn't typed here is tried by the file that the table names."""
        shown = {command for snippet in snippets_of(PAGE) for command in snippet.commands}

        assert set(BUILT_ELSEWHERE) <= shown
        assert all((PROJECT / file).exists() for file in BUILT_ELSEWHERE.values())
