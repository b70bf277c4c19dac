"""The pulse, live: of processes that are frozen, killed and starved, over every way to a server, of servers that go."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from redis.connection import parse_url
from redis.exceptions import ConnectionError as RedisConnectionError

from orchestra.embedded import EmbeddedServer
from orchestra.pulse import beat_arguments
from orchestra.store import load_script
from tests.processes import alive, until
from tests.servers import SentinelSet, certificate_in, tls_in_front_of
from tests.stores import client_at
from tests.test_pulse import LOST_AFTER, Fleet, beating, fleet_at, goes_on, helper_of, linux_only

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

PARENT = """
import json, os, re, signal, sys, time
from threading import Thread
from orchestra.pulse import Pulse
from orchestra.store import Script

given = json.loads(sys.stdin.readline())
pulse = Pulse(given["parameters"], Script(*given["script"]), given["keys"], given["args"],
              every_seconds=0.1, lost_after_seconds=given["lost_after"])
pulse.start()
print(pulse._process.pid, flush=True)
"""
TICK = """
while True:
    pulse.tick()
    time.sleep(0.02)
"""
FORKING = """
if not os.fork():
    pulse.tick()
    pulse.running = True
    pulse.start()
    pulse.stop()
    os._exit(0)
os.wait()
print(pulse._numbers[0], pulse._numbers[1], pulse._process.poll() is None, flush=True)
time.sleep(60)
"""
STARVING = """
longest, pulse.running = 0.0, True
def watch():
    global longest
    last = time.monotonic()
    while True:
        time.sleep(0.01)
        longest, last = max(longest, time.monotonic() - last), time.monotonic()
Thread(target=watch, daemon=True).start()
letters = 20
while longest < 2.0:
    worker = Thread(target=re.match, args=("(a+)+$", "a" * letters + "b"))
    worker.start()
    worker.join()
    letters += 1
print(longest)
"""


@pytest.fixture
def fleet(redis_url: str) -> Iterator[Fleet]:
    """Give a fleet on an empty server."""
    with fleet_at(redis_url) as fleet:
        yield fleet


@pytest.fixture
def private() -> Iterator[EmbeddedServer]:
    """Give a server that a test may strike."""
    with EmbeddedServer.start(append_only=True) as server:
        yield server


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a certificate that only who is told trusts."""
    if shutil.which("openssl") is None:
        pytest.skip("there's no openssl to make a certificate with")
    return certificate_in(tmp_path_factory.mktemp("tls"))


@dataclass
class Parent:
    """A process that has a pulse, and the helper that beats for it."""

    process: "subprocess.Popen[str]"
    helper: int

    def said(self) -> str:
        """Return the next line that it writes."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@contextmanager
def parent_of(fleet: Fleet, holder: str, *, doing: str = TICK, lost_after: float = LOST_AFTER) -> Iterator[Parent]:
    """Run a process that starts a holder's pulse and then does something; kill its whole group at the end."""
    keys, args = beat_arguments(fleet.keys, holder=holder, agent="", lost_after_seconds=lost_after)
    script = load_script("pulse")
    given = {"parameters": parse_url(fleet.url), "script": [script.source, script.sha], "keys": keys, "args": args}
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT + doing],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps({**given, "lost_after": lost_after}) + "\n")
            process.stdin.flush()
            yield Parent(process, int(process.stdout.readline()))
        finally:
            with suppress(ProcessLookupError):  # nobody of it is left
                os.killpg(process.pid, signal.SIGKILL)


@linux_only
class TestProcess:
    def test_that_is_stopped_does_not_beat(self, fleet: Fleet) -> None:
        """A frozen process can't work on what it holds, task or not; thawed, it is a holder again."""
        with parent_of(fleet, "a", doing="pulse.running = True\n" + TICK) as parent:
            until(lambda: fleet.beat_of("a") > 0)

            os.kill(parent.process.pid, signal.SIGSTOP)

            until(lambda: fleet.silence_of("a") > 2 * LOST_AFTER)
            frozen_at = fleet.beat_of("a")
            os.kill(parent.process.pid, signal.SIGCONT)
            until(lambda: fleet.beat_of("a") > frozen_at)

    @pytest.mark.parametrize("doing", [TICK, "if os.fork(): pulse.tick()\n" + TICK], ids=["alone", "with a fork"])
    def test_that_is_killed_ends_the_helper(self, fleet: Fleet, doing: str) -> None:
        """The helper outlives its parent by half a second at most, also when a fork holds its standard input open."""
        with parent_of(fleet, "a", doing=doing) as parent:
            until(lambda: fleet.beat_of("a") > 0)

            os.kill(parent.process.pid, signal.SIGKILL)
            parent.process.wait()

            until(lambda: not alive(parent.helper), seconds=5)

    def test_that_has_no_server_ends_the_helper_too(self, fleet: Fleet, private: EmbeddedServer) -> None:
        """A helper that waits for a server's answer notices its parent's end as well."""
        with fleet_at(private.url) as elsewhere, parent_of(elsewhere, "a", lost_after=60.0) as parent:
            until(lambda: elsewhere.beat_of("a") > 0)
            assert private.pid is not None
            os.kill(private.pid, signal.SIGSTOP)

            os.kill(parent.process.pid, signal.SIGKILL)
            parent.process.wait()

            until(lambda: not alive(parent.helper), seconds=5)
        private.kill()

    @pytest.mark.parametrize("request_", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
    def test_alone_is_meant_by_signals(self, fleet: Fleet, request_: signal.Signals) -> None:
        """A Ctrl-C, or a stop of the whole service, leaves the beats to an agent that finishes its tasks."""
        with beating(fleet.pulse("a")) as pulse:
            goes_on(pulse)
            helper = helper_of(pulse)
            os.kill(helper, request_)

            goes_on(pulse)

            assert os.getsid(helper) == helper
            assert helper_of(pulse) == helper

    def test_shows_no_password(self, private: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
        """Neither its command line nor its environment has the password, though the agent's environment does."""
        password = parse_url(private.url)["password"]
        monkeypatch.setenv("ORCHESTRA_BROKER_URL", private.url)

        with fleet_at(private.url) as fleet, beating(fleet.pulse("a")) as pulse:
            goes_on(pulse)
            about = Path(f"/proc/{helper_of(pulse)}")

            assert b"pulse_process.py" in (about / "cmdline").read_bytes()
            assert password.encode() not in (about / "cmdline").read_bytes() + (about / "environ").read_bytes()
            assert password not in repr(pulse) + repr(vars(pulse).get("_process"))

    def test_has_the_pulse_and_its_forks_have_not(self, fleet: Fleet) -> None:
        """A fork neither ticks, nor says that a task runs, nor stops the helper, nor starts another one."""
        with parent_of(fleet, "a", doing=FORKING) as parent:
            assert "0 0 True" == parent.said()
            assert alive(parent.helper)

    @pytest.mark.slow
    def test_go_on_while_the_lock_is_held(self, fleet: Fleet) -> None:
        """Code that holds Python's lock for longer than the time after which one is lost doesn't cost the leases."""
        with parent_of(fleet, "a", doing=STARVING, lost_after=1.0) as parent:
            until(lambda: fleet.beat_of("a") > 0)
            longest = 0.0

            def ended() -> bool:
                nonlocal longest
                longest = max(longest, fleet.silence_of("a"))
                return parent.process.poll() is not None

            until(ended, seconds=90)
            starved_for = float(parent.said())

        assert starved_for > 2.0
        assert longest < 1.0


class TestServer:
    def test_outlasts_a_server_that_refuses(self, private: EmbeddedServer, capfd: pytest.CaptureFixture[str]) -> None:
        """Beats stop while the server takes no writes, which is told once, and go on when it does again."""
        with fleet_at(private.url) as fleet, beating(fleet.pulse("a")) as pulse:
            goes_on(pulse)
            fleet.client.replicaof("127.0.0.1", 1)
            until(lambda: fleet.silence_of("a") > 2 * LOST_AFTER)

            fleet.client.replicaof("NO", "ONE")

            goes_on(pulse)
        told = capfd.readouterr().err
        assert 1 == told.count("READONLY")
        assert 1 == told.count("beats reach Redis again")

    def test_outlasts_a_server_that_is_not_there(self, private: EmbeddedServer) -> None:
        """Beats begin when the server comes, however late."""
        private.kill()
        with fleet_at(private.url) as fleet, beating(fleet.pulse("a", lost_after=2.0)) as pulse:
            assert 0 == pulse.beats

            private.restart()

            goes_on(pulse)

    def test_waits_after_the_server_was_away(self, private: EmbeddedServer) -> None:
        """When the server comes back every holder has the whole time to beat again, the lost ones too."""
        with fleet_at(private.url) as fleet, beating(fleet.pulse("living")) as pulse:
            goes_on(pulse)
            fleet.client.zadd(fleet.keys.holders, {"lost": fleet.now()})
            fleet.lease("lost", "1")
            fleet.client.config_set("appendfsync", "always")
            stopped_at = fleet.now()
            private.kill()
            until(lambda: time.time() > stopped_at + 2 * LOST_AFTER)
            back_at = time.time()
            private.restart()

            def taken_back() -> bool:
                pulse.tick()
                return bool(fleet.client.llen("shop:nlp"))

            until(taken_back)

            assert fleet.now() - back_at > LOST_AFTER


class TestWays:
    def test_by_a_unix_socket(self, redis_server: EmbeddedServer, fleet: Fleet) -> None:
        """A server is reached by its socket as well."""
        parameters = {"path": str(redis_server.socket_path), "password": parse_url(fleet.url)["password"]}

        with beating(fleet.pulse("a", **parameters)) as pulse:
            goes_on(pulse)

    def test_to_another_database(self, fleet: Fleet) -> None:
        """The beats go to the database that the parameters name."""
        with beating(fleet.pulse("a", **{**parse_url(fleet.url), "db": 3})) as pulse:
            goes_on(pulse)

        assert float("-inf") == fleet.beat_of("a")
        with client_at(fleet.url.replace("/0", "/3")) as client:
            assert 1 == client.exists(fleet.keys.holders)

    def test_as_a_user(self, private: EmbeddedServer) -> None:
        """A user of one's own signs in by name."""
        with fleet_at(private.url) as fleet:
            fleet.client.execute_command("ACL", "SETUSER", "fleet", "on", ">hunter2", "~*", "+@all")
            fleet.client.execute_command("ACL", "SETUSER", "default", "-@scripting")
            parameters = {**parse_url(private.url), "username": "fleet", "password": "hunter2"}

            with beating(fleet.pulse("a", **parameters)) as pulse:
                goes_on(pulse)

    def test_with_a_wrong_password(self, fleet: Fleet, capfd: pytest.CaptureFixture[str]) -> None:
        """A password that is refused is told without being shown, and the helper tries on."""
        with beating(fleet.pulse("a", **{**parse_url(fleet.url), "password": "hunter2"})) as pulse:
            helper = helper_of(pulse)
            told = ""

            def refused() -> bool:
                nonlocal told
                told += capfd.readouterr().err
                return "WRONGPASS" in told

            until(refused)

            assert (0, True) == (pulse.beats, alive(helper))
            assert "hunter2" not in told

    @pytest.fixture
    def tls(self, fleet: Fleet, certificate: Path) -> Iterator[Mapping[str, Any]]:
        """Give the parameters of the server, behind TLS."""
        with tls_in_front_of(parse_url(fleet.url)["port"], certificate) as port:
            yield {**parse_url(fleet.url), "port": port, "ssl": True}

    @pytest.mark.parametrize(
        "options",
        [
            lambda certificate: {"ssl_ca_certs": str(certificate)},
            lambda certificate: {"ssl_ca_data": certificate.read_text(encoding="utf-8").partition("-----END PRIV")[2]},
            lambda certificate: {"ssl_cert_reqs": "none"},
            lambda certificate: {"ssl_cert_reqs": None},
            lambda certificate: {"ssl_cert_reqs": 0},
            lambda certificate: {"ssl_cert_reqs": "CERT_REQUIRED", "ssl_ca_certs": str(certificate)},
        ],
        ids=["file", "data", "none", "None", "0", "CERT_REQUIRED"],
    )
    def test_by_tls(
        self, fleet: Fleet, tls: Mapping[str, Any], certificate: Path, options: Callable[[Path], dict[str, Any]]
    ) -> None:
        """TLS takes redis-py's options."""
        with beating(fleet.pulse("a", lost_after=3.0, **tls, **options(certificate))) as pulse:
            goes_on(pulse, beats=2)

    def test_by_tls_to_a_stranger(
        self, fleet: Fleet, tls: Mapping[str, Any], capfd: pytest.CaptureFixture[str]
    ) -> None:
        """A server whose certificate nobody vouches for gets no password."""
        with beating(fleet.pulse("a", lost_after=3.0, **tls)) as pulse:
            until(lambda: "certificate verify failed" in capfd.readouterr().err)

            assert 0 == pulse.beats

    @pytest.mark.parametrize("way", ["asked", "crash"])
    def test_by_sentinel(self, tmp_path: Path, way: str) -> None:
        """The beats go to the master that Sentinel names, and after a failover to the next one."""
        with SentinelSet.start(tmp_path) as servers, fleet_at(servers.master.url) as fleet:
            url, options = parse_url(f"redis{servers.url.removeprefix('sentinel')}"), servers.options
            parameters = {**url, **options, "sentinels": [(servers.master.host, 1), (url["host"], url["port"])]}

            with beating(fleet.pulse("a", lost_after=3.0, **parameters)) as pulse:
                pulse.running = True
                until(lambda: fleet.beat_of("a") > 0)
                servers.fail_over() if way == "asked" else servers.crash()
                changed_at = time.time()

                until(lambda: _has_beaten_at(servers.master.url, fleet, since=changed_at))
                goes_on(pulse)


def _has_beaten_at(url: str, fleet: Fleet, *, since: float) -> bool:
    """Tell whether the last beat that a server knows of is younger than that."""
    with suppress(RedisConnectionError), client_at(url) as client:  # a master that has just changed drops its clients
        return Fleet(url, client, fleet.keys).beat_of("a") > since
    return False
