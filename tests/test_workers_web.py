"""The web agent: what a host says, and what it doesn't."""

import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from orchestra.exceptions import PermanentError, RetryableError, classify
from workers.web import LARGEST, fetch, host_of


class _Pages(BaseHTTPRequestHandler):
    """Answers by the path: a status, or one of a few pages."""

    def do_GET(self) -> None:
        path = self.path.strip("/")
        if path.isdecimal():
            self._answer(int(path), "text/plain", b"so it is", **{"Retry-After": "7"})
        elif path == "moved":
            self._answer(302, "text/plain", b"", Location="/page")
        elif path == "to-a-file":
            self._answer(302, "text/plain", b"", Location="file:///etc/hostname")
        elif path == "picture":
            self._answer(200, "image/png", b"\x89PNG")
        elif path == "latin":
            self._answer(200, "text/plain; charset=latin-1", "é".encode("latin-1"))
        elif path == "strange":
            self._answer(200, "text/plain; charset=hieroglyphs", "é".encode())
        elif path == "half":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nhalf")
        elif path == "large":
            self._answer(200, "text/plain", b"x" * 1000)
        else:
            self._answer(200, "text/html; charset=utf-8", "<p>é".encode())

    def _answer(self, status: int, kind: str, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """Give the address of a server."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Pages) as server:
        Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class TestFetch:
    def test_a_page(self, site: str) -> None:
        """A page comes with its kind, its size and its text."""
        assert {"url": f"{site}/page", "status": 200, "kind": "text/html", "bytes": 5, "text": "<p>é"} == fetch(
            f"{site}/page"
        )

    def test_redirects(self, site: str) -> None:
        """The address is the one that answered in the end; one that leads elsewhere than to the web isn't followed."""
        assert f"{site}/page" == fetch(f"{site}/moved")["url"]
        assert 302 == fetch(f"{site}/to-a-file")["status"]

    @pytest.mark.parametrize(("path", "text"), [("picture", ""), ("latin", "é"), ("strange", "é")])
    def test_kinds(self, site: str, path: str, text: str) -> None:
        """Text is decoded as the page says, or as UTF-8 where nobody knows what it says; other kinds have none."""
        assert text == fetch(f"{site}/{path}")["text"]

    @pytest.mark.parametrize("status", [404, 403, 410])
    def test_an_answer_is_an_answer(self, site: str, status: int) -> None:
        """A host that says no has answered."""
        assert status == fetch(f"{site}/{status}")["status"]

    @pytest.mark.parametrize("status", [429, 500, 502, 503])
    def test_a_host_that_cannot_now(self, site: str, status: int) -> None:
        """One that is overloaded or broken is asked again; one that is overloaded says when."""
        with pytest.raises(RetryableError, match=f"127.0.0.1 answered {status}") as caught:
            fetch(f"{site}/{status}")
        assert (7.0 if status in {429, 503} else None) == caught.value.retry_after

    def test_a_host_that_breaks_off(self, site: str) -> None:
        """Half an answer may be a whole one the next time."""
        with pytest.raises(RetryableError, match="broke off"):
            fetch(f"{site}/half")

    def test_nobody_there(self) -> None:
        """Where nobody listens the error is one that may pass, and counts for the breaker."""
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            with pytest.raises(OSError, match="refused") as caught:
                fetch(f"http://127.0.0.1:{nobody.getsockname()[1]}/")
        assert classify(caught.value).retryable

    def test_bounds(self, site: str) -> None:
        """What is larger than asked for, or than a result may be, is refused."""
        with pytest.raises(PermanentError, match="more than 999 bytes"):
            fetch(f"{site}/large", max_bytes=999)
        assert 1000 == fetch(f"{site}/large", max_bytes=10 * LARGEST)["bytes"]

    @pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://a/b", "http://", "a", "http://me:pw@a/", "http:/a"])
    def test_other_addresses(self, url: str) -> None:
        """Nothing but the web is fetched, and no secret is shown."""
        with pytest.raises(PermanentError, match="Only http and https are fetched") as caught:
            fetch(url)
        assert "pw" not in str(caught.value)


class TestBreaker:
    @pytest.mark.parametrize(
        ("url", "host"),
        [
            ("http://Example.org/a?b", "example.org"),
            ("https://example.org:8443/", "example.org:8443"),
            ("http://[::1]:80/", "::1:80"),
        ],
    )
    def test_of_each_host(self, url: str, host: str) -> None:
        """Each host has its own breaker, whatever is fetched of it."""
        guard: Any = fetch.guard

        assert (host, f"http:{host}") == (host_of(url), guard.call((url,), {}).name)
