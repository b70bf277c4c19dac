"""The commands about dead letters."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import Shop, invoke, shop_at
from tests.dead import dead_letters_of
from tests.test_scripts_dead import message_of
from tests.transit import QUEUE, Transit, holder_named

HOUR = 3600


@pytest.fixture
def shop(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    """Give a project whose agents run nowhere."""
    with shop_at(redis_url, tmp_path, monkeypatch) as shop:
        yield shop


@pytest.fixture
def transit(shop: Shop) -> Transit:
    """Give three dead letters; `old` died an hour ago."""
    transit = Transit(shop.app.store, shop.app.store._connect())
    for task_id, task, reason in (("old", "shop.index", "poison"), ("1", "shop.index", "permanent")):
        _die(transit, message_of(task_id, task=task), f"{reason}\nKeyError: 'x'\nmore")
    _die(transit, "\udcff no text", "undecodable\nno JSON")
    transit.client.zincrby(transit.keys.dead_letters, -HOUR, "old")
    return transit


def _die(transit: Transit, message: str, detail: str) -> None:
    transit.client.lpush(QUEUE, message.encode(errors="surrogateescape"))
    holder = holder_named("a")
    fetched = transit.fetch(holder)
    assert fetched is not None
    transit.say(holder, "condemn", transit.lease_of(holder, fetched), detail)


def _first_words(output: str) -> list[str]:
    """Return what each line begins with that isn't indented."""
    return [line.split()[0] for line in output.splitlines() if line.strip() and not line.startswith(" ")]


def _document(*words: str) -> Any:
    result = invoke("dead", *words, "--json")
    assert 0 == result.exit_code
    return json.loads(result.stdout)


class TestList:
    def test_a_line_for_each(self, transit: Transit) -> None:
        """Newest first, with the time, the reason, the task, and below them the first line of the error."""
        result = invoke("dead", "list")

        assert 0 == result.exit_code
        assert ["id", "message-1", "1", "old"] == _first_words(result.stdout)
        assert "\n  KeyError: 'x'\n" in result.stdout
        assert "more" not in result.stdout
        assert result.stdout.splitlines()[-2].split()[1:] == ["1", "h", "ago", "poison", "shop.index"]

    @pytest.mark.parametrize(
        ("words", "ids"),
        [
            (["--reason", "poison"], ["old"]),
            (["--task", "shop.*"], ["1", "old"]),
            (["--requires", "nlp", "--since", "10m"], ["message-1", "1"]),
            (["--until", "0.5h"], ["old"]),
            (["--since", "2001-01-01"], ["message-1", "1", "old"]),
            (["--since", "2001-01-01T12:00+02:00", "--reason", "PERMANENT"], ["1"]),
        ],
    )
    def test_filters(self, transit: Transit, words: list[str], ids: list[str]) -> None:
        """Options narrow the list; times are ages or ISO 8601."""
        assert ids == [letter["id"] for letter in _document("list", *words)["letters"]]

    def test_pages(self, transit: Transit) -> None:
        """A list that is longer than its limit says how it goes on."""
        result = invoke("dead", "list", "--limit", "2")
        (line,) = [line for line in result.stdout.splitlines() if "--cursor" in line]
        cursor = line.rpartition("--cursor ")[2].strip("'")

        assert ["id", "old"] == _first_words(invoke("dead", "list", "--cursor", cursor).stdout)

    def test_json(self, transit: Transit) -> None:
        """For programs there is all but the message."""
        document = _document("list", "--task", "shop.*", "--limit", "1")

        (letter,) = document["letters"]
        assert ("1", "permanent", "nlp", 0, 0) == (
            letter["id"], letter["reason"], letter["requires"], letter["lost_processes"], letter["lost_agents"],
        )  # fmt: skip
        assert "message" not in letter
        assert (3, {"age": 0, "surplus": 0}) == (document["total"], document["dropped"])
        assert document["cursor"]

    def test_none(self, shop: Shop) -> None:
        """Without letters there's no table."""
        assert "There are no dead letters.\n" == invoke("dead", "list").stdout
        assert [] == _document("list")["letters"]

    def test_none_of_these(self, transit: Transit) -> None:
        """When filters leave nothing, the rest is mentioned."""
        assert "None of 3 dead letters is such a one.\n" == invoke("dead", "list", "--reason", "expired").stdout

    def test_what_was_dropped(self, transit: Transit) -> None:
        """What the bounds have cost stands below the list."""
        dead_letters_of(transit.store).trim(most=2, ttl_seconds=10 * HOUR)

        assert "Dropped so far: 0 for their age, 1 because there were too many." in invoke("dead", "list").stdout

    @pytest.mark.parametrize(
        ("words", "told"),
        [
            (["--since", "yesterday"], "'yesterday' is no time: write 90s, 10m, 1h or 2d"),
            (["--since", "9" * 30 + "d"], "is no time"),
            (["--reason", "bad"], "'bad' is not one of 'poison'"),
            (["--limit", "0"], "0 is not in the range"),
            (["--cursor", "x"], "'x' is no cursor"),
        ],
    )
    def test_nonsense(self, transit: Transit, words: list[str], told: str) -> None:
        """What can't be read is told in one line."""
        result = invoke("dead", "list", *words)

        assert 2 == result.exit_code
        assert told in result.stderr
        assert 1 == len(result.stderr.splitlines())


class TestShow:
    def test_all_that_is_known(self, transit: Transit) -> None:
        """One letter is shown with its error, its life and its message."""
        lines = invoke("dead", "show", "1").stdout

        for words in ("reason    permanent", "task      shop.index", "KeyError: 'x'\\nmore", '"number": 1'):
            assert words in lines.replace("\n  ", "")

    def test_what_befell_it(self, transit: Transit) -> None:
        """Lost processes stand among the states, in the order of their times."""
        holder = holder_named("b")
        lease = transit.lease(holder, message_of("2"))
        transit.say(holder, "orphaned", lease, "b@test\nsignal 9")
        fetched = transit.fetch(holder)
        assert fetched is not None
        transit.say(holder, "condemn", transit.lease_of(holder, fetched), "poison\ntoo many")

        shown = invoke("dead", "show", "2").stdout

        assert "lost      1 process and 0 agents since it was sent or replayed last" in shown
        assert "process lost  b@test  signal 9" in shown

    def test_bytes_that_are_no_text(self, transit: Transit) -> None:
        """A message that no terminal can show is written out."""
        assert "b'\\xff no text'" in invoke("dead", "show", "message-1").stdout

    def test_json(self, transit: Transit) -> None:
        """For programs the message is there in base64, and as a text where it's one."""
        assert message_of("1") == _document("show", "1")["text"]
        assert ("_yBubyB0ZXh0", None) == tuple(_document("show", "message-1")[name] for name in ("message", "text"))

    def test_unknown(self, shop: Shop) -> None:
        """An id that no letter has is an error."""
        result = invoke("dead", "show", "7c9e")

        assert (2, True) == (result.exit_code, "There is no dead letter 7c9e" in result.stderr)


class TestReplay:
    def test_by_id(self, transit: Transit) -> None:
        """What is named goes back to its queue."""
        assert "1 dead letter replayed.\n" == invoke("dead", "replay", "1").stdout
        assert [message_of("1")] == transit.waiting()

    def test_dry_run(self, transit: Transit) -> None:
        """A dry run shows the newest of them, and how many there are."""
        result = invoke("dead", "replay", "--task", "shop.*", "--since", "2h", "--dry-run")

        assert ["id", "1", "old", "2"] == _first_words(result.stdout)
        assert "2 dead letters would be replayed." in result.stdout
        assert [] == transit.waiting()

    def test_at_a_rate(self, transit: Transit) -> None:
        """All are replayed at the rate that is given."""
        assert "3 dead letters replayed.\n" == invoke("dead", "replay", "--task", "*", "--rate", "1000").stdout

    @pytest.mark.parametrize("command", ["replay", "purge"])
    def test_all_by_accident(self, transit: Transit, command: str) -> None:
        """Without a word on which ones, nothing happens."""
        result = invoke("dead", command)

        assert (2, 3) == (result.exit_code, dead_letters_of(transit.store).count())
        assert "Say which dead letters" in result.stderr


class TestPurge:
    @pytest.mark.parametrize(
        ("words", "typed", "left"),
        [
            (["1"], "", 2),
            (["--task", "shop.*"], "y\n", 1),
            (["--task", "shop.*", "--yes"], "", 1),
            (["--task", "shop.*"], "n\n", 3),
            (["--task", "shop.*", "--dry-run"], "", 3),
            (["--reason", "expired"], "", 3),
        ],
    )
    def test_asks_first(self, transit: Transit, words: list[str], typed: str, left: int) -> None:
        """More than what is named is deleted only when somebody says yes."""
        result = invoke("dead", "purge", *words, input=typed)

        assert left == dead_letters_of(transit.store).count()
        assert (1 if typed == "n\n" else 0) == result.exit_code
