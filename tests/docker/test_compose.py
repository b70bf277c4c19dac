"""The fleet of docker-compose.yml, brought up for real: its bounds, the demo on it, and growing and shrinking."""

import json
import os
import random
import re
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from orchestra.config import OrchestraSettings
from tests.docker.engine import PROJECT, Compose, Images, done, output_of

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1200)]

AGENTS = ("io", "text", "compute", "general", "web")
SERVICES = (*AGENTS, "flower", "redis")
REDIS_PASSWORD = "redis-s-password"
FLOWER_PASSWORD = "flower-s-password"
DOCUMENTS = 4000
STEPS = ("io", "nlp", "cpu_intensive")  # of the demo's work on each file


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with enough to read for a fleet to grow and shrink meanwhile; anyone may read it."""
    folder = tmp_path_factory.mktemp("documents")
    folder.chmod(0o755)
    chance = random.Random(7)
    words = ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=chance.randint(2, 11))) for _ in range(3000)]
    for number in range(DOCUMENTS):
        path = folder / f"{number:04}.txt"
        path.write_text(" ".join(chance.choices(words, k=2000)), encoding="utf-8")
        path.chmod(0o644)
    return folder


@pytest.fixture(scope="module")
def fleet(images: Images, documents: Path) -> Iterator[Compose]:
    """Give the fleet, up and healthy; one process for each agent, so that more containers make a difference."""
    compose = Compose(
        images,
        REDIS_PASSWORD=REDIS_PASSWORD,
        ORCHESTRA_FLOWER_PASSWORD=FLOWER_PASSWORD,
        FLOWER_PORT="0",  # any that is free
        AGENT_HEALTH_SECONDS="10",
        TEXT_CONCURRENCY="1",
        COMPUTE_CONCURRENCY="1",
        DOCUMENTS=str(documents),
    )
    try:
        compose("up", "--detach")
        until(lambda: healthy(compose) == set(SERVICES), what="every container is healthy", fleet=compose)
        yield compose
    finally:
        compose.close()


def until(condition: Callable[[], object], *, what: str, fleet: Compose, seconds: float = 120) -> None:
    """Wait for a condition; fail after the deadline with what the containers wrote last."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"in {seconds} s it didn't come about that {what}:\n{fleet.logs()}"
        time.sleep(0.5)  # the poll's pace; what is waited for is the condition


def healthy(compose: Compose) -> set[str]:
    """Return the services whose containers are healthy."""
    states = {service_of(found): found["State"] for found in compose.containers()}
    return {service for service, state in states.items() if state.get("Health", {}).get("Status") == "healthy"}


def service_of(found: dict[str, Any]) -> str:
    """Return the service that a container belongs to."""
    return str(found["Config"]["Labels"]["com.docker.compose.service"])


def workers_of(compose: Compose, task: str) -> int:
    """Count the live agents that have taken a task of this name."""
    stats = json.loads(compose("exec", "-T", "general", "celery", "inspect", "stats", "--timeout", "2", "--json"))
    return sum(task in agent["total"] for agent in stats.values())


@contextmanager
def slowed(compose: Compose, service: str) -> Iterator[None]:
    """Give the container of a service a third of a core, so that there's time to do something while it works."""
    (found,) = compose.containers(service)
    output_of("docker", "update", "--cpus", "0.3", found["Id"])
    try:
        yield
    finally:
        output_of("docker", "update", "--cpus", str(os.cpu_count()), found["Id"])


def waiting(compose: Compose) -> list[str]:
    """Return the queues in which something waits; each is a list, whose name ends in a mark of its priority."""
    _, *lists = compose.redis("SCAN", "0", "COUNT", "1000000", "TYPE", "list").splitlines()
    return [name.partition("\x06")[0] for name in lists if not name.startswith("orchestra:")]  # those wake agents


def assert_nothing_left(compose: Compose) -> None:
    """Fail when a message is still in a queue, a dead letter, or in some agent's hands."""
    assert [] == waiting(compose)
    assert "0" == compose.redis("EXISTS", "unacked", "orchestra:{workers}:dead:letters")
    until(
        lambda: compose.redis("KEYS", "orchestra:{workers}:leases:*").split() == [], what="all is done", fleet=compose
    )


def shares(shown: str) -> list[tuple[str, str, int, int]]:
    """Read the demo's table: agent, queue, tasks, and files or 0."""
    rows = re.findall(r"^(\S+) +workers:(\S+) +([\d,]+) +([\d,]+|-) ", shown, re.MULTILINE)
    return [(agent, queue, number(tasks), number(files)) for agent, queue, tasks, files in rows]


def number(text: str) -> int:
    """Read a number as the demo writes it."""
    return 0 if text == "-" else int(text.replace(",", ""))


def files_of(shown: str) -> int:
    """Return how many files the demo says that it profiles."""
    found = re.search(r"profiling ([\d,]+) files", shown)
    assert found, shown
    return number(found[1])


class TestFile:
    def test_hands_on_only_what_is_a_setting(self) -> None:
        """A name that no setting has would be warned of by every agent."""
        text = (PROJECT / "docker-compose.yml").read_text(encoding="utf-8")
        handed_on = set(re.findall(r"^ +(ORCHESTRA_\w+):", text, re.MULTILINE))
        settings = {f"ORCHESTRA_{name.upper()}" for name in OrchestraSettings.model_fields}

        assert settings - handed_on == {"ORCHESTRA_RESULT_BACKEND", "ORCHESTRA_CAPABILITIES"}
        assert handed_on - settings == set()

    @pytest.mark.parametrize("missing", ["REDIS_PASSWORD", "ORCHESTRA_FLOWER_PASSWORD"])
    def test_wants_its_passwords(self, images: Images, missing: str) -> None:
        """Without a password nothing is started, and the missing one is named."""
        given = {"REDIS_PASSWORD": "a", "ORCHESTRA_FLOWER_PASSWORD": "b", missing: ""}
        compose = Compose(images, **given)

        with compose.begun("config", "--quiet") as process:
            _, errors = process.communicate(timeout=60)

        assert process.returncode != 0
        assert f"set {missing} in .env" in errors


class TestContainers:
    def test_are_held_to_little(self, fleet: Compose) -> None:
        """No container writes to its image, gains a right or runs as root."""
        for found in fleet.containers():
            limits = found["HostConfig"]

            assert limits["ReadonlyRootfs"]
            assert ["ALL"] == limits["CapDrop"]
            assert ["no-new-privileges:true"] == limits["SecurityOpt"]
            assert found["Config"]["User"] in {"999", "agent"}
            assert "10m" == limits["LogConfig"]["Config"]["max-size"]

    def test_only_flower_is_reachable_from_outside(self, fleet: Compose) -> None:
        """Redis has no port on the machine, and Flower only one of the machine's own address."""
        bound = {service_of(found): found["HostConfig"]["PortBindings"] for found in fleet.containers()}

        assert ["flower"] == [service for service, ports in bound.items() if ports]
        assert "127.0.0.1" == bound["flower"]["5555/tcp"][0]["HostIp"]

    def test_passwords_are_on_no_command_line(self, fleet: Compose) -> None:
        """Whoever lists containers or processes reads no secret."""
        for found in fleet.containers():
            processes = done("docker", "top", found["Id"], "-o", "pid,args").stdout
            command = " ".join(found["Config"]["Cmd"])

            assert "redis-server" in processes or "celery" in processes
            assert not {REDIS_PASSWORD, FLOWER_PASSWORD} & set(re.findall(r"[\w-]+", processes + command))

    def test_redis_wants_its_password(self, fleet: Compose) -> None:
        """The health check has it from the environment, and nobody gets an answer without it."""
        without = fleet("exec", "-T", "redis", "env", "-u", "REDISCLI_AUTH", "redis-cli", "PING")

        assert "PONG" == fleet.redis("PING")
        assert "NOAUTH" in without

    def test_redis_writes_down_every_change(self, fleet: Compose) -> None:
        """Queues outlive the container, and none is thrown out for want of memory."""
        assert "yes" == fleet.redis("CONFIG", "GET", "appendonly").split()[1]
        assert "noeviction" == fleet.redis("CONFIG", "GET", "maxmemory-policy").split()[1]

    def test_flower_wants_its_password(self, fleet: Compose) -> None:
        """With it Flower shows every agent, without it nothing."""
        assert 401 == ask_flower(fleet, "/api/workers")[0]

        status, body = ask_flower(fleet, "/api/workers?refresh=1", password=FLOWER_PASSWORD)

        assert 200 == status
        assert set(AGENTS) == set(re.findall(r'"(\w+)@[0-9a-f]{12}"', body))


def ask_flower(compose: Compose, path: str, *, password: str | None = None) -> tuple[int, str]:
    """Ask Flower for a page; return the status and the body."""
    host, _, port = compose("port", "flower", "5555").strip().partition(":")
    login = b64encode(f"orchestra:{password}".encode()).decode()
    connection = HTTPConnection(host, int(port), timeout=60)
    try:
        connection.request("GET", path, headers={"Authorization": f"Basic {login}"} if password else {})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


class TestDemo:
    def test_runs_against_the_fleet(self, fleet: Compose) -> None:
        """The demo's container starts no agent and no server; each kind of agent does its share, on every file once."""
        shown = fleet("run", "--rm", "-T", "demo")

        assert "(of the fleet that is up)" in shown
        assert "4 kinds, 4 processes, up" in shown
        files = Counter({queue: done_files for _, queue, _, done_files in shares(shown)})
        assert {queue: files_of(shown) for queue in STEPS} == {queue: files[queue] for queue in STEPS}
        assert_nothing_left(fleet)

    def test_grows_and_shrinks_while_it_runs(self, fleet: Compose) -> None:
        """Three text agents share the work of one, two of them stop amid it, and every task is done once."""
        command = ("python", "-m", "workers.demo", "--attach", "--input", "/documents")
        with slowed(fleet, "text"), fleet.begun("run", "--rm", "-T", "demo", *command) as demo:
            assert demo.stdout is not None
            assert any("profiling" in line for line in demo.stdout)

            fleet("up", "--detach", "--no-recreate", "--scale", "text=3")
            until(lambda: workers_of(fleet, "workers.text.describe") == 3, what="three agents share it", fleet=fleet)
            fleet("up", "--detach", "--no-recreate", "--scale", "text=1", seconds=200)
            assert demo.poll() is None
            shown, errors = demo.communicate(timeout=300)

        assert demo.returncode == 0, shown + errors
        assert 1 == len(fleet.containers("text"))
        rows = shares(shown)
        tasks, files = Counter[str](), Counter[str]()
        for _, queue, done_tasks, done_files in rows:
            tasks[queue] += done_tasks
            files[queue] += done_files
        assert 3 == len([agent for agent, queue, *_ in rows if queue == "nlp"])
        assert dict.fromkeys(STEPS, DOCUMENTS) == {queue: files[queue] for queue in STEPS}
        assert tasks["io"] - 1 == tasks["nlp"] == tasks["cpu_intensive"]  # io also listed the files
        assert f"{DOCUMENTS:,} files" in shown
        assert_nothing_left(fleet)


class TestRestart:
    def test_redis_keeps_what_waits(self, fleet: Compose) -> None:
        """What was sent while no agent could take it is done after Redis has been restarted, too."""
        fleet("stop", "text")
        send = "from workers import text; print(text.keywords.delay('A violin, and a violin.').id)"
        task_id = fleet("run", "--rm", "-T", "--no-deps", "demo", "python", "-c", send).strip()

        fleet("restart", "redis")
        until(lambda: fleet.redis("PING") == "PONG", what="Redis is back", fleet=fleet)
        assert ["workers:nlp"] == waiting(fleet)
        fleet("start", "text")

        read = f"from workers import app; print(app.AsyncResult('{task_id}').get(timeout=60))"
        assert "violin" in fleet("run", "--rm", "-T", "--no-deps", "demo", "python", "-c", read)
        assert_nothing_left(fleet)

    def test_agents_stop_in_order(self, fleet: Compose) -> None:
        """An agent that is asked to stop ends by itself and leaves the fleet."""
        fleet("stop", *AGENTS, seconds=200)

        stopped = [found["State"] for found in fleet.containers(*AGENTS)]
        assert [0] * len(AGENTS) == [state["ExitCode"] for state in stopped]
        assert "" == fleet.redis("ZRANGE", "orchestra:{workers}:agents", "0", "-1").strip()
