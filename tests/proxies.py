"""A way to a server that can fail as networks do: connections that fall silent, and replies that never arrive."""

import selectors
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

__all__ = ["Proxy", "proxy_to"]

_HOST = "127.0.0.1"


class Proxy:
    """Hands on between clients and one server, until it's told not to."""

    def __init__(self, behind: int) -> None:
        self._behind = behind
        self._listener = socket.create_server((_HOST, 0))
        self._silent: set[int] = set()  # numbers of connections on which nothing is said any more
        self._connections = 0
        self._cut: list[bytes] = []
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []
        self.silent = False  # whether new connections are silent too
        self.port = int(self._listener.getsockname()[1])
        self.lost: list[bytes] = []  # requests that the server answered, and whose answers were lost

    def through(self, url: str) -> str:
        """Return a server's URL with this proxy's port."""
        return url.replace(f":{self._behind}/", f":{self.port}/")

    def silence(self) -> None:
        """Let every connection that there is fall silent, without ending it."""
        self._silent |= set(range(self._connections))

    def lose_reply(self, to: bytes, *, times: int = 1) -> None:
        """Hand the next requests that hold `to` on to the server, and cut the connection instead of its answer."""
        self._cut += [to] * times

    def start(self) -> None:
        """Take connections, in threads."""
        self._run(self._accept)

    def stop(self) -> None:
        """End all connections."""
        self._ended.set()
        self._listener.close()
        for thread in self._threads:
            thread.join(5)

    def _run(self, work: object, *given: object) -> None:
        thread = threading.Thread(target=work, args=given, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        self._listener.settimeout(0.05)
        while not self._ended.is_set():
            with suppress(OSError):
                client, _ = self._listener.accept()
                self._connections += 1
                self._run(self._join, client, self._connections - 1)

    def _join(self, client: socket.socket, number: int) -> None:
        with (
            suppress(OSError),
            client,
            socket.create_connection((_HOST, self._behind)) as server,
            selectors.DefaultSelector() as selector,
        ):
            selector.register(client, selectors.EVENT_READ, (client, server))
            selector.register(server, selectors.EVENT_READ, (server, client))
            while not self._ended.is_set():
                for key, _ in selector.select(0.05):
                    source, target = key.data
                    if self.silent or number in self._silent:
                        self._ended.wait(0.05)
                    elif not self._pour(source, target, server):
                        return

    def _pour(self, source: socket.socket, target: socket.socket, server: socket.socket) -> bool:
        read = source.recv(1 << 20)
        if source is not server and any(needle in read for needle in self._cut):
            self._cut.pop()
            server.sendall(read)
            server.recv(1 << 20)  # so that the server has carried it out
            self.lost.append(read)
            return False
        target.sendall(read)
        return bool(read)


@contextmanager
def proxy_to(port: int) -> Iterator[Proxy]:
    """Give a proxy in front of a local server."""
    proxy = Proxy(port)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()
