"""The command that tells why a task waits."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command_line import Shop, invoke, shop_at

NOBODY = "00000000-0000-0000-0000-000000000000"


@pytest.fixture
def shop(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    """Give a project without agents."""
    with shop_at(redis_url, tmp_path, monkeypatch) as shop:
        yield shop


def sent(**options: str) -> str:
    """Submit a task by the command, and return its id."""
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    return invoke("submit", "shop.index", "--json", '{"text": "a"}', *words).stdout.strip()


class TestExplain:
    def test_lines(self, shop: Shop) -> None:
        """What a person reads: where it is, why, and who lacks what."""
        shop.agent("big@a", capabilities="gpu,mem_gb=24")
        task_id = sent(requires="gpu,mem_gb>=40")

        result = invoke("explain", task_id)

        head, *lines = result.stdout.splitlines()
        assert head == f"shop.index {task_id} is queued in"  # it goes on in the next line
        assert lines[0].startswith("shop:gpu+mem_gb~ge~40, 1st of 1, for ")
        assert ["No live agent can run it.", "  big@a  has gpu, mem_gb=24  lacks mem_gb>=40"] == lines[1:]
        assert 0 == result.exit_code

    def test_json(self, shop: Shop) -> None:
        """With --json there's all that is known, every agent included."""
        for number in range(20):
            shop.agent(f"a{number}@a", capabilities="gpu")
        task_id = sent()

        found = json.loads(invoke("explain", task_id, "--json").stdout)

        assert ("task", task_id, "shop.index", "submitted", "shop:nlp", "nlp", 1, 1) == tuple(
            found[name] for name in ("subject", "about", "task", "state", "queue", "requires", "position", "depth")
        )
        assert ["no_agent_satisfies"] == [cause["kind"] for cause in found["causes"]]
        assert (20, ["nlp"]) == (len(found["agents"]), found["agents"][0]["lacks"])
        assert found["wait"] is None

    @pytest.mark.parametrize("thing", ["shop.index", "nlp", "nlp,mem_gb>=16"])
    def test_other_things(self, shop: Shop, thing: str) -> None:
        """A task's name, and a requirement that nobody has asked for, are answered too."""
        result = invoke("explain", thing)

        assert (0, "No agent is alive.") == (result.exit_code, result.stdout.splitlines()[-1])

    @pytest.mark.parametrize(("thing", "words"), [(NOBODY, "it was never submitted"), ("shop.indx", "shop.index")])
    def test_unknown(self, shop: Shop, thing: str, words: str) -> None:
        """What nothing is known of is exit code 1, with what that may mean."""
        result = invoke("explain", thing)

        assert 1 == result.exit_code
        assert f"{thing} is unknown." == result.stdout.splitlines()[0]
        assert words in " ".join(result.stdout.split())
        assert "unknown" == json.loads(invoke("explain", thing, "--json").stdout)["subject"]

    @pytest.mark.parametrize("thing", ["", "gpu,,"])
    def test_what_can_not_be_read(self, shop: Shop, thing: str) -> None:
        """What is nothing, or no requirement, is an error in one line."""
        result = invoke("explain", thing)

        assert (2, "", 1) == (result.exit_code, result.stdout, result.stderr.count("\n"))

    def test_without_redis(self, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
        """So is a Redis that is away, with its place and without its password."""
        monkeypatch.setenv("ORCHESTRA_BROKER_URL", "redis://:hidden@127.0.0.1:1/0")

        result = invoke("explain", NOBODY)

        assert (2, "", 1) == (result.exit_code, result.stdout, result.stderr.count("\n"))
        assert "127.0.0.1:1" in result.stderr
        assert "hidden" not in result.stderr
