"""The embedded server: private, quick to start, and never left behind."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry

from orchestra.embedded import EmbeddedServer
from tests.processes import alive, processes_within, until

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")


@pytest.fixture
def temporary(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a short directory of the test's own, which the servers take for the system's."""
    directory = tmp_path_factory.mktemp("t")
    monkeypatch.setattr("tempfile.tempdir", str(directory))
    monkeypatch.setenv("TMPDIR", str(directory))
    return directory


@pytest.fixture
def server(temporary: Path) -> Iterator[EmbeddedServer]:
    """Give a server of the test's own."""
    with EmbeddedServer.start() as server:
        yield server


def client_of(server: EmbeddedServer) -> Redis:
    """Connect as a user would."""
    return Redis.from_url(server.url, socket_timeout=5.0, retry=Retry(NoBackoff(), 1))


class Parent:
    """A Python process that starts a server, tells its process id, and then does `afterwards`."""

    def __init__(self, afterwards: str) -> None:
        code = f"""
import os, signal, sys, time
from orchestra.embedded import EmbeddedServer
server = EmbeddedServer.start()
print(server.pid, flush=True)
{afterwards}
"""
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def server_pid(self) -> int:
        """Wait for the server's process id."""
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())

    def end(self) -> None:
        """Make sure that it's gone, whatever the test found."""
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


@pytest.fixture
def parent(temporary: Path) -> Iterator[Callable[[str], Parent]]:
    """Give a way to start such processes, which end with the test."""
    parents: list[Parent] = []

    def start(afterwards: str) -> Parent:
        parents.append(Parent(afterwards))
        return parents[-1]

    yield start
    for each in parents:
        each.end()


class TestStart:
    def test_url_lets_its_holder_in(self, server: EmbeddedServer) -> None:
        """The URL is all that a client needs."""
        with client_of(server) as client:
            assert client.ping()

    def test_password_is_required_on_both_doors(self, server: EmbeddedServer) -> None:
        """Who doesn't know the password can't use the server, neither over TCP nor over its socket."""
        once = Retry(NoBackoff(), 0)

        for door in (Redis(port=server.port, retry=once), Redis(unix_socket_path=str(server.socket_path), retry=once)):
            with door, pytest.raises(AuthenticationError):
                door.ping()

    def test_keeps_to_the_loopback_interface(self, server: EmbeddedServer) -> None:
        """No other machine can reach the server."""
        with client_of(server) as client:
            assert {"bind": "127.0.0.1"} == client.config_get("bind")

    def test_never_evicts(self, server: EmbeddedServer) -> None:
        """A full server refuses new tasks rather than dropping old ones."""
        with client_of(server) as client:
            assert {"maxmemory-policy": "noeviction"} == client.config_get("maxmemory-policy")

    def test_directory_is_closed_to_others(self, server: EmbeddedServer, temporary: Path) -> None:
        """Only its owner may enter the directory, and read the file that holds the password."""
        (directory,) = temporary.iterdir()

        assert 0o700 == directory.stat().st_mode & 0o777
        assert 0o600 == (directory / "valkey.conf").stat().st_mode & 0o777

    def test_repr_keeps_the_password(self, server: EmbeddedServer) -> None:
        """What lands in logs and tracebacks names the address and not the password."""
        password = server.url.split(":")[2].split("@")[0]

        assert str(server.port) in repr(server)
        assert password not in repr(server)

    def test_two_servers_share_nothing(self, server: EmbeddedServer) -> None:
        """Every server has its own port, password and data."""
        with EmbeddedServer.start() as other, client_of(server) as here, client_of(other) as there:
            here.set("key", "value")

            assert there.get("key") is None
            assert server.port != other.port

    def test_names_its_version(self, server: EmbeddedServer) -> None:
        """The version is the server's own word."""
        assert server.version.split(".")[0].isdecimal()


class TestStop:
    def test_leaves_neither_process_nor_directory(self, temporary: Path) -> None:
        """After the block there is nothing left of the server."""
        with EmbeddedServer.start() as server:
            pid = server.pid

        assert pid is not None
        assert not alive(pid)
        assert [] == list(temporary.iterdir())

    def test_twice_is_once(self, server: EmbeddedServer) -> None:
        """Stopping a stopped server does no harm."""
        server.stop()
        server.stop()

        assert not server.running

    def test_keeps_a_directory_that_was_given(self, temporary: Path) -> None:
        """A directory that the caller named keeps its data for a later server."""
        kept = temporary / "kept"
        with EmbeddedServer.start(directory=kept, append_only=True) as first, client_of(first) as client:
            client.set("key", "value")

        with EmbeddedServer.start(directory=kept, append_only=True) as second, client_of(second) as client:
            assert b"value" == client.get("key")
        assert [kept] == list(temporary.iterdir())


class TestFaults:
    def test_kill_then_restart_keeps_the_address(self, server: EmbeddedServer) -> None:
        """Clients find a killed server again where it was, without its data."""
        with client_of(server) as client:
            client.set("key", "value")

            server.kill()
            with pytest.raises(RedisConnectionError):
                client.ping()
            server.restart()

            assert client.get("key") is None

    def test_append_only_data_outlive_a_kill(self, temporary: Path) -> None:
        """With `append_only`, what was answered is still there after a crash."""
        with EmbeddedServer.start(append_only=True) as server, client_of(server) as client:
            client.set("key", "value")

            server.kill()
            server.restart()

            assert b"value" == client.get("key")

    def test_killed_server_is_not_running(self, server: EmbeddedServer) -> None:
        """A server that is down has no process id."""
        server.kill()

        assert not server.running
        assert server.pid is None

    def test_failed_start_leaves_nothing(self, temporary: Path) -> None:
        """A start that fails takes back what it had done."""
        (temporary / "file").touch()

        with pytest.raises(FileExistsError):
            EmbeddedServer.start(directory=temporary / "file")

        assert [temporary / "file"] == list(temporary.iterdir())


class TestParent:
    def test_regular_exit_stops_the_server(self, parent: Callable[[str], Parent], temporary: Path) -> None:
        """A program that forgets to stop its server leaves nothing behind."""
        forgetful = parent("")
        pid = forgetful.server_pid()
        forgetful.process.wait(15)

        assert not alive(pid)
        assert [] == list(temporary.iterdir())

    def test_interrupt_stops_the_server(self, parent: Callable[[str], Parent], temporary: Path) -> None:
        """Ctrl-C ends the program and with it the server and its directory."""
        interrupted = parent("time.sleep(60)")
        pid = interrupted.server_pid()
        interrupted.process.send_signal(signal.SIGINT)
        interrupted.process.wait(15)

        assert not alive(pid)
        assert [] == list(temporary.iterdir())

    @linux_only
    def test_kill_of_the_parent_kills_the_server(self, parent: Callable[[str], Parent]) -> None:
        """A program that is killed takes its server with it."""
        killed = parent("time.sleep(60)")
        pid = killed.server_pid()
        killed.process.kill()

        until(lambda: not alive(pid))

    @linux_only
    @pytest.mark.parametrize("delay", [0.0, 0.01, 0.03, 0.06, 0.12])
    def test_interrupt_while_starting_leaves_nothing(self, temporary: Path, delay: float) -> None:
        """An interrupt at any moment of the start leaves neither a process nor a directory."""
        code = f"""
import os, signal, threading
from orchestra.embedded import EmbeddedServer
threading.Timer({delay}, os.kill, (os.getpid(), signal.SIGINT)).start()
EmbeddedServer.start()
threading.Event().wait(60)
"""
        interrupted = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=30, check=False)

        assert -signal.SIGINT == interrupted.returncode
        assert [] == list(temporary.iterdir())
        assert [] == processes_within(temporary)

    @linux_only
    def test_server_outlives_the_thread_that_started_it(self, temporary: Path) -> None:
        """The server belongs to the process, not to the thread that happened to start it."""
        code = """
import threading
from orchestra.embedded import EmbeddedServer
servers = []
starter = threading.Thread(target=lambda: servers.append(EmbeddedServer.start()))
starter.start()
starter.join()
servers[0].restart()
print(servers[0].running)
"""
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)

        assert "True" == run.stdout.strip()

    @linux_only
    def test_forked_child_leaves_the_server_alone(self, parent: Callable[[str], Parent]) -> None:
        """A child that was forked from the program may end without ending the program's server."""
        code = """
if os.fork() == 0:
    sys.exit()
os.wait()
print(server.running and os.path.exists(server.socket_path), flush=True)
"""
        forking = parent(code)
        forking.server_pid()

        assert forking.process.stdout is not None
        assert "True" == forking.process.stdout.readline().strip()

    @linux_only
    def test_next_start_removes_what_a_killed_parent_left(
        self, parent: Callable[[str], Parent], temporary: Path
    ) -> None:
        """A killed program can't remove its directory, so the next server does, and spares those in use."""
        killed, busy = parent("time.sleep(60)"), parent("time.sleep(60)")
        killed_pid, busy_pid = killed.server_pid(), busy.server_pid()
        left, used = (Path(f"/proc/{pid}/cwd").readlink() for pid in (killed_pid, busy_pid))
        killed.end()
        for directory in (left, used):
            os.utime(directory, (0, 0))

        with EmbeddedServer.start():
            assert not left.exists()
            assert used.exists()
            assert alive(busy_pid)
