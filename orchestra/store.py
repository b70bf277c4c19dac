"""Where every key name and every script of ours is made, and where Redis's errors stop."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any, Final, TypeAlias, TypeVar

from redis import Redis
from redis.exceptions import AuthenticationError, NoScriptError, ReadOnlyError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from orchestra.exceptions import AgentOrchestraException, BrokerUnavailableError, ConfigurationError
from orchestra.patience import is_full

__all__ = ["Keys", "Script", "Store", "load_script", "mapped_errors", "pairs_of", "refuse_old", "text_of", "texts_of"]

OLDEST_REDIS: Final = (6, 2)  # RPOP with a count, ZADD with LT

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

    @property
    def former_agents(self) -> str:
        """Sorted set: name of an agent that stopped -> Redis time of that."""
        return self._key("agents", "former")

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

    def awaits(self, task_id: str) -> str:
        """Hash: which tasks one that isn't sent yet waits for, as `scripts/followers.lua` writes it."""
        return self._key("awaits", task_id)

    def idempotency(self, task: str, key: str) -> str:
        """Text: digest of the arguments, and id, of the task that was submitted with an idempotency key."""
        return self._key("idempotency", task, key)

    def lock(self, task: str, digest: str) -> str:
        """Text: id of the task that is the only one with its name and arguments."""
        return self._key("lock", task, digest)

    def effect(self, task_id: str, name: str) -> str:
        """Hash: `token` of the last run that claimed an effect of a task, and its `value` once it has happened."""
        return self._key("effect", task_id, name)

    # ── dead letters ──

    @property
    def dead_letters(self) -> str:
        """Sorted set: id of a dead letter -> Redis time of when it became one."""
        return self._key("dead", "letters")

    def dead_letter(self, letter_id: str) -> str:
        """Hash: a message that no agent may run, and why, as `scripts/dead.lua` writes it."""
        return self._key("dead", "letter", letter_id)

    @property
    def dead_bounds(self) -> str:
        """Hash: `letters`, how many dead letters are kept; `named`, how many were given an id that isn't a task's."""
        return self._key("dead", "bounds")

    @property
    def dead_dropped(self) -> str:
        """Hash: how many dead letters were dropped for their `age` or as a `surplus`; `untold`, since it was told."""
        return self._key("dead", "dropped")

    def replay(self, call: str) -> str:
        """Set: ids of the dead letters that one call has replayed; kept for minutes."""
        return self._key("dead", "replay", call)

    @property
    def sweeping(self) -> str:
        """Text that is there while an agent looks for messages that nobody can run, and for a while after."""
        return self._key("sweeping")

    @property
    def swept(self) -> str:
        """Hash: list of messages that nobody can run -> how many of its oldest the last sweep has read."""
        return self._key("swept")

    # ── messages in transit: the scripts make the keys of single queues from `base` ──

    @property
    def base(self) -> str:
        """How the names of all the fleet's keys begin."""
        return self._key("")

    @property
    def holders(self) -> str:
        """Sorted set: lease holder (one process that takes messages) -> Redis time of its last beat."""
        return self._key("holders")

    @property
    def beats(self) -> str:
        """Hash: `last`, the Redis time of anybody's last beat; `quiet_until`, before which nobody is given up."""
        return self._key("beats")

    @property
    def sessions(self) -> str:
        """Hash: lease holder -> number of its last connection; older ones fetch no more."""
        return self._key("sessions")

    def leases(self, holder: str) -> str:
        """Hash: number of a lease -> its message, as `scripts/leases.lua` writes it."""
        return self._key("leases", holder)

    def leased(self, queue: str) -> str:
        """Sorted set: lease of a message of this queue -> Redis time of its fetch, infinite once its task started."""
        return self._key("leased", queue)

    def delayed(self, queue: str) -> str:
        """Sorted set: message that isn't due yet, written as a lease's is -> the time when it is, in s since 1970."""
        return self._key("delayed", queue)

    @property
    def due(self) -> str:
        """
        Sorted set: queue that has delayed messages -> the time when the first of them is due.

        A breaker stands here too, behind a line feed: -> the time when what waits for it is to be looked at.
        """
        return self._key("due")

    def wake(self, queue: str) -> str:
        """List: one element while messages of this queue wait that no idle agent was woken for."""
        return self._key("wake", queue)

    @property
    def redelivered(self) -> str:
        """Hash: digest of a message that had to be delivered again -> how often."""
        return self._key("redelivered")

    # ── how retries are budgeted: the scripts append the number of a window of time to these ──

    def first_attempts(self, task_name: str) -> str:
        """How the names of counters begin: first attempts of this task that began within a window."""
        return self._key("first_attempts", task_name, "")

    def retries(self, task_name: str) -> str:
        """How the names of counters begin: retries of this task that are due within a window."""
        return self._key("retries", task_name, "")

    # ── circuit breakers ──

    @property
    def breakers(self) -> str:
        """
        Sorted set: breaker -> Redis time of its last call, infinite while it isn't closed.

        The channel of this name carries every change of state.
        """
        return self._key("breakers")

    @property
    def breaker_changes(self) -> str:
        """List: the last hundred changes of state as JSON, the newest first."""
        return self._key("breakers", "changes")

    def breaker(self, name: str) -> str:
        """Hash: one breaker's state, as `scripts/breakers.lua` writes it."""
        return self._key("breaker", name)

    def breaker_calls(self, name: str) -> str:
        """Hash: how many calls of the window were made, and have failed, by tenths of it."""
        return self._key("breaker-calls", name)

    def breaker_probes(self, name: str) -> str:
        """Sorted set: lease of a probe -> Redis time until which its place is taken at most."""
        return self._key("breaker-probes", name)

    def parked(self, name: str) -> str:
        """Sorted set: message that waits for a breaker, written as a lease's is -> Redis time since when."""
        return self._key("parked", name)

    @property
    def parked_counts(self) -> str:
        """Hash: queue -> how many of its messages wait for breakers."""
        return self._key("parked")

    def mixed(self, queue: str) -> str:
        """Mark of a queue that got tasks by a caller's choice within a day: they don't all share a breaker."""
        return self._key("mixed", queue)

    @property
    def deliveries(self) -> str:
        """Hash: digest of a message -> what befell its deliveries, as `scripts/dead.lua` writes it."""
        return self._key("deliveries")

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
    """Read `scripts/<name>.lua`, with each `--#include part` line replaced by that part, which may include others."""
    source = _script_text(name)
    return Script(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())  # Redis names scripts so


def _script_text(name: str) -> str:
    lines = files("orchestra").joinpath("scripts", f"{name}.lua").read_text(encoding="utf-8").splitlines()
    return "\n".join(_script_text(line.split()[1]) if line.startswith("--#include ") else line for line in lines)


@contextmanager
def mapped_errors(location: str) -> Iterator[None]:
    """
    Turn Redis's errors into ours; `location` is `host:port`, never a URL with a password.

    Raises:
        BrokerUnavailableError: the server can't be reached, didn't answer in time, or takes nothing in.
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
        if is_full(exc):
            message = f"Redis at {location} takes nothing in: {str(exc).rstrip('.')}. Give it more memory or disk."
            raise BrokerUnavailableError(message) from exc
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
        leave: "Callable[[Redis | None], None]" = lambda _: None,
        forget: Callable[[], None] = lambda: None,
    ) -> None:
        self._connect = connect
        self._leave = leave  # called when the server was lost, so that `connect` may find another one
        self._forget = forget  # called to close everything
        self.keys = keys
        self.location = location

    def run(self, script: str, keys: Sequence[str], args: Sequence[Argument] = ()) -> Any:  # what the script returns
        """Run a script of ours."""
        return self._attempt(lambda client: load_script(script).run(client, keys, args))

    def command(self, *words: Argument) -> Any:  # what the command returns
        """Send one command."""
        return self._attempt(lambda client: client.execute_command(*words))

    def check_version(self) -> None:
        """
        Look whether the server can do what agents ask of it; one that may not be asked is taken at its word.

        Raises:
            ConfigurationError: it's too old.

        """
        refuse_old(self._about("redis_version"), self.location)

    def process(self) -> str:
        """Return what the server's process calls itself; another one may have forgotten the last moments."""
        return self._about("run_id")

    def _about(self, what: str) -> str:
        """Return what the server says of itself; '' to a user without the right to ask."""
        try:
            return str(self.command("INFO", "server").get(what, ""))
        except BrokerUnavailableError:
            raise
        except AgentOrchestraException:
            return ""

    def pipeline(self, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        """Send several commands in one round trip, without a transaction."""

        def send(client: Any) -> list[Any]:
            with client.pipeline(transaction=False) as pipe:
                for words in commands:
                    pipe.execute_command(*words)
                replies: list[Any] = pipe.execute()
                return replies

        return self._attempt(send)

    def act(self, act: "Callable[[Redis], Reply]") -> Reply:
        """Act by the client; what is done has to bear being done twice, when a connection was lost."""
        return self._attempt(act)

    def close(self) -> None:
        """Close the connections; the next use makes new ones."""
        self._forget()

    def _attempt(self, act: Callable[[Any], Reply]) -> Reply:
        """
        Act on the server, a second time if the first one found a connection that the server had dropped.

        Every script of ours may run twice. A server that doesn't answer in time isn't asked again.
        """
        client = None
        try:
            with mapped_errors(self.location):
                client = self._connect()
                return act(client)
        except BrokerUnavailableError as error:
            self._leave(client)
            if isinstance(error.__cause__, RedisTimeoutError) or is_full(error.__cause__):
                raise
        with mapped_errors(self.location):
            return act(self._connect())


def refuse_old(version: str, location: str) -> None:
    """
    Refuse a server of a version that doesn't know a command which agents need; what can't be read passes.

    Raises:
        ConfigurationError: it's too old.

    """
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    if numbers and numbers < OLDEST_REDIS:
        oldest = ".".join(map(str, OLDEST_REDIS))
        message = f"Redis at {location} is version {version}; agents need {oldest} or later, or Valkey."
        raise ConfigurationError(message)


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
