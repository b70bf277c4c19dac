"""Key names, scripts, and what becomes of Redis's errors."""

import os
import pickle
import re
from collections.abc import Iterator

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError, NoScriptError
from redis.retry import Retry

from orchestra.embedded import EmbeddedServer
from orchestra.exceptions import AgentOrchestraException, BrokerUnavailableError, ConfigurationError
from orchestra.store import Keys, Store, load_script, mapped_errors, pairs_of, refuse_old, text_of, texts_of
from tests.stores import client_at, store_at


@pytest.fixture
def store(redis_url: str) -> Iterator[Store]:
    """Give the shop's store over an empty Redis."""
    with store_at(redis_url) as store:
        yield store


class TestKeys:
    def test_names_stand_under_prefix_and_fleet(self) -> None:
        """Every key of ours begins with the prefix and the fleet's hash tag."""
        keys = Keys("orchestra", "shop")

        named = [
            keys.queues,
            keys.queues_version,
            keys.agents,
            keys.agent("a@h"),
            keys.catalogue,
            keys.dead_letters,
            keys.deliveries,
        ]

        assert "orchestra:{shop}:task:7c9e" == keys.task("7c9e")
        assert all(name.startswith("orchestra:{shop}:") for name in named)
        assert len(named) == len({*named, keys.task("7c9e")}) - 1

    def test_fleets_share_no_key(self) -> None:
        """Two apps on one Redis do not see each other."""
        assert Keys("orchestra", "shop").task("1") != Keys("orchestra", "shop:task").task("1")
        assert Keys("orchestra", "shop").agents != Keys("orchestra", "bank").agents

    def test_global_prefix_comes_first(self) -> None:
        """What kombu puts before every key stands before ours too."""
        assert "tenant1:orchestra:{shop}:agents" == Keys("orchestra", "shop", "tenant1:").agents


class TestLoadScript:
    @pytest.mark.parametrize("name", ["advance", "publish", "store_result"])
    def test_parts_are_put_in_place(self, name: str) -> None:
        """A script that includes a part is complete by itself."""
        source = load_script(name).source

        assert "local function note_down" in source
        assert "--#include" not in source

    def test_digest_is_the_servers_own(self, store: Store) -> None:
        """A script is sent by the name that the server gives it."""
        script = load_script("advance")

        assert script.sha == text_of(store.command("SCRIPT", "LOAD", script.source))

    def test_is_read_once(self) -> None:
        """A script isn't read from disk for every task."""
        assert load_script("beat") is load_script("beat")


class TestScript:
    def test_runs_after_the_server_forgot_it(self, store: Store, redis_url: str) -> None:
        """A server that was restarted, or told to forget all scripts, learns them again in passing."""
        script = load_script("retire")
        keys = [store.keys.agents, store.keys.agent("a")]
        store.command("SCRIPT", "FLUSH")

        with client_at(redis_url) as client:
            with pytest.raises(NoScriptError):
                client.evalsha(script.sha, 2, *keys, "a", "1")
            assert 0 == script.run(client, keys, ["a", "1"])
            assert 0 == client.evalsha(script.sha, 2, *keys, "a", "1")


class TestStore:
    def test_command_gives_the_reply(self, store: Store) -> None:
        """A command's reply comes back as the client has it."""
        store.command("SET", "k", "v")

        assert b"v" == store.command("GET", "k")

    def test_pipeline_gives_replies_in_order(self, store: Store) -> None:
        """Several commands take one round trip, and their replies come in the commands' order."""
        replies = store.pipeline([("RPUSH", "l", 1), ("RPUSH", "l", 2), ("LRANGE", "l", 0, -1)])

        assert [1, 2, [b"1", b"2"]] == replies

    def test_empty_pipeline_gives_nothing(self, store: Store) -> None:
        """No commands, no replies."""
        assert [] == store.pipeline([])

    def test_connects_at_the_first_use(self) -> None:
        """A store that isn't used needs no Redis."""

        def connect() -> Redis:
            raise AssertionError

        Store(connect, Keys("orchestra", "shop"), location="h:1")

    def test_asks_for_the_client_each_time(self, redis_url: str) -> None:
        """The one who connects decides how long a client is kept."""
        asked = []
        with client_at(redis_url) as client:

            def connect() -> Redis:
                asked.append(client)
                return client

            store = Store(connect, Keys("orchestra", "shop"), location="h:1")
            store.command("PING")
            store.pipeline([("PING",)])
            store.run("retire", ["a", "b"], ["c", "d"])

        assert 3 == len(asked)

    def test_forgets_a_lost_server(self) -> None:
        """When the server can't be reached, the next use may look for another one."""
        left: list[Redis | None] = []
        with Redis(port=1, retry=Retry(NoBackoff(), 0)) as client:
            store = Store(lambda: client, Keys("orchestra", "shop"), location="h:1", leave=left.append)

            with pytest.raises(BrokerUnavailableError):
                store.command("PING")

        assert [client] == left

    def test_dropped_connection_is_made_anew(self, redis_url: str) -> None:
        """A connection that the server has closed, as it does when it restarts, isn't the caller's concern."""
        with store_at(redis_url) as store, client_at(redis_url) as other:
            store.command("PING")
            other.client_kill_filter(_type="normal", skipme=True)

            replies = [store.command("PING"), store.pipeline([("PING",)]), store.run("retire", ["a", "b"], ["c", "d"])]

        assert [True, [True], 0] == replies

    def test_second_attempt_may_find_another_server(self, redis_url: str) -> None:
        """What connects is asked again after it has been told of the loss."""
        asked: list[Redis] = []
        with Redis(port=1, retry=Retry(NoBackoff(), 0)) as dead, client_at(redis_url) as alive:
            clients = [dead]

            def connect() -> Redis:
                asked.append(clients[0])
                return clients[0]

            store = Store(
                connect, Keys("orchestra", "shop"), location="h:1", leave=lambda _: clients.__setitem__(0, alive)
            )

            assert store.command("PING")

        assert [dead, alive] == asked

    def test_silent_server_is_not_asked_again(self, redis_url: str) -> None:
        """A command that wasn't answered in time isn't sent a second time, so that the caller's wait has a bound."""
        asked: list[Redis] = []
        with client_at(redis_url, socket_timeout=0.05) as client:

            def connect() -> Redis:
                asked.append(client)
                return client

            with pytest.raises(BrokerUnavailableError):
                Store(connect, Keys("orchestra", "shop"), location="h:1").command("BLPOP", "nothing", 1)

        assert 1 == len(asked)

    def test_close_lets_the_client_go(self) -> None:
        """Closing a store is telling the one who connects."""
        forgotten: list[str] = []

        Store(Redis, Keys("orchestra", "shop"), location="h:1", forget=lambda: forgotten.append("once")).close()

        assert ["once"] == forgotten

    def test_keeps_a_server_that_refuses_a_command(self, redis_url: str) -> None:
        """A refused command is no reason to look for another server."""
        forgotten = []
        with client_at(redis_url) as client:
            store = Store(
                lambda: client, Keys("orchestra", "shop"), location="h:1", forget=lambda: forgotten.append("once")
            )

            with pytest.raises(AgentOrchestraException):
                store.command("NOSUCHCOMMAND")

        assert [] == forgotten


class TestVersion:
    @pytest.mark.parametrize("version", ["6.0.16", "5.0", "6.1"])
    def test_too_old(self, version: str) -> None:
        """A server that lacks what agents need is refused, with its version and what is needed."""
        with pytest.raises(ConfigurationError, match=rf"here:1 is version {re.escape(version)}; agents need 6\.2"):
            refuse_old(version, "here:1")

    @pytest.mark.parametrize("version", ["6.2.0", "7.2.4", "10.0", "", "unstable"])
    def test_good_enough(self, version: str) -> None:
        """Later ones pass, and those that don't tell."""
        refuse_old(version, "here:1")

    def test_the_servers_own(self, store: Store) -> None:
        """The server is asked, this one will do, and its process has a name."""
        store.check_version()

        assert store.command("INFO", "server")["run_id"] == store.process()

    def test_a_user_without_the_right(self, store: Store, redis_url: str) -> None:
        """A server that doesn't let us ask is taken at its word."""
        store.command("ACL", "SETUSER", "shy", "on", ">quiet", "~*", "+@all", "-info")
        address = redis_url.rpartition("@")[2]
        try:
            with Redis.from_url(f"redis://shy:quiet@{address}") as asking:
                with pytest.raises(NoPermissionError):
                    asking.info()
                Store(lambda: asking, store.keys, location="here:1").check_version()
                assert not Store(lambda: asking, store.keys, location="here:1").process()
        finally:
            store.command("ACL", "DELUSER", "shy")


class TestErrors:
    def test_unreachable_server_is_named(self) -> None:
        """Who can't reach Redis reads where it was looked for and what to check, and may try again."""
        with store_at("redis://:hunter2@127.0.0.1:1/0", location="127.0.0.1:1") as store:
            for use in (lambda: store.command("PING"), lambda: store.run("retire", ["a", "b"], ["c", "d"])):
                with pytest.raises(BrokerUnavailableError) as caught:
                    use()

                assert "Redis at 127.0.0.1:1 cannot be reached" in str(caught.value)
                assert "hunter2" not in str(caught.value)
                assert isinstance(caught.value.__cause__, RedisConnectionError)

    def test_wrong_password_is_a_wrong_setting(self, redis_server: EmbeddedServer) -> None:
        """A refused password isn't worth another attempt, and isn't shown."""
        url = f"redis://:hunter2@{redis_server.host}:{redis_server.port}/0"
        with store_at(url, location=f"{redis_server.host}:{redis_server.port}") as store:
            with pytest.raises(ConfigurationError) as caught:
                store.command("PING")
            with pytest.raises(ConfigurationError):
                store.pipeline([("PING",)])

        assert f"Redis at 127.0.0.1:{redis_server.port} refused the user name or password" in str(caught.value)
        assert "hunter2" not in str(caught.value)

    def test_missing_password_is_a_wrong_setting(self, redis_server: EmbeddedServer) -> None:
        """A server that wants a password says so, and that becomes the same error."""
        with (
            store_at(f"redis://{redis_server.host}:{redis_server.port}/0") as store,
            pytest.raises(ConfigurationError, match="refused the user name or password"),
        ):
            store.command("PING")

    def test_refused_command_is_an_error_of_ours(self, store: Store, redis_server: EmbeddedServer) -> None:
        """What Redis says against a command reaches the caller, in an error that isn't redis-py's."""
        store.command("SET", store.keys.task("1"), "not a record")

        for use in (
            lambda: store.command("HGETALL", store.keys.task("1")),
            lambda: store.pipeline([("HGETALL", store.keys.task("1"))]),
            lambda: store.run("advance", [store.keys.task("1")], ["running", " - ", "", 1, "", 1000, ""]),
        ):
            with pytest.raises(AgentOrchestraException, match="WRONGTYPE") as caught:
                use()

            assert AgentOrchestraException is type(caught.value)
            assert redis_server.url.split("@")[0].rpartition(":")[2] not in str(caught.value)

    def test_full_server_may_take_it_later(self, store: Store) -> None:
        """A server that takes nothing in is asked once, and again by whoever can wait; what to do is said."""
        store.command("CONFIG", "SET", "min-replicas-to-write", 1)
        try:
            with pytest.raises(BrokerUnavailableError, match=r"takes nothing in: NOREPLICAS.*more memory or disk"):
                store.command("SET", "a", 1)
        finally:
            store.command("CONFIG", "SET", "min-replicas-to-write", 0)

    def test_slow_server_counts_as_unreachable(self, redis_url: str) -> None:
        """A server that doesn't answer in time can't be reached."""
        with (
            store_at(redis_url, socket_timeout=0.05) as store,
            pytest.raises(BrokerUnavailableError),
        ):
            store.command("BLPOP", "nothing", 1)

    @pytest.mark.parametrize("error", [OSError("no route"), TimeoutError("too slow")])
    def test_errors_of_the_system_are_mapped(self, error: OSError) -> None:
        """A broken network is the same error, whoever reports it, and keeps its cause."""
        with pytest.raises(BrokerUnavailableError) as caught, mapped_errors("h:1"):
            raise error

        assert error is caught.value.__cause__

    def test_other_errors_pass(self) -> None:
        """An error that isn't Redis's is left alone."""
        with pytest.raises(ZeroDivisionError), mapped_errors("h:1"):
            raise ZeroDivisionError

    def test_survives_pickling(self) -> None:
        """An error of a store can be told by one process to another."""
        with pytest.raises(BrokerUnavailableError) as caught, mapped_errors("h:1"):
            raise OSError(os.strerror(111))

        assert str(caught.value) == str(pickle.loads(pickle.dumps(caught.value)))


class TestReplies:
    @pytest.mark.parametrize(("value", "text"), [(b"caf\xc3\xa9", "café"), ("café", "café"), (12, "12")])
    def test_text_of_reads_either_kind_of_client(self, value: object, text: str) -> None:
        """A word reads the same whether or not the client decodes."""
        assert text == text_of(value)

    @pytest.mark.parametrize(
        "reply", [[b"a", b"1", b"b", b"2"], [[b"a", b"1"], [b"b", b"2"]], [(b"a", b"1"), (b"b", b"2")]]
    )
    def test_pairs_of_reads_every_form(self, reply: list[object]) -> None:
        """Pairs read the same in both versions of the protocol."""
        assert [(b"a", b"1"), (b"b", b"2")] == pairs_of(reply)

    def test_pairs_of_reads_nothing(self) -> None:
        """An empty reply holds no pairs."""
        assert [] == pairs_of([]) == pairs_of({})

    @pytest.mark.parametrize("protocol", [2, 3])
    @pytest.mark.parametrize("decode", [True, False])
    def test_texts_of_reads_a_hash(self, redis_url: str, protocol: int, decode: bool) -> None:
        """A hash reads the same whatever the client's settings."""
        with store_at(redis_url, protocol=protocol, decode_responses=decode) as store:
            store.command("HSET", "h", "field", "value")

            assert {"field": "value"} == texts_of(store.command("HGETALL", "h"))
