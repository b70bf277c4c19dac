import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestra.registry import AgentEntry
from tests.command_line import Shop, invoke, shop_at
from tests.processes import until
from tests.stores import publish


@pytest.fixture
def shop(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    """Give a project whose agents run nowhere."""
    with shop_at(redis_url, tmp_path, monkeypatch) as shop:
        yield shop


def words_of(line: str) -> list[str]:
    """Part a line of a table into its cells' words."""
    return line.split()


class TestAgents:
    def test_a_line_for_each(self, shop: Shop) -> None:
        """An agent's line says what it can do, what it serves, and what it has in hand."""
        shop.agent("text@a", capabilities="mem_gb=64,nlp", running=2, queues=["shop:nlp", "shop:mem_gb~ge~16+nlp"])
        shop.agent("misc@b", capabilities="general")

        result = invoke("agents")

        assert 0 == result.exit_code
        assert [
            ["agent", "capabilities", "serves", "now"],
            ["misc@b", "general", "celery", "idle"],
            ["text@a", "mem_gb=64,", "nlp", "shop:nlp", "shop:mem_gb~ge~16+nlp", "has", "2", "tasks"],
        ] == [words_of(line) for line in result.stdout.splitlines()]

    @pytest.mark.parametrize(("running", "now"), [(1, "drains, has 1 task"), (0, "drained")])
    def test_one_that_drains(self, shop: Shop, running: int, now: str) -> None:
        """An agent that takes no more says so, and what it still has."""
        shop.agent("text@a", queues=[], running=running, draining=True)

        assert words_of(f"text@a nlp - {now}") == words_of(invoke("agents").stdout.splitlines()[1])

    def test_a_lost_one(self, shop: Shop) -> None:
        """An agent that fell silent is still listed, and when none other is alive, the way to start one."""
        shop.agent("text@a")
        shop.app.store.command("ZINCRBY", shop.app.store.keys.agents, -600, "text@a")

        lines = invoke("agents").stdout.splitlines()

        assert lines[1].endswith("lost, seen 10 min ago")
        assert "No agent is running: start a fleet with `orchestra up`, or one agent with" == lines[2]
        assert "  celery -A shop worker --capabilities general -n general@%h" == lines[3]

    def test_none(self, shop: Shop) -> None:
        """Without agents there's no table, but the way to start one."""
        result = invoke("agents")

        assert 0 == result.exit_code
        assert result.stdout.startswith("No agent is running")

    def test_json(self, shop: Shop) -> None:
        """With --json there's one document with all that is known; times are ISO 8601 in UTC, and sets are sorted."""
        shop.agent("text@a", queues=["shop:nlp"])
        (entry,) = shop.app.registry.agents()
        assert isinstance(entry, AgentEntry)

        result = invoke("agents", "--json")

        assert [
            {
                "name": "text@a",
                "capabilities": "nlp",
                "host": "a",
                "pid": 7,
                "pool": "solo",
                "concurrency": 1,
                "queues": ["shop:nlp"],
                "tasks": ["shop.index"],
                "running": 0,
                "draining": False,
                "version": "1",
                "started_at": entry.started_at.isoformat().replace("+00:00", "Z"),
                "last_beat_at": entry.last_beat_at.isoformat().replace("+00:00", "Z"),
                "alive": True,
                "mean_seconds": None,
                "ways": {},
            }
        ] == json.loads(result.stdout)

    def test_none_as_json(self, shop: Shop) -> None:
        """For programs, no agents are an empty list."""
        assert [] == json.loads(invoke("agents", "--json").stdout)


class TestQueues:
    def test_a_line_for_each(self, shop: Shop) -> None:
        """A queue's line says what it requires, how many tasks wait, are delayed and leased, and who serves it."""
        shop.agent("text@a", queues=["shop:nlp", "celery"])
        publish(shop.app.store, "1")
        shop.app.store.command("ZADD", shop.app.store.keys.delayed("shop:nlp"), 1, "a", 2, "b")
        shop.app.store.command("ZADD", shop.app.store.keys.leased("celery"), 1, "holder:1")

        result = invoke("queues")

        assert 0 == result.exit_code
        assert [
            ["queue", "requires", "waiting", "delayed", "leased", "agents"],
            ["celery", "general", "0", "0", "1", "text@a"],
            ["shop:nlp", "nlp", "1", "2", "0", "text@a"],
        ] == [words_of(line) for line in result.stdout.splitlines()]

    def test_what_waits_for_a_breaker(self, shop: Shop) -> None:
        """Where tasks wait for breakers there's a column for them."""
        shop.agent("text@a", queues=["celery"])
        shop.app.store.command("HSET", shop.app.store.keys.parked_counts, "celery", 1200)

        assert [
            ["queue", "requires", "waiting", "delayed", "leased", "parked", "agents"],
            ["celery", "general", "0", "0", "0", "1,200", "text@a"],
        ] == [words_of(line) for line in invoke("queues").stdout.splitlines()[:2]]

    def test_one_that_nobody_serves(self, shop: Shop) -> None:
        """A queue in which tasks wait without an agent is marked, with the command that would start one."""
        shop.agent("text@a")
        publish(shop.app.store, "1", suffix="gpu+mem_gb~ge~16", queue="shop:gpu+mem_gb~ge~16")

        lines = invoke("queues").stdout.splitlines()

        assert ["shop:gpu+mem_gb~ge~16", "gpu,", "mem_gb>=16", "1", "0", "0", "NONE"] in map(words_of, lines)
        assert "  celery -A shop worker --capabilities gpu,mem_gb=16 -n gpu@%h" == lines[-1]

    @pytest.mark.parametrize(
        ("suffix", "said"),
        [
            ("nlp@shop.index", "start one that satisfies nlp and knows shop.index, as with celery -A shop worker"),
            ("mem_gb~gt~16", "start one that satisfies mem_gb>16."),
            ("not~spot", "start one that satisfies !spot, as with celery -A shop worker --capabilities general"),
        ],
    )
    def test_what_could_serve_it(self, shop: Shop, suffix: str, said: str) -> None:
        """The advice names a task that has to be known, and shows no command that may not do."""
        publish(shop.app.store, "1", suffix=suffix, queue=f"shop:{suffix}")

        assert said in " ".join(invoke("queues").stdout.split())

    def test_nothing_waits_and_nobody_serves(self, shop: Shop) -> None:
        """In an empty fleet the way to start an agent is shown."""
        lines = invoke("queues").stdout.splitlines()

        assert words_of("celery general 0 0 0 -") == words_of(lines[1])
        assert lines[3].startswith("No agent is running")

    def test_long_names_are_whole(self, shop: Shop) -> None:
        """What doesn't fit into 80 columns goes on in the next line; nothing of a name is left out."""
        name = "+".join(f"capability_{number}~ge~{number}" for number in range(10))
        publish(shop.app.store, "1", suffix=name, queue=f"shop:{name}")

        lines = invoke("queues", env={"COLUMNS": "80"}).stdout.splitlines()

        assert max(map(len, lines)) <= 80
        assert f"shop:{name}" in "".join(line[: lines[0].index("requires")].strip() for line in lines[2:])

    def test_json(self, shop: Shop) -> None:
        """With --json there's one document, a list of queues."""
        shop.agent("text@a", queues=["shop:nlp"])
        publish(shop.app.store, "1")

        assert [
            {"name": "celery", "requires": "general", "depth": 0, "delayed": 0, "leased": 0, "parked": 0, "agents": []},
            {
                "name": "shop:nlp",
                "requires": "nlp",
                "depth": 1,
                "delayed": 0,
                "leased": 0,
                "parked": 0,
                "agents": ["text@a"],
            },
        ] == json.loads(invoke("queues", "--json").stdout)


class TestHealth:
    def test_all_well(self, shop: Shop) -> None:
        """A fleet that can work is told in four lines, and exit code 0."""
        shop.agent()

        result = invoke("health")

        assert 0 == result.exit_code
        assert ["health", "redis", "agents", "waiting"] == [line.split()[0] for line in result.stdout.splitlines()]
        assert f"at {shop.app.store.location}" in result.stdout

    def test_no_agent(self, shop: Shop) -> None:
        """Without an agent the exit code is 1, and the way to start one is shown."""
        result = invoke("health")

        assert 1 == result.exit_code
        assert "No agent is running" in result.stdout

    def test_each_problem_with_its_remedy(self, shop: Shop) -> None:
        """Every queue that nobody serves is named, with what could serve it."""
        shop.agent()
        for suffix in ("gpu", "lang=fr"):
            publish(shop.app.store, suffix, suffix=suffix, queue=f"shop:{suffix}")

        result = invoke("health")

        assert 1 == result.exit_code
        assert "waiting  2 tasks" in result.stdout
        assert "  celery -A shop worker --capabilities gpu -n gpu@%h" in result.stdout
        assert "  celery -A shop worker --capabilities lang=fr -n lang@%h" in result.stdout

    def test_no_redis(self, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
        """An unreachable Redis is a finding, told with host and port and without the password."""
        monkeypatch.setenv("ORCHESTRA_BROKER_URL", "redis://:hidden@127.0.0.1:1/0")

        result = invoke("health")

        assert 1 == result.exit_code
        assert "redis    no answer from 127.0.0.1:1" in result.stdout
        assert "hidden" not in result.output

    @pytest.mark.parametrize(("redis", "ok"), [(None, True), ("redis://127.0.0.1:1", False)])
    def test_json(self, shop: Shop, monkeypatch: pytest.MonkeyPatch, redis: str | None, ok: bool) -> None:
        """With --json there's one document in either case, and the exit code says the same."""
        if redis is None:
            shop.agent()
        else:
            monkeypatch.setenv("ORCHESTRA_BROKER_URL", redis)

        result = invoke("health", "--json")

        found = json.loads(result.stdout)
        assert {"ok", "redis_ms", "agents", "waiting", "unserved", "problems"} == found.keys()
        assert (ok, ok, not ok) == (found["ok"], result.exit_code == 0, found["redis_ms"] is None)


class TestDrainAndResume:
    def test_unknown_agent(self, shop: Shop) -> None:
        """Who isn't there can't drain; the error names those who are."""
        shop.agent("text@a")

        for command in ("drain", "resume"):
            result = invoke(command, "txt")

            assert 2 == result.exit_code
            assert "error: No live agent is named 'txt': there are text@a.\n" == result.stderr

    def test_one_that_has_tasks_left(self, shop: Shop) -> None:
        """When the timeout comes first, the exit code is 1."""
        shop.agent("text@a", running=2)

        result = invoke("drain", "text", "--timeout", "0")

        assert 1 == result.exit_code
        assert "text@a still has 2 tasks\n" == result.stdout

    def test_there_and_back(self, shop: Shop) -> None:
        """A drained agent serves nothing until it is resumed."""
        with shop.running("nlp"):
            drained = invoke("drain", "agent@test")
            while_drained = invoke("agents")
            resumed = invoke("resume", "agent")
            until(lambda: "idle" in invoke("agents").stdout)

        assert (0, "agent@test is drained\n") == (drained.exit_code, drained.stdout)
        assert words_of("agent@test nlp - drained") == words_of(while_drained.stdout.splitlines()[1])
        assert (0, "agent@test takes tasks again\n") == (resumed.exit_code, resumed.stdout)
