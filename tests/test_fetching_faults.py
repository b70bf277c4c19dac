"""How fetching goes on after faults, on a real server: lost answers, silent connections, one after another."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

import pytest
from redis import Redis
from redis.credentials import UsernamePasswordCredentialProvider

from orchestra.embedded import EmbeddedServer
from orchestra.leases import Lease, LeaseHolder
from orchestra.store import Keys, load_script, text_of
from orchestra.transport import FleetConnection
from tests.fleets import app_at, commands_at, quick
from tests.keys import keys_holding
from tests.processes import until
from tests.proxies import Proxy, proxy_to
from tests.readers import LETTERS, Reader, put, reader_at

KEYS = Keys("orchestra", "shop")


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:
    """Give a client of the test's own."""
    with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def app(redis_url: str) -> Iterator[Any]:
    """Give an app."""
    with app_at(redis_url) as app:
        yield app


@pytest.fixture
def proxy(redis_server: EmbeddedServer) -> Iterator[Proxy]:
    """Give a proxy in front of the server."""
    with proxy_to(redis_server.port) as proxy:
        yield proxy


@pytest.fixture
def far_app(redis_url: str, proxy: Proxy, client: Any) -> Iterator[Any]:
    """Give an app behind that proxy, on a server that knows the scripts."""
    for script in ("fetch", "news"):
        client.script_load(load_script(script).source)
    options = {"health_check_interval": 0.1}  # s; how long an answer may be overdue
    with app_at(proxy.through(redis_url), changes={"broker_transport_options": options}) as app:
        yield app


def _leased(client: Any) -> set[str]:
    """Return the names of the keys that hold leased letters."""
    return {key.removeprefix(KEYS.base) for key in keys_holding(client, f"{LETTERS}\n")}


class TestLostConnections:
    def test_cut_by_the_server(self, app: Any, client: Any) -> None:
        """Who waits on a connection that the server ends is told, and may go on."""
        with reader_at(app, slots=2) as reader:
            reader.consume()
            reader.until(lambda: _blocked(client))
            client.client_kill_filter(_id=_blocked(client)[0])

            with pytest.raises(reader.connection.connection_errors):
                reader.until(lambda: False)
            put(app, "a")
            assert ["a"] == reader.read(1)

    def test_an_answer_that_is_lost(self, app: Any, far_app: Any, proxy: Proxy) -> None:
        """What was fetched and never arrived comes again, in its order and once."""
        put(app, "a", "b", "c")
        with reader_at(far_app, slots=2) as reader:
            self._lose_the_first_fetch(reader, proxy)

            assert ["a", "b"] == reader.read(2)
            assert 2 == reader.connection.transport.session
            reader.messages[0].ack()
            assert ["a", "b", "c"] == reader.read(3)

    def test_an_answer_that_is_lost_by_others(self, app: Any, far_app: Any, proxy: Proxy) -> None:
        """So it does where the consumer is no agent."""
        put(app, "a", "b")
        with reader_at(far_app) as reader:
            self._lose_the_first_fetch(reader, proxy)

            assert "a" in reader.read(1)

    @staticmethod
    def _lose_the_first_fetch(reader: Reader, proxy: Proxy) -> None:
        reader.consume()
        proxy.lose_reply(load_script("fetch").sha.encode())
        with pytest.raises(reader.connection.connection_errors):
            reader.read(1)
        assert 1 == len(proxy.lost)

    def test_news_are_told_again(self, app: Any, far_app: Any, proxy: Proxy, client: Any) -> None:
        """Acknowledgements that went with a fetch whose answer was lost are told again, and do no harm."""
        put(app, "a", "b")
        with reader_at(far_app, slots=1) as reader:
            reader.consume()
            reader.read(1)
            proxy.lose_reply(load_script("fetch").sha.encode())
            reader.messages[0].ack()
            with pytest.raises(reader.connection.connection_errors):
                reader.read(2)
            assert 1 == reader.holder.untold

            assert ["a", "b"] == reader.read(2)
            reader.messages[1].ack()
            reader.settle()
        assert (0, set()) == (client.llen(LETTERS), _leased(client))

    def test_one_that_falls_silent(self, app: Any, far_app: Any, proxy: Proxy, client: Any) -> None:
        """A connection that owes an answer for too long is dropped, with those beside it; a new one goes on."""
        with reader_at(far_app, slots=1) as reader:
            reader.consume()
            reader.until(lambda: _blocked(client))
            proxy.silence()
            put(app, "a")

            assert ["a"] == reader.read(1)
            assert 2 == reader.connection.transport.session


def _blocked(client: Any) -> list[str]:
    """Return the ids of the connections that wait for a word of new work."""
    return [text_of(one["id"]) for one in client.client_list() if one["cmd"] == "blpop" and "b" in one["flags"]]


class TestIdleConnections:
    def test_ended_by_the_server(self, app: Any, client: Any) -> None:
        """A connection that the server ends while nothing is asked on it is made anew when it's needed."""
        put(app, "a", "b")
        with reader_at(app, slots=1) as reader:
            reader.consume()
            reader.read(1)
            client.client_kill_filter(_type="normal", skipme=True)
            reader.turn()
            reader.messages[0].ack()

            assert ["a", "b"] == reader.read(2)

    def test_of_nobody(self, app: Any) -> None:
        """Word of a connection that is gone already is passed by."""
        with reader_at(app, slots=1) as reader:
            reader.connection.transport.on_readable(-1)

    def test_busy_agents_look_no_further(self, app: Any) -> None:
        """When nothing waits, an agent without a free process asks for nothing until it has one, and then at once."""
        put(app, "a")
        with reader_at(app, slots=1) as reader:
            reader.holder.pace.note(0.01)  # so that it may fetch ahead
            reader.consume()
            reader.until(lambda: reader.messages and not reader.channel.fetches)
            for _ in range(3):
                reader.turn(seconds=0.01)
                assert not reader.channel.fetches
            put(app, "b")
            reader.messages[0].ack()

            assert ["a", "b"] == reader.read(2)


class TestSessions:
    def test_an_old_connection_fetches_nothing(self, app: Any, client: Any) -> None:
        """What comes goes to a holder's last connection, though a fetch of the one before waits for it as well."""
        holder = LeaseHolder(agent="text@a", slots=lambda: 2)
        with reader_at(app, holder=holder) as old, reader_at(app, holder=holder) as new:
            old.consume()
            old.until(lambda: _blocked(client))
            new.consume()
            new.until(lambda: len(_blocked(client)) == 2)

            app.send_task("shop.any", queue=LETTERS, task_id="the one")
            new.read(1)
            old.until(lambda: not old.channel.fetches)

        assert ["the one"] == [message.headers["id"] for message in new.messages]
        assert [] == old.messages

    def test_what_the_old_one_held(self, app: Any) -> None:
        """What a holder's last connection had brought and nobody has begun comes by the next one, in its order."""
        put(app, *"abc")
        holder = LeaseHolder(agent="text@a", slots=lambda: 2)
        with reader_at(app, holder=holder) as old:
            old.consume()
            old.read(2)
        with reader_at(app, holder=holder) as new:
            new.consume()

            assert ["a", "b"] == new.read(2)

    def test_closed_while_it_waits(self, app: Any, client: Any) -> None:
        """A connection that is closed while its fetch waits takes nothing of what comes afterwards."""
        with reader_at(app, slots=2) as closed:
            closed.consume()
            closed.until(lambda: _blocked(client))
        with reader_at(app, slots=2) as reader:
            reader.consume()
            app.send_task("shop.any", queue=LETTERS, task_id="the one")
            reader.read(1)

            assert ["the one"] == [message.headers["id"] for message in reader.messages]


class TestNews:
    def test_a_success_rides_with_the_next_fetch(self, app: Any, client: Any) -> None:
        """Acknowledgements that may wait cost no call of their own."""
        put(app, *"abcd")
        with reader_at(app, slots=1) as reader, commands_at(str(app.conf.broker_read_url)) as commands:

            def take(message: Any) -> None:
                lease = Lease.from_tag(message.delivery_tag)
                assert lease is not None
                reader.holder.no_hurry(lease)
                reader.take_and_settle(message)

            reader.consume(on_message=take)
            reader.read(4)
            reader.settle()

        assert set() == _leased(client)
        news = load_script("news")
        assert [] == [one for one in commands if news.sha in one or one.startswith("EVAL -- Take in what")]

    def test_what_is_urgent_does_not_wait(self, app: Any, client: Any) -> None:
        """What is urgent is told while a fetch waits: another agent has the message at once."""
        put(app, "a")
        with reader_at(app, slots=2) as reader:
            reader.consume()
            reader.read(1)
            reader.until(lambda: reader.channel.fetches and not reader.channel.carries_news)
            reader.messages[0].ack()
            reader.send()

            assert (set(), 0) == (_leased(client), reader.holder.untold)


class TestCredentials:
    @pytest.mark.parametrize("username", [None, "default"])
    def test_of_a_provider(self, redis_url: str, app: Any, client: Any, username: str | None) -> None:
        """A holder whose connection gets its credentials from a provider beats with them."""
        secret, place = redis_url.removeprefix("redis://:").split("@")
        provider = UsernamePasswordCredentialProvider(username=username, password=unquote(secret))
        options = app.connection_for_read().transport_options
        with FleetConnection(f"redis://{place}", credential_provider=provider, transport_options=options) as connection:
            reader = Reader(connection)
            put(app, "a")
            reader.consume()

            assert ["a"] == reader.read(1)
            until(lambda: client.hexists(KEYS.beats, "last"))


class TestOtherConsumers:
    @pytest.mark.xfail(reason="nobody reads what its last fetch brings", strict=True)
    def test_one_that_reads_no_more(self, app: Any, client: Any) -> None:
        """A consumer that was cancelled holds nothing, though its process lives on with its connection open."""
        with reader_at(app) as idle, reader_at(app, slots=2) as reader:
            idle.consume()
            idle.until(lambda: _blocked(client))
            idle.cancel()
            app.send_task("shop.any", queue=LETTERS)
            until(lambda: not _blocked(client))
            reader.consume()

            reader.until(lambda: reader.messages, seconds=2)

    def test_one_that_takes_its_time(self, redis_url: str, client: Any) -> None:
        """A consumer that is no agent may take longer for a message than a holder may be silent: it's alive."""
        with app_at(redis_url, settings=quick(beat_seconds=0.1)) as app, reader_at(app) as slow:
            put(app, "a")
            slow.consume()
            slow.read(1)
            lost_after = slow.channel.orchestra_lost_after_seconds
            (last,) = client.zrange(KEYS.holders, 0, -1, withscores=True)
            with reader_at(app) as other:
                other.consume()
                other.until(lambda: _now(client) - last[1] > 4 * lost_after)

                assert [] == other.texts


def _now(client: Any) -> float:
    seconds, micros = client.time()
    return float(seconds + micros / 1e6)
