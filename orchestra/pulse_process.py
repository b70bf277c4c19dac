"""
The process that beats for an agent, so that nothing the agent does can hold its beats up.

It runs by its path, in an interpreter of its own that knows nothing of this package or of redis-py and so stays small.
Its settings come as one line of JSON over standard input, where no other process can read them. It ends with the
process that started it, however that ends, and not for any other reason.
"""

from __future__ import annotations

import json
import mmap
import os
import select
import signal
import socket
import sys
import time
from contextlib import suppress
from threading import Thread

TYPE_CHECKING = False  # typing has the same, and takes half a megabyte
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Final

if __name__ == "__main__":
    sys.path.append(sys.argv[1])  # where hiredis is; this interpreter has looked for no packages

import hiredis  # noqa: E402  # it couldn't be found before

__all__ = ["BEATS", "BECAME_DUE", "MEMORY_BYTES", "RECLAIMED", "RUNNING", "TICKS"]

# The memory that both processes see, as unsigned numbers of 64 bits: the agent writes the first two of them.
TICKS, RUNNING, RECLAIMED, BECAME_DUE, BEATS = range(5)
MEMORY_BYTES: Final = 5 * 8

_LOOK_SECONDS: Final = 0.25  # how soon the parent's end is noticed
_TIMEOUT_SECONDS: Final = 2.0  # the longest wait for an answer
_IGNORED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_CERTIFICATES: Final = {"none": 0, "optional": 1, "required": 2}  # ssl.VerifyMode


class _Wire:
    """
    A connection to a server, signed in and at its database.

    Raises:
        OSError: the server can't be reached, or didn't answer in time.
        hiredis.HiredisError: it refused.

    """

    def __init__(self, where: Mapping[str, Any], timeout: float) -> None:
        self._reader = hiredis.Reader()
        self._socket = _opened(where, timeout)
        try:
            self._sign_in(where)
        except BaseException:
            self.close()
            raise

    def _sign_in(self, where: Mapping[str, Any]) -> None:
        user, password = where.get("username"), where.get("password") or ""
        try:
            if user or password:
                self.call("AUTH", *((user, password) if user else (password,)))
        except hiredis.ReplyError as error:
            code = str(error).partition(" ")[0]  # the rest may repeat what it was asked
            message = f"the server refused the user name or password: {code}"
            raise ConnectionRefusedError(message) from None
        if where.get("db"):
            self.call("SELECT", where["db"])

    def call(self, *words: str | float) -> Any:  # what the command returns
        """Send a command, and return the reply."""
        self._socket.sendall(hiredis.pack_command(words))  # type: ignore[arg-type]  # its stub has tuples of one word
        while (reply := self._reader.gets()) is False:
            received = self._socket.recv(4096)
            if not received:
                message = "the server closed the connection"
                raise ConnectionResetError(message)
            self._reader.feed(received)
        if isinstance(reply, hiredis.ReplyError):
            raise reply
        return reply

    def close(self) -> None:
        """Close it."""
        self._socket.close()


def _opened(where: Mapping[str, Any], timeout: float) -> socket.socket:
    if where.get("path"):
        opened = socket.socket(socket.AF_UNIX)
        opened.settimeout(timeout)
    else:
        opened = socket.create_connection((where["host"], where["port"]), timeout)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        if where.get("path"):
            opened.connect(where["path"])
        return _secured(opened, where) if where.get("ssl") else opened
    except BaseException:
        opened.close()
        raise


def _secured(opened: socket.socket, where: Mapping[str, Any]) -> socket.socket:
    """Speak TLS, with the options and the defaults of redis-py."""
    import ssl  # noqa: PLC0415  # 5 MB, for those who need it

    asked = where.get("ssl_cert_reqs", "required")
    name = "none" if asked is None else str(asked).lower().removeprefix("cert_")
    context = ssl.create_default_context()
    context.check_hostname = name not in {"none", "0"} and bool(where.get("ssl_check_hostname", True))
    context.verify_mode = ssl.VerifyMode(int(_CERTIFICATES.get(name, name)))
    if where.get("ssl_certfile"):
        context.load_cert_chain(where["ssl_certfile"], where.get("ssl_keyfile"), where.get("ssl_password"))
    authorities = [where.get(f"ssl_{name}") for name in ("ca_certs", "ca_path", "ca_data")]
    if any(authorities):
        context.load_verify_locations(*authorities)
    if where.get("ssl_min_version"):
        context.minimum_version = ssl.TLSVersion(where["ssl_min_version"])
    if where.get("ssl_ciphers"):
        context.set_ciphers(where["ssl_ciphers"])
    return context.wrap_socket(opened, server_hostname=where["host"])


def _master(where: Mapping[str, Any], timeout: float) -> Mapping[str, Any]:
    """Return where the master is: as given, or as the first Sentinel says that answers."""
    if not where.get("sentinels"):
        return where
    failure: Exception | None = None
    for host, port in where["sentinels"]:
        try:
            sentinel = _Wire({**where["sentinel_kwargs"], "host": host, "port": port}, timeout)
            try:
                found = sentinel.call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", where["master_name"])
            finally:
                sentinel.close()
        except (OSError, hiredis.HiredisError) as error:
            failure = error
            continue
        if found:
            return {**where, "host": found[0].decode(), "port": int(found[1])}
    message = f"no Sentinel names a master of {where['master_name']!r}"
    raise ConnectionError(message) from failure


class _Agent:
    """What the agent's process shows of itself."""

    def __init__(self, pid: int, memory: memoryview[int], lost_after: float) -> None:
        self._memory = memory
        self._lost_after = lost_after
        self._state = f"/proc/{pid}/stat"
        self._ticks = -1  # so that the start counts as a tick
        self._ticked_at = 0.0

    def works(self) -> bool:
        """Tell whether it runs a task or turns its loop, and wasn't stopped by a signal."""
        if self._memory[TICKS] != self._ticks:
            self._ticks, self._ticked_at = self._memory[TICKS], time.monotonic()
        ticking = time.monotonic() - self._ticked_at <= self._lost_after
        return (ticking or self._memory[RUNNING] != 0) and not self._stopped()

    def _stopped(self) -> bool:
        with suppress(OSError), open(self._state, "rb") as file:  # noqa: PTH123  # pathlib is another MB; not everywhere is /proc
            return file.read().rpartition(b")")[2].split()[0] in {b"T", b"t", b"Z", b"X"}
        return False


class _Heart:
    """Beats by a script, over a connection that is made anew after every error."""

    def __init__(self, settings: Mapping[str, Any], memory: memoryview[int]) -> None:
        self._settings = settings
        self._memory = memory
        self._timeout = min(_TIMEOUT_SECONDS, settings["lost_after_seconds"] / 2)
        self._wire: _Wire | None = None
        self._troubled = False

    def beat(self) -> None:
        """Beat once; an error is told once, and what it means is for the next beat to find out."""
        try:
            if self._wire is None:
                where = self._settings["connection"]
                self._wire = _Wire(_master(where, self._timeout), self._timeout)
            reclaimed, became_due = self._run(self._wire)
        except (OSError, ValueError, hiredis.HiredisError) as error:  # ValueError: what can't be a host's name
            self._close()
            self._tell(f"no beat reaches Redis ({type(error).__name__}: {error}); trying on", troubled=True)
        else:
            self._tell("beats reach Redis again", troubled=False)
            self._memory[RECLAIMED] += reclaimed
            self._memory[BECAME_DUE] += became_due
            self._memory[BEATS] += 1

    def _run(self, wire: _Wire) -> Any:  # the script's two numbers
        settings = self._settings
        rest = (len(settings["keys"]), *settings["keys"], *settings["args"])
        try:
            return wire.call("EVALSHA", settings["sha"], *rest)
        except hiredis.ReplyError as error:
            if not str(error).startswith("NOSCRIPT"):
                raise
            return wire.call("EVAL", settings["source"], *rest)

    def _close(self) -> None:
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    def _tell(self, news: str, *, troubled: bool) -> None:
        if troubled != self._troubled:
            self._troubled = troubled
            with suppress(OSError):
                sys.stderr.write(f"orchestra pulse of {os.getppid()}: {news}\n")
                sys.stderr.flush()


def _end_with(parent: int) -> None:
    """
    End this process when its parent is gone or has closed its end of standard input.

    Both are looked at: the parent's forks may hold the pipe open for longer than the parent lives. A thread does it,
    since the beats may hang in the system's search for a host's address.
    """
    while os.getppid() == parent and not select.select([sys.stdin], [], [], _LOOK_SECONDS)[0]:
        pass
    os._exit(0)


def _main() -> None:
    for request in _IGNORED:  # they are meant for the agent, which may want to finish its tasks
        signal.signal(request, signal.SIG_IGN)
    line = sys.stdin.buffer.readline()
    if not line:
        return
    settings = json.loads(line)
    Thread(target=_end_with, args=(settings["parent"],), daemon=True).start()
    memory = memoryview(mmap.mmap(settings["memory"], MEMORY_BYTES)).cast("Q")
    agent = _Agent(settings["parent"], memory, settings["lost_after_seconds"])
    heart = _Heart(settings, memory)
    while True:
        if agent.works():
            heart.beat()
        time.sleep(settings["every_seconds"])


if __name__ == "__main__":
    _main()
