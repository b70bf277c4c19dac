"""Where every key name and every script of ours is made, and where Redis's errors stop."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any, TypeAlias, TypeVar

from redis import Redis
from redis.exceptions import AuthenticationError, NoScriptError, ReadOnlyError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from orchestra.exceptions import AgentOrchestraException, BrokerUnavailableError, ConfigurationError

__all__ = ["Keys", "Script", "Store", "load_script", "mapped_errors", "pairs_of", "text_of", "texts_of"]

Argument: TypeAlias = str | bytes | int | float
Reply = TypeVar("Reply")


@dataclass(frozen=True, slots=True)
class Keys:
    """
    Name every key of one fleet, under one prefix and one hash tag.

    Queues are not here: they keep plain names, since Flower and stock producers read them.
    """

    prefix: str
    fleet: str
    global_prefix: str = ""  # kombu's `global_keyprefix`, which scripts have to add themselves

    def _key(self, *parts: str) -> str:
        return ":".join((f"{self.global_prefix}{self.prefix}", f"{{{self.fleet}}}", *parts))

    @property
    def queues(self) -> str:
        """Sorted set: capability queue (its suffix) -> Redis time of its last registration."""
        return self._key("queues")

    @property
    def queues_version(self) -> str:
        """Counter that grows when `queues` gains or loses a member."""
        return self._key("queues", "version")

    @property
    def agents(self) -> str:
        """Sorted set: agent name -> Redis time of its last beat."""
        return self._key("agents")

    def agent(self, name: str) -> str:
        """Hash: what one agent said of itself."""
        return self._key("agent", name)

    @property
    def catalogue(self) -> str:
        """Hash: task name -> JSON of its requirement, argument schema and policies."""
        return self._key("catalogue")

    def task(self, task_id: str) -> str:
        """Hash: one task's record."""
        return self._key("task", task_id)

    @property
    def dead(self) -> str:
        """List: messages that no agent may run, as JSON with their reason."""
        return self._key("dead")

    @property
    def api_keys(self) -> str:
        """Hash: id of an API key -> JSON of its principal, roles, times and digest."""
        return self._key("api_keys")


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script: sent by its digest, and by its text when the server doesn't know it."""

    source: str
    sha: str

    def run(self, client: "Redis", keys: Sequence[str], args: Sequence[Argument]) -> Any:  # what the script returns
        """Run it in one round trip (two after a flush of the server's scripts)."""
        try:
            return client.evalsha(self.sha, len(keys), *keys, *args)
        except NoScriptError:
            return client.eval(self.source, len(keys), *keys, *args)


@lru_cache
def load_script(name: str) -> Script:
    """Read `scripts/<name>.lua`, with each `--#include part` line replaced by that part."""
    lines = _script_text(name).splitlines()
    source = "\n".join(_script_text(line.split()[1]) if line.startswith("--#include ") else line for line in lines)
    return Script(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())  # Redis names scripts so


def _script_text(name: str) -> str:
    return files("orchestra").joinpath("scripts", f"{name}.lua").read_text(encoding="utf-8")


@contextmanager
def mapped_errors(location: str) -> Iterator[None]:
    """
    Turn Redis's errors into ours; `location` is `host:port`, never a URL with a password.

    Raises:
        BrokerUnavailableError: the server can't be reached or didn't answer in time.
        ConfigurationError: it refused the password.

    """
    try:
        yield
    except AuthenticationError as exc:
        message = f"Redis at {location} refused the user name or password; correct the broker URL."
        raise ConfigurationError(message) from exc
    except (RedisConnectionError, RedisTimeoutError, ReadOnlyError, OSError) as exc:  # read-only: after a failover
        reason = str(exc).rstrip(".")
        message = f"Redis at {location} cannot be reached: {reason}. Is the server running, and the address right?"
        raise BrokerUnavailableError(message) from exc
    except RedisError as exc:
        message = f"Redis at {location} refused a command: {exc}"
        raise AgentOrchestraException(message) from exc


class Store:
    """
    One fleet's part of one Redis: its keys, and a client that is made when it is first needed.

    `connect` is called for every use: it gives a thread-safe client and may keep it.
    """

    def __init__(
        self,
        connect: "Callable[[], Redis]",
        keys: Keys,
        *,
        location: str,
        forget: Callable[[], None] = lambda: None,
    ) -> None:
        self._connect = connect
        self._forget = forget  # called when the server was lost, so that `connect` may find another one
        self.keys = keys
        self.location = location

    def run(self, script: str, keys: Sequence[str], args: Sequence[Argument] = ()) -> Any:  # what the script returns
        """Run a script of ours."""
        return self._attempt(lambda client: load_script(script).run(client, keys, args))

    def command(self, *words: Argument) -> Any:  # what the command returns
        """Send one command."""
        return self._attempt(lambda client: client.execute_command(*words))

    def pipeline(self, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        """Send several commands in one round trip, without a transaction."""

        def send(client: Any) -> list[Any]:
            with client.pipeline(transaction=False) as pipe:
                for words in commands:
                    pipe.execute_command(*words)
                replies: list[Any] = pipe.execute()
                return replies

        return self._attempt(send)

    def close(self) -> None:
        """Close the connections; the next use makes new ones."""
        self._forget()

    def _attempt(self, act: Callable[[Any], Reply]) -> Reply:
        """
        Act on the server, a second time if the first one found a connection that the server had dropped.

        Every script of ours may run twice. A server that doesn't answer in time isn't asked again.
        """
        try:
            with mapped_errors(self.location):
                return act(self._connect())
        except BrokerUnavailableError as error:
            self._forget()
            if isinstance(error.__cause__, RedisTimeoutError):
                raise
        with mapped_errors(self.location):
            return act(self._connect())


def text_of(value: object) -> str:
    """Read a word of a reply, which is bytes unless the client decodes."""
    return value.decode() if isinstance(value, bytes) else str(value)


def pairs_of(reply: Any) -> list[tuple[Any, Any]]:
    """Read a reply of pairs, which is flat, nested or a mapping, as the command and the protocol's version have it."""
    if isinstance(reply, Mapping):
        return list(reply.items())
    if reply and isinstance(reply[0], (list, tuple)):
        return [(first, second) for first, second in reply]
    return list(zip(reply[::2], reply[1::2], strict=True))


def texts_of(reply: Any) -> dict[str, str]:
    """Read a hash, such as HGETALL's reply."""
    return {text_of(field): text_of(value) for field, value in pairs_of(reply)}
