import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestra.breaker_policy import Breaker
from orchestra.registry import CatalogueEntry
from tests.command_line import Shop, invoke, shop_at
from tests.stores import register

API = Breaker("api", cooldown=7, probes=2)
HOST = Breaker("host", key=lambda url: url)


@pytest.fixture
def shop(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    """Give a project whose fleet declares a breaker, and one for each host."""
    with shop_at(redis_url, tmp_path, monkeypatch) as shop:
        tasks = {f"shop.{one.name}": CatalogueEntry(breaker=one.to_catalogue()) for one in (API, HOST)}
        register(shop.app.registry, tasks=tasks)
        yield shop


def _lines(*words: str) -> list[list[str]]:
    result = invoke("breakers", *words)
    assert 0 == result.exit_code, result.stderr
    return [line.split() for line in result.stdout.splitlines()]


class TestList:
    def test_what_is_declared(self, shop: Shop) -> None:
        """A breaker that a task declares is listed before it was ever called; one with a key when it is."""
        expected = [["breaker", "state", "failed", "waiting", "since", "until"]]

        assert [*expected, ["api", "closed", "0", "of", "0", "0", "-", "-"]] == _lines("list")

    def test_what_is_open(self, shop: Shop) -> None:
        """An open one tells since when and until when; who did what stands below."""
        invoke("breakers", "open", "host:example.org", "--for", "60")
        invoke("breakers", "open", "api")

        _, api, host, _, heading, *changes = _lines("list")

        assert ["api", "open", "0", "of", "0", "0", "0", "s", "ago", "closed"] == api
        assert ["host:example.org", "open"] == host[:2]
        assert host[-1].count(":") == 2
        assert ["last", "changes"] == heading
        assert [["host:example.org", "open", "by"], ["api", "open", "by"]] == [words[2:5] for words in changes]

    def test_json(self, shop: Shop) -> None:
        """For programs there is all that is known."""
        invoke("breakers", "open", "api")

        (found,) = json.loads(invoke("breakers", "list", "--json").stdout)

        assert {"name": "api", "state": "open", "forced": True, "until": None, "places": 2}.items() <= found.items()
        assert ["open"] == [change["state"] for change in found["changes"]]

    def test_none(self, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where there is none it says so."""
        with shop_at(redis_url, tmp_path, monkeypatch):
            assert invoke("breakers", "list").stdout.startswith("No task declares a breaker")


class TestSteering:
    def test_there_and_back(self, shop: Shop) -> None:
        """Each command says what is now; the policy's cooldown and probes go with an open one."""
        assert "api is open until it's closed\n" == invoke("breakers", "open", "api").stdout
        assert "api is open for 1.5 s\n" == invoke("breakers", "open", "api", "--for", "1.5").stdout
        keys = shop.app.store.keys
        assert [b"7", b"2"] == shop.app.store.command("HMGET", keys.breaker("api"), "cooldown", "probes")
        assert "api is closed\n" == invoke("breakers", "close", "api").stdout
        assert "api was closed already\n" == invoke("breakers", "close", "api").stdout
        assert "api is reset\n" == invoke("breakers", "reset", "api").stdout
        assert [] == shop.app.breakers.names()

    @pytest.mark.parametrize("command", ["open", "close", "reset"])
    @pytest.mark.parametrize(
        ("name", "nearest"), [("apy", "there are api"), ("host", "there are host:…"), ("api:key", "there are api")]
    )
    def test_a_name_nobody_knows(self, shop: Shop, command: str, name: str, nearest: str) -> None:
        """It's refused, with the nearest that there are."""
        result = invoke("breakers", command, name)

        assert (2, "") == (result.exit_code, result.stdout)
        assert f"No breaker is named {name!r}: {nearest}." in result.stderr

    def test_one_that_is_declared_no_more(self, shop: Shop) -> None:
        """A breaker that was called can be steered though no task of the fleet declares it."""
        shop.app.breakers.open("former", by="ann")

        assert "former is closed\n" == invoke("breakers", "close", "former").stdout

    @pytest.mark.parametrize("seconds", ["0", "-1", "x"])
    def test_no_time(self, shop: Shop, seconds: str) -> None:
        """A time that makes no sense is refused."""
        assert 2 == invoke("breakers", "open", "api", "--for", seconds).exit_code
