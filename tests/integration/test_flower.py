"""Flower over a live fleet, asked through its HTTP API."""

import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from orchestra import Urgency
from orchestra.embedded import EmbeddedServer
from tests.integration.agents import AgentProcess, Agents, agents, wait_until
from tests.integration.flower_server import PASSWORD, Answer, FlowerServer, flower_of

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

APP = """
import time
from pathlib import Path

from orchestra import OrchestraCelery, RetryableError

app = OrchestraCelery("shop")
app.conf.update(worker_send_task_events=True, task_send_sent_event=True, worker_prefetch_multiplier=1)


@app.task(name="shop.index", requires={"nlp"})
def index(text: str) -> int:
    return len(text)


@app.task(name="shop.read", requires={"io"})
def read(path: str) -> str:
    return Path(path).read_text(encoding="utf-8")


@app.task(name="shop.fetch", requires={"io"})
def fetch() -> None:
    raise RetryableError("the shop is closed", retry_after=600)


@app.task(name="shop.hold", requires={"nlp"})
def hold(path: str) -> None:
    while not Path(path).exists():
        time.sleep(0.02)


@app.task(name="shop.train", requires={"gpu"})
def train() -> None:
    return None
"""

QUIET = ("--without-mingle", "--without-gossip")  # which agents don't need, and start sooner without


@dataclass(frozen=True)
class Shop:
    """The fleet: an io agent and two text agents, and the Flower that watches them."""

    agents: Agents
    flower: FlowerServer
    server: EmbeddedServer
    folder: Path

    def start(self, name: str, capabilities: str, pool: str = "solo") -> AgentProcess:
        """Start an agent, without waiting for it."""
        options = ("--capabilities", capabilities, "-c", "1", *QUIET)
        return self.agents.start(*options, name=name, module="shop", pool=pool, wait=False)

    def spare(self, name: str) -> AgentProcess:
        """Start one more agent, the only one that serves `shop:gpu`, and wait until Flower knows it."""
        agent = self.start(name, "gpu")
        self.wait_for_agents(name)
        return agent

    def wait_for_agents(self, *names: str) -> None:
        """Wait until Flower shows agents online and has asked them about themselves."""
        agents = {f"{name}@test" for name in names}
        wait_until(lambda: agents <= self.flower.online(), what=f"{names} online")
        self.flower.ask(*agents)


@contextmanager
def shop_in(folder: Path) -> Iterator[Shop]:
    """Give a server, a Flower, and a starter of agents."""
    with EmbeddedServer.start() as server, agents(folder, server.url) as started:
        started.write_app(APP, module="shop")
        with flower_of("shop", folder, folder / "flower.log", ORCHESTRA_BROKER_URL=server.url) as flower:
            yield Shop(started, flower, server, folder)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """Give the fleet; it serves the whole module."""
    with shop_in(tmp_path_factory.mktemp("shop")) as made:
        made.start("io", "io")
        made.start("text-1", "nlp", "prefork")
        made.start("text-2", "nlp", "prefork")
        made.wait_for_agents("io", "text-1", "text-2")
        yield made


class TestAuthentication:
    @pytest.mark.parametrize("login", [None, "ada:lovelace", "orchestra:of,lovelace"])
    @pytest.mark.parametrize(
        "path", ["/", "/tasks", "/broker", "/worker/io@test", "/api/workers", "/api/queues/length"]
    )
    def test_pages_and_api_ask_for_the_login(self, shop: Shop, path: str, login: str | None) -> None:
        """Without the right user and password nothing of the fleet is shown."""
        assert 401 == shop.flower.get(path, login=login).status
        assert 200 == shop.flower.get(path).status

    @pytest.mark.parametrize("path", ["/api/task/async-apply/shop.index", "/api/worker/shutdown/io@test"])
    def test_operations_ask_for_it_too(self, shop: Shop, path: str) -> None:
        """Without it nothing is sent and nobody is stopped."""
        before = shop.flower.get("/api/tasks").json

        assert 401 == shop.flower.post(path, login=None).status
        assert before == shop.flower.get("/api/tasks").json
        assert "io@test" in shop.flower.online()

    def test_health_and_metrics_are_open(self, shop: Shop) -> None:
        """What probes ask for needs no login; the metrics tell the names of agents and tasks."""
        assert Answer(200, "OK") == shop.flower.get("/healthcheck", login=None)
        assert 'flower_worker_online{worker="io@test"} 1.0' in shop.flower.get("/metrics", login=None).text

    def test_without_a_password_nothing_can_be_done(self, shop: Shop, tmp_path: Path) -> None:
        """Where no login is set, and only this machine is served, the pages show and the API is off."""
        environment = {"ORCHESTRA_BROKER_URL": shop.server.url, "ORCHESTRA_FLOWER_PASSWORD": ""}
        with flower_of("shop", shop.folder, tmp_path / "flower.log", **environment) as flower:
            assert 200 == flower.get("/", login=None).status
            assert 401 == flower.get("/api/workers", login=None).status
            assert 401 == flower.post("/api/worker/shutdown/io@test", login=None).status


class TestAgents:
    def test_have_their_capability_queues(self, shop: Shop) -> None:
        """Each agent is listed with the queues that its capabilities satisfy."""
        queues = shop.flower.queues()

        assert ["shop:io"] == queues["io@test"]
        assert ["shop:nlp"] == queues["text-1@test"] == queues["text-2@test"]

    @pytest.mark.parametrize("path", ["/api/workers?refresh=1", "/worker/io@test", "/broker", "/", "/api/tasks"])
    def test_show_no_password(self, shop: Shop, path: str) -> None:
        """The agents' settings are shown with the password of the broker's URL masked, and Flower's own never."""
        page = shop.flower.get(path).text

        assert str(urlsplit(shop.server.url).password) not in page
        assert PASSWORD not in page

    def test_pool_grows_and_shrinks(self, shop: Shop) -> None:
        """A pool of processes takes its size from Flower."""
        assert 200 == shop.flower.post("/api/worker/pool/grow/text-1@test").status
        assert 200 == shop.flower.post("/api/worker/pool/shrink/text-1@test").status

    def test_shut_down_is_a_warm_stop(self, shop: Shop) -> None:
        """Flower's button stops an agent as SIGTERM does, and shows it offline."""
        agent = shop.spare("leaving")

        assert 200 == shop.flower.post("/api/worker/shutdown/leaving@test").status

        assert 0 == agent.process.wait(20)
        wait_until(lambda: "leaving@test" not in shop.flower.online())

    def test_killed_one_goes_offline_and_its_queue_stays(self, shop: Shop) -> None:
        """A lost agent is offline some seconds later; what waits for its like is counted, whatever the urgency."""
        agent = shop.spare("killed")
        os.killpg(agent.process.pid, signal.SIGKILL)
        wait_until(lambda: "killed@test" not in shop.flower.online())

        for urgency in Urgency:
            shop.flower.send("shop.train", requires="gpu", urgency=urgency.value)

        assert {"shop:gpu": 4, "shop:io": 0, "shop:nlp": 0} == shop.flower.lengths()


class TestTasks:
    def test_are_routed_by_what_they_require(self, shop: Shop) -> None:
        """What Flower sends by a task's name goes where the task, or the call, says; the queue is shown."""
        applied = shop.flower.post("/api/task/async-apply/shop.index", {"args": ["some words"]}).json["task-id"]
        sent = shop.flower.send("shop.index", "some words")
        asked = shop.flower.send("shop.index", "some words", requires="io")

        assert "shop:nlp" == shop.flower.wait_for_state(applied, "SUCCESS")["routing_key"]
        assert re.fullmatch("text-[12]@test", shop.flower.wait_for_state(sent, "SUCCESS")["worker"])
        assert "io@test" == shop.flower.wait_for_state(asked, "SUCCESS")["worker"]
        assert {"task-id": sent, "state": "SUCCESS", "result": 10} == shop.flower.get(f"/api/task/result/{sent}").json

    def test_whose_requirement_nobody_satisfies_are_pending(self, shop: Shop) -> None:
        """Flower lists no queue that nobody serves; the tasks in it are there, with its name."""
        waiting = shop.flower.send("shop.index", "words", requires="nlp,lang=fr")

        seen = shop.flower.wait_for_state(waiting, "PENDING")

        assert "shop:lang=fr+nlp" == seen["routing_key"]
        assert "shop.index" == seen["name"]
        assert "shop:lang=fr+nlp" not in shop.flower.lengths()

    def test_which_dont_fit_are_refused(self, shop: Shop) -> None:
        """Arguments that the task doesn't take are an error here, not a task; Flower's log has the reason."""
        assert 500 == shop.flower.post("/api/task/async-apply/shop.index", {"args": [5]}).status
        assert shop.flower.process.says("text: Input should be a valid string")

    def test_states(self, shop: Shop, tmp_path: Path) -> None:
        """What runs, fails, or waits to be tried again is told apart."""
        gate = tmp_path / "gate"
        running = shop.flower.send("shop.hold", str(gate))
        failing = shop.flower.send("shop.read", str(tmp_path / "missing"))
        retried = shop.flower.send("shop.fetch")

        assert "shop.hold" == shop.flower.wait_for_state(running, "STARTED")["name"]
        assert "FileNotFoundError" in shop.flower.wait_for_state(failing, "FAILURE")["exception"]
        wait_until(lambda: shop.flower.task(retried).get("retried"))
        assert "the shop is closed" in shop.flower.task(retried)["exception"]

        gate.touch()
        shop.flower.wait_for_state(running, "SUCCESS")
        listed = shop.flower.get("/api/tasks?state=FAILURE").json
        assert {"shop.read"} == {task["name"] for task in listed.values()}

    def test_private_arguments_are_not_shown(self, shop: Shop) -> None:
        """Where the sender gives `argsrepr`, that is what is shown."""
        sent = shop.flower.send("shop.index", "my diary", argsrepr="('…',)")

        assert "('…',)" == shop.flower.wait_for_state(sent, "SUCCESS")["args"]
        assert "diary" not in shop.flower.get("/api/tasks").text


class TestComesLate:
    @pytest.fixture(scope="class")
    @staticmethod
    def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
        """Give a Flower over a fleet without agents."""
        with shop_in(tmp_path_factory.mktemp("empty")) as made:
            yield made

    def test_sees_agents_at_once_and_their_queues_when_told(self, empty: Shop) -> None:
        """A Flower that was there before an agent has to be told to ask it for its queues."""
        empty.start("late", "io")
        wait_until(lambda: "late@test" in empty.flower.online())

        assert "shop:io" not in empty.flower.lengths()

        empty.flower.ask("late@test")

        assert {"shop:io": 0} == empty.flower.lengths()

    def test_outlives_redis(self, empty: Shop) -> None:
        """While Redis is away Flower says so; once it is back, agents, queues and tasks are shown again."""
        empty.start("patient", "nlp")
        empty.wait_for_agents("patient")

        empty.server.kill()

        assert 200 == empty.flower.get("/").status
        assert "No queue data is available" in empty.flower.get("/broker").text
        assert 503 == empty.flower.post("/api/task/send-task/shop.index", {"args": ["words"]}).status

        empty.server.restart()
        back_at = time.time()
        wait_until(lambda: empty.flower.heard_at("patient@test") > back_at, seconds=60, what="a beat after the restart")
        sent = empty.flower.send("shop.index", "words")

        assert "patient@test" == empty.flower.wait_for_state(sent, "SUCCESS")["worker"]
        assert 0 == empty.flower.lengths()["shop:nlp"]
