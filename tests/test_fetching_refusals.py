"""How fetching goes on where the server refuses something, or has forgotten the scripts."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from orchestra.embedded import EmbeddedServer
from orchestra.leases import LeaseHolder
from tests.fleets import app_at, commands_at
from tests.keys import keys_holding
from tests.readers import LETTERS, Reader, put, reader_at


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    """Give a server whose configuration may be changed."""
    with EmbeddedServer.start() as server:
        yield server


@pytest.fixture
def client(server: EmbeddedServer) -> Iterator[Any]:
    """Give a client of that server, which holds nothing yet."""
    with Redis.from_url(server.url) as client:
        client.flushall()
        yield client


@pytest.fixture
def app(server: EmbeddedServer, client: Any) -> Iterator[Any]:
    """Give an app on that server."""
    with app_at(server.url) as app:
        yield app


def _leased(client: Any) -> set[str]:
    """Return the names of the keys that hold leased letters."""
    return keys_holding(client, f"{LETTERS}\n")


class TestForgottenScripts:
    def test_in_the_middle_of_consuming(self, app: Any, client: Any) -> None:
        """A server that has lost the scripts is told them, once each; no message is lost or doubled."""
        with reader_at(app, slots=1) as reader, commands_at(str(app.conf.broker_read_url)) as commands:
            reader.consume(on_message=reader.take_and_settle)
            for number in range(3):
                client.script_flush()
                put(app, f"{number} a", f"{number} b")
                reader.read(2 * number + 2)

        assert [f"{number} {letter}" for number in range(3) for letter in "ab"] == reader.texts
        assert 3 == sum(command.startswith("EVAL -- Pop messages") for command in commands)

    def test_with_news(self, app: Any, client: Any) -> None:
        """News that the server couldn't take in for want of a script are told with the next call."""
        put(app, "a")
        with reader_at(app, slots=1) as reader:
            reader.consume()
            reader.read(1)
            _exhaust(reader)
            client.script_flush()
            reader.messages[0].requeue()

            assert ["a", "a"] == reader.read(2)
            assert reader.messages[1].delivery_info["redelivered"]
            reader.messages[1].ack()
            reader.settle()
        assert set() == _leased(client)


def _exhaust(reader: Reader) -> None:
    """Have a reader with one message in hand and no room for another know that nothing waits."""
    reader.holder.slots = lambda: 2
    reader.until(lambda: reader.channel._exhausted and reader.channel.fetches)
    reader.holder.slots = lambda: 1
    reader.until(lambda: not reader.channel.fetches)
    assert reader.channel._exhausted


@contextmanager
def _out_of_memory(client: Any) -> Iterator[None]:
    client.config_set("maxmemory", 1)
    try:
        yield
    finally:
        client.config_set("maxmemory", 0)


@contextmanager
def _too_few_replicas(client: Any) -> Iterator[None]:
    """Have the server refuse every write, as one with a full disk does."""
    client.config_set("min-replicas-to-write", 1)
    try:
        yield
    finally:
        client.config_set("min-replicas-to-write", 0)


@contextmanager
def _read_only(client: Any) -> Iterator[None]:
    client.replicaof("127.0.0.1", 1)
    try:
        yield
    finally:
        client.replicaof("NO", "ONE")


FULL = [pytest.param(_out_of_memory, id="OOM"), pytest.param(_too_few_replicas, id="NOREPLICAS")]
REFUSALS = [*FULL, pytest.param(_read_only, id="READONLY")]


class TestRefusals:
    @pytest.mark.parametrize("waiting", [False, True])
    def test_a_fetch_that_is_refused(self, app: Any, client: Any, waiting: bool) -> None:
        """A refusal is the loss of a connection; whoever connects anew gets all that is there, once and in order."""
        holder = LeaseHolder(agent="text@a", slots=lambda: 4)
        with reader_at(app, holder=holder) as reader:
            put(app, "a", "b")
            reader.consume()
            reader.read(2)
            if waiting:
                reader.until(lambda: reader.channel._exhausted and reader.channel.fetches)
            else:
                reader.channel._exhausted = False
            with _read_only(client), pytest.raises(RedisConnectionError):
                reader.read(3)
        put(app, "c")

        with reader_at(app, holder=holder) as reader:
            reader.consume()
            assert ["a", "b", "c"] == reader.read(3)

    @pytest.mark.parametrize("refusing", FULL)
    def test_a_server_that_is_full(
        self, app: Any, client: Any, refusing: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A server that takes nothing in is asked now and then, on the same connection, until it does."""
        holder = LeaseHolder(agent="text@a", slots=lambda: 4)
        with reader_at(app, holder=holder) as reader, commands_at(str(app.conf.broker_read_url)) as commands:
            put(app, "a", "b")
            reader.consume()
            reader.read(2)
            session = reader.connection.transport.session
            reader.messages[0].requeue()
            with refusing(client):
                reader.until(lambda: "redis takes nothing in" in caplog.text)
                for _ in range(5):
                    reader.turn()
                assert 2 == len(reader.messages)

            assert ["a", "b", "a"] == reader.read(3)
            assert session == reader.connection.transport.session
        assert 1 == caplog.text.count("redis takes nothing in")
        assert 20 > sum(command.startswith("EVAL") for command in commands)

    @pytest.mark.parametrize("refusing", REFUSALS)
    def test_acknowledgements_outlive_it(self, app: Any, client: Any, refusing: Any) -> None:
        """What was acknowledged in the meantime is told over the next connection, and doesn't come again."""
        put(app, "a", "b")
        holder = LeaseHolder(agent="text@a", slots=lambda: 2)
        with reader_at(app, holder=holder) as reader:
            reader.consume()
            reader.read(2)
            with refusing(client):
                reader.messages[0].ack()
                reader.messages[1].requeue()

        with reader_at(app, holder=holder) as reader:
            reader.consume()
            assert ["b"] == reader.read(1)
            reader.messages[0].ack()
            reader.settle()
        assert (0, set()) == (client.llen(LETTERS), _leased(client))

    def test_news_are_told_later(self, app: Any, client: Any, caplog: pytest.LogCaptureFixture) -> None:
        """News that are refused while a fetch waits are kept, and told when the server takes them again."""
        put(app, "a")
        with reader_at(app, slots=2) as reader:
            reader.consume()
            reader.read(1)
            reader.until(lambda: reader.channel.fetches and not reader.channel.carries_news)
            with _out_of_memory(client), caplog.at_level("INFO"):
                reader.messages[0].requeue()
                reader.send()
            assert "leases not told" in caplog.text
            assert 1 == reader.holder.untold

            assert ["a", "a"] == reader.read(2)

    def test_with_more_under_way(self, app: Any, client: Any) -> None:
        """After refused news nothing that was asked on that connection is taken for the answer to anything else."""
        put(app, "a")
        with reader_at(app, slots=1) as reader:
            reader.consume()
            reader.read(1)
            _exhaust(reader)
            reader.messages[0].requeue()
            with _read_only(client), pytest.raises(RedisConnectionError, match="refused"):
                reader.read(2)

            assert ["a", "a"] == reader.read(2)
