"""Delayed tasks, live: they wait in Redis rather than in a worker, come on time, and come once, whatever dies."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

import pytest
from celery.exceptions import TaskRevokedError

from orchestra import Orchestra, TaskState
from orchestra.store import Keys
from tests.chaos.servers import Server, server_in
from tests.fleets import app_at, stock_at
from tests.integration.agents import AgentProcess, agents, wait_until
from tests.keys import keys_holding, lengths_of_lists

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

MARK = "mark of a message"
KEYS = Keys("orchestra", "fleet")
GENERAL = "celery"  # the queue of tasks without requirements
DELAY_SECONDS = 8  # so that a busy machine looks at what waits before it is due
LATE_SECONDS = 5  # the promise is one; but other tests may run beside these
VALUES = [1.0, 1e300, 12345678901234567890, -0.0, 0.1, [], {}, {"empty": [[], {}]}, None, "Grüße, 世界 🎻\n"]

# Each run is a line of a file, with the time at which it began.
FLEET = """
import json
import os
import time
from pathlib import Path

from orchestra import Backoff, OrchestraCelery, RetryableError

app = OrchestraCelery("fleet")
RAN = Path(__file__).with_name("ran")


@app.task(bind=True)
def note(self, *args):
    line = {"id": self.request.id, "at": time.time(), "agent": os.environ["RUNS_AS"], "args": args}
    with RAN.open("a", encoding="utf-8") as ran:
        ran.write(json.dumps(line) + "\\n")


@app.task(bind=True, max_attempts=2, backoff=Backoff(base_seconds=8, jitter="none"))
def flaky(self):
    note.run()
    if self.request.retries == 0:
        raise RetryableError("not yet")


@app.task(bind=True)
def again(self):
    note.run()
    if self.request.retries == 0:
        raise self.retry(countdown=8)
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Give a server that may be killed, and keeps what it was told."""
    with server_in(tmp_path / "redis", append_only=True) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[Any]:
    """Give a client of the test's own."""
    with server.client() as client:
        yield client


@pytest.fixture
def app(server: Server) -> Iterator[Any]:
    """Give an app of the fleet that knows none of its tasks."""
    with app_at(server.url, main="fleet") as app:
        yield app


@pytest.fixture
def start(server: Server, tmp_path: Path) -> Iterator[Callable[..., AgentProcess]]:
    """Give a function that starts an agent by its name."""
    with agents(tmp_path, server.url) as started:
        started.write_app(FLEET)

        def one(name: str = "agent", *options: str, pool: str = "solo") -> AgentProcess:
            return started.start(*options, name=name, pool=pool, RUNS_AS=name)

        yield one


@pytest.fixture
def ran(tmp_path: Path) -> Callable[[], list[dict[str, Any]]]:
    """Give a function that tells what ran, in its order."""

    def lines() -> list[dict[str, Any]]:
        noted = tmp_path / "ran"
        return [json.loads(line) for line in noted.read_text("utf-8").splitlines()] if noted.exists() else []

    return lines


def _send(app: Any, *args: Any, task: str = "note", **options: Any) -> Any:
    headers = {"mark": MARK, "values": VALUES}
    return app.send_task(f"fleet.{task}", args, headers=headers, **options)


def _in(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


def _delayed(client: Any, queue: str = GENERAL) -> list[tuple[str, bytes]]:
    """List what is delayed for a queue: the list that each message is for, and its bytes."""
    values = [value.split(b"\n", 2) for value in client.zrange(KEYS.delayed(queue), 0, -1)]
    return [(target.decode(), raw) for _, target, raw in values]


def _spread(app: Any, count: int, *, first: float, last: float) -> dict[str, float]:
    """Send tasks that become due one after the other; return the ids with the times, in s since 1970."""
    moments = [_in(first + number * (last - first) / count) for number in range(count)]
    return {_send(app, eta=moment).id: moment.timestamp() for moment in moments}


def _in_timers(app: Any) -> dict[str, list[Any]]:
    """Return what agents hold in their own timers, and what they have fetched and not begun."""
    inspect = app.control.inspect(timeout=5, limit=1)
    (scheduled,), (reserved,) = inspect.scheduled().values(), inspect.reserved().values()
    return {"scheduled": scheduled, "reserved": reserved}


NOTHING: dict[str, list[Any]] = {"scheduled": [], "reserved": []}


class TestWaiting:
    @pytest.mark.parametrize(
        ("task", "when"),
        [
            ("note", lambda: {"countdown": DELAY_SECONDS}),
            ("note", lambda: {"eta": _in(DELAY_SECONDS)}),
            ("note", lambda: {"eta": _in(DELAY_SECONDS).astimezone(timezone(timedelta(hours=-11)))}),
            ("note", lambda: {"eta": _in(DELAY_SECONDS).replace(tzinfo=None)}),  # as everywhere in Celery, that is UTC
            ("flaky", dict),
            ("again", dict),
        ],
        ids=["countdown", "eta", "eta of another zone", "eta without a zone", "RetryableError", "self.retry"],
    )
    def test_every_delay_waits_in_redis(
        self,
        task: str,
        when: Callable[[], dict[str, Any]],
        start: Callable[..., AgentProcess],
        app: Any,
        client: Any,
        ran: Any,
    ) -> None:
        """However a delay came about, an agent neither holds nor leases the message, and runs it when it's due."""
        start()
        engine, before = Orchestra(app), 1 if task != "note" else 0

        result = _send(app, task=task, **when())

        wait_until(lambda: _delayed(client), what="a delayed message")
        ((_, due),) = client.zrange(KEYS.delayed(GENERAL), 0, -1, withscores=True)
        wait_until(lambda: not client.zcard(KEYS.leased(GENERAL)), what="no lease")
        assert {KEYS.delayed(GENERAL)} == keys_holding(client, MARK)
        assert NOTHING == _in_timers(app)
        assert [1] == [queue.delayed for queue in engine.queues() if queue.name == GENERAL]
        record = engine.handle(result.id).record()
        assert record is not None
        assert datetime.fromtimestamp(due, UTC) == record.not_before
        assert before == len(ran())
        assert result.get(timeout=30) is None
        assert due <= ran()[-1]["at"] <= due + LATE_SECONDS
        assert before + 1 == len(ran())
        wait_until(lambda: not keys_holding(client, MARK), what="no message left")

    def test_100_000_cost_no_worker_memory(
        self, start: Callable[..., AgentProcess], server: Server, app: Any, client: Any, tmp_path: Path
    ) -> None:
        """They are in Redis alone, as `orchestra queues` shows; `celery purge` drops them with what waits."""
        agent, engine = start(), Orchestra(app)
        _send(app).get(timeout=20)  # it has loaded what it needs
        before = _resident_mb(agent)

        _fill(app, 100_000, seconds=3600)

        beats = client.hget(KEYS.beats, "last")
        wait_until(lambda: float(client.hget(KEYS.beats, "last")) > float(beats) + 3, what="a few beats with them")
        assert _resident_mb(agent) - before < 5
        assert [(0, 100_000, 0)] == [(queue.depth, queue.delayed, queue.leased) for queue in engine.queues()]
        told = _told(tmp_path, server, "orchestra", "--app", "fleet", "queues")
        assert f"{GENERAL} general 0 100,000 0 agent@test" in told
        assert NOTHING == _in_timers(app)

        told = _told(tmp_path, server, "celery", "-A", "fleet", "purge", "-f")
        assert "100000 messages" in told
        assert not client.exists(KEYS.delayed(GENERAL), KEYS.due)


def _fill(app: Any, count: int, *, seconds: float) -> None:
    """Publish copies of one delayed task as a batch does: with `submit_many` it would take half a minute."""
    headers, properties, body, _ = app.amqp.as_task_v2(str(uuid4()), "fleet.note", countdown=seconds)
    with app.producer_pool.acquire() as producer, producer.batch(500):
        for _ in range(count):
            one = {**headers, "id": str(uuid4())}
            producer.publish(body, routing_key=GENERAL, headers=one, serializer="json", **properties)


def _resident_mb(agent: AgentProcess) -> float:
    """Return the memory of an agent and of its child processes."""
    parent = agent.process.pid
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text(encoding="ascii").split()
    statuses = [Path(f"/proc/{pid}/status").read_text(encoding="utf-8") for pid in (parent, *children)]
    return sum(int(status.partition("VmRSS:")[2].split()[0]) for status in statuses) / 1024


def _told(folder: Path, server: Server, *command: str) -> str:
    """Run a command in the project's folder; return what it wrote."""
    program = [sys.executable, "-m", *command]
    environment = {**os.environ, "ORCHESTRA_BROKER_URL": server.url, "RUNS_AS": "nobody", "COLUMNS": "120"}
    done = subprocess.run(program, cwd=folder, env=environment, check=True, capture_output=True, text=True, timeout=60)
    return " ".join(done.stdout.split())


class TestOnTime:
    def test_an_idle_fleet(self, start: Callable[..., AgentProcess], app: Any, client: Any, ran: Any) -> None:
        """Two hundred tasks spread over ten seconds each run once, none before its time or a second after it."""
        start("one")
        start("two")

        due = _spread(app, 200, first=1, last=11)

        wait_until(lambda: len(ran()) >= len(due), seconds=30, what="every run")
        wait_until(lambda: not keys_holding(client, MARK), what="no message left")
        assert dict.fromkeys(due, 1) == Counter(run["id"] for run in ran())
        late = [run["at"] - due[run["id"]] for run in ran()]
        assert 0 <= min(late) <= median(late) <= max(late) < LATE_SECONDS, (median(late), max(late))

    def test_over_the_ends_of_server_and_agents(
        self, start: Callable[..., AgentProcess], server: Server, app: Any, client: Any, ran: Any
    ) -> None:
        """A killed server and restarted agents lose none, run none early, and none twice but what was running."""
        first = [start("one"), start("two"), start("three")]
        due = _spread(app, 300, first=14, last=20)
        assert len(due) == sum(queue.delayed for queue in Orchestra(app).queues())

        client.execute_command("WAITAOF", 1, 0, 10_000)
        server.kill()
        server.start()
        for agent in first:
            agent.stop()
        agents_now = [start(name) for name in ("four", "five", "six")]
        assert (len(due), []) == (client.zcard(KEYS.delayed(GENERAL)), ran())

        wait_until(lambda: len(ran()) >= 60, what="some runs")
        agents_now[0].stop()
        start("seven")
        wait_until(lambda: len(ran()) >= 150, what="half of the runs")
        os.killpg(agents_now[1].process.pid, signal.SIGKILL)

        wait_until(lambda: not keys_holding(client, MARK), seconds=60, what="no message left")
        runs = Counter(run["id"] for run in ran())
        assert due.keys() == runs.keys()
        assert all(run["at"] >= due[run["id"]] for run in ran())
        by_the_killed = [run["id"] for run in ran() if run["agent"] == "five"]
        assert {task_id for task_id, times in runs.items() if times > 1} <= set(by_the_killed[-1:])


class TestBytes:
    def test_no_message_is_rewritten(self, start: Callable[..., AgentProcess], app: Any, client: Any, ran: Any) -> None:
        """What arrives in the queue is byte for byte what was put by, whoever moved it, and so are its arguments."""
        start("mover")  # which doesn't serve the queue
        result = _send(app, *VALUES, requires={"nlp"}, countdown=1.5)
        ((target, raw),) = _delayed(client, "fleet:nlp")

        wait_until(lambda: client.llen(target), what="the message in its queue")

        assert [raw] == client.lrange(target, 0, -1)
        assert not ran()
        start("nlp", "--capabilities", "nlp")
        result.get(timeout=20)
        assert [json.dumps(VALUES)] == [json.dumps(run["args"]) for run in ran()]


class TestStockProducers:
    def test_a_later_eta(
        self, start: Callable[..., AgentProcess], server: Server, app: Any, client: Any, ran: Any
    ) -> None:
        """What a stock producer put into the queue too early is put by as it is, not held by an agent."""
        due = _in(7)
        with stock_at(server.url) as stock:
            _send(stock, *VALUES, eta=due)
        ((target, (raw,)),) = [(name, client.lrange(name, 0, -1)) for name in lengths_of_lists(client)]

        start()

        wait_until(lambda: _delayed(client), what="a delayed message")
        wait_until(lambda: not client.zcard(KEYS.leased(GENERAL)), what="no lease")
        assert [(target, raw)] == _delayed(client)
        assert NOTHING == _in_timers(app)
        assert not ran()
        wait_until(ran, what="the run")
        assert due.timestamp() <= ran()[0]["at"] <= due.timestamp() + 1
        assert json.dumps(VALUES) == json.dumps(ran()[0]["args"])
        wait_until(lambda: not keys_holding(client, MARK), what="no message left")

    def test_an_eta_that_is_past(
        self, start: Callable[..., AgentProcess], server: Server, app: Any, client: Any, ran: Any
    ) -> None:
        """What is due runs at once, by no timer of the agent's."""
        with stock_at(server.url) as stock:
            for _ in range(20):
                _send(stock, eta=_in(-60))

        start()

        wait_until(lambda: len(ran()) == 20, what="the runs")
        assert NOTHING == _in_timers(app)
        assert not client.exists(KEYS.delayed(GENERAL), KEYS.due)


class TestExpiring:
    @pytest.mark.parametrize(
        "options", [{"expires": 0.3}, {"countdown": 1.5, "expires": 0.3}], ids=["waiting", "delayed"]
    )
    def test_too_late(
        self, options: dict[str, Any], start: Callable[..., AgentProcess], app: Any, client: Any, ran: Any
    ) -> None:
        """A task that can't start before it expires never does: its record says so, and Celery calls it revoked."""
        result = _send(app, **options)
        expires = time.time() + options["expires"]
        wait_until(lambda: time.time() > expires, what="the task to expire")

        start()

        with pytest.raises(TaskRevokedError, match="expired"):
            result.get(timeout=20)
        assert ("REVOKED", TaskState.EXPIRED) == (result.state, Orchestra(app).handle(result.id).state)
        letter = KEYS.dead_letter(result.id)
        wait_until(lambda: {letter} == keys_holding(client, MARK), what="no message but the dead letter")
        assert not ran()

    def test_in_time(self, start: Callable[..., AgentProcess], app: Any, ran: Any) -> None:
        """A delayed task that is due before it expires runs."""
        start()

        result = _send(app, countdown=1, expires=30)

        assert result.get(timeout=20) is None
        assert [result.id] == [run["id"] for run in ran()]
