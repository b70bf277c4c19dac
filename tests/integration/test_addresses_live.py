"""Ways to Redis, live: a fleet over TLS, over a Unix socket, and as a user of its own, as over a plain address."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from celery import chord
from redis import Redis

from orchestra.embedded import EmbeddedServer
from orchestra.exceptions import BrokerUnavailableError, ConfigurationError
from orchestra.orchestra import Orchestra
from tests.fleets import app_at
from tests.integration.agents import agents
from tests.keys import keys_holding
from tests.processes import until
from tests.servers import certificate_in, tls_in_front_of

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

FLEET = """
from orchestra import OrchestraCelery

app = OrchestraCelery("fleet")


@app.task(requires={"nlp"})
def words(text: str) -> int:
    return len(text.split())


@app.task
def total(numbers: list[int]) -> int:
    return sum(numbers)
"""
PASSWORD = "p@ss:w/rd?#%"


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    """Give a server of the module's own, with a user beside the default one."""
    with EmbeddedServer.start() as server:
        with Redis.from_url(server.url) as client:
            client.execute_command("ACL", "SETUSER", "fleet", "on", f">{PASSWORD}", "~*", "&*", "+@all", "-@admin")
        yield server


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a certificate that only who is told trusts."""
    if shutil.which("openssl") is None:
        pytest.skip("there's no openssl to make a certificate with")
    return certificate_in(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def tls_port(server: EmbeddedServer, certificate: Path) -> Iterator[int]:
    """Give the port at which the server is reached by TLS."""
    with tls_in_front_of(server.port, certificate) as port:
        yield port


def _password(server: EmbeddedServer) -> str:
    return server.url.partition("@")[0].rpartition(":")[2]


@pytest.fixture(params=["tls", "socket", "user"])
def url(request: pytest.FixtureRequest, server: EmbeddedServer) -> str:
    """Give an address of the server, one way after the other."""
    match request.param:
        case "tls":
            trusted = f"ssl_cert_reqs=required&ssl_ca_certs={request.getfixturevalue('certificate')}"
            return f"rediss://:{_password(server)}@127.0.0.1:{request.getfixturevalue('tls_port')}/0?{trusted}"
        case "socket":
            return f"redis+socket://:{_password(server)}@{server.socket_path}"
        case _:
            return f"redis://fleet:{quote(PASSWORD, safe='')}@127.0.0.1:{server.port}/0"


@pytest.fixture
def start(tmp_path: Path, url: str) -> Iterator[Callable[[], Any]]:
    """Give a function that starts an agent with a pool of processes."""
    with agents(tmp_path, url) as started:
        started.write_app(FLEET)
        yield lambda: started.start("--capabilities", "nlp,general", "-c", "2", name="text", pool="prefork")


@pytest.fixture
def app(url: str) -> Iterator[Any]:
    """Give an app that sends, and knows none of the tasks."""
    with app_at(url, main="fleet") as app:
        yield app


@pytest.mark.filterwarnings("ignore:Call to deprecated setex")  # Celery's own, in its backend
def test_a_fleet_works(app: Any, start: Callable[[], Any], server: EmbeddedServer) -> None:
    """Waiting tasks, chords, many at once, remote control, counting and purging; nothing is left of what has run."""
    waiting = [app.send_task("fleet.words", ("one",), requires="nlp", headers={"mark": "the message"})]
    with Redis.from_url(server.url) as client:
        start()
        words = app.signature("fleet.words", ("one two three",), headers={"mark": "the message"})

        assert [1] == [result.get(timeout=20) for result in waiting]
        assert 6 == chord([words, words], app.signature("fleet.total"), app=app).apply_async().get(timeout=20)
        assert [3] * 50 == [result.get(timeout=20) for result in [words.apply_async() for _ in range(50)]]
        until(lambda: not keys_holding(client, "the message"))
    assert [{"text@test": {"ok": "pong"}}] == app.control.broadcast("ping", reply=True, limit=1, timeout=20)
    for _ in range(3):
        app.send_task("fleet.words", ("one two",), requires="gpu")
    assert {"fleet:gpu": 3} == {queue.name: queue.depth for queue in Orchestra(app).queues() if queue.depth}
    with app.connection_for_write() as connection:
        assert 3 == connection.default_channel.queue_purge("fleet:gpu")


def test_an_unknown_certificate_is_refused(tls_port: int, server: EmbeddedServer) -> None:
    """A server whose certificate nobody vouches for gets no task."""
    url = f"rediss://:{_password(server)}@127.0.0.1:{tls_port}/0?ssl_cert_reqs=required"
    with app_at(url) as app, pytest.raises(BrokerUnavailableError, match="certificate"):
        app.send_task("fleet.words", ("one",))


def test_a_wrong_password_is_refused(server: EmbeddedServer) -> None:
    """A user with a wrong password is told so."""
    with (
        app_at(f"redis://fleet:wrong@127.0.0.1:{server.port}/0") as app,
        pytest.raises(ConfigurationError, match="refused the user name or password"),
    ):
        app.send_task("fleet.words", ("one",))
