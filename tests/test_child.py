import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

from orchestra.child import Child
from tests.processes import alive, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
FAMILY = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def child() -> Iterator[Child]:
    """Give a child that sleeps."""
    child = Child(SLEEP)
    child.start()
    yield child
    child.kill()


@pytest.fixture
def family() -> Iterator[tuple[Child, int]]:
    """Give a child that has a child of its own, and that one's process id."""
    child = Child([sys.executable, "-c", FAMILY], output=subprocess.PIPE)
    child.start()
    assert child.output is not None
    with child.output:
        yield child, int(child.output.readline())
        child.kill()


class TestStart:
    def test_gives_the_child_a_session_of_its_own(self, child: Child) -> None:
        """The terminal's Ctrl-C goes to a session, and the child isn't in ours."""
        assert child.pid is not None
        assert os.getsid(child.pid) == child.pid

    def test_reports_an_unknown_directory(self) -> None:
        """A child that the system can't start is an error at once."""
        with pytest.raises(FileNotFoundError):
            Child(SLEEP, directory=Path("/no/such/place")).start()

    def test_after_the_end_was_asked_for_starts_nothing(self) -> None:
        """A child that was called off before its start came through never runs."""
        child = Child(SLEEP)
        child.kill()

        child.start()

        assert child.pid is None


class TestEnd:
    def test_tells_the_exit_code(self) -> None:
        """A child that ends by itself leaves its exit code."""
        child = Child([sys.executable, "-c", "raise SystemExit(3)"])
        child.start()

        assert child.wait(15)
        assert child.returncode == 3
        assert not child.running

    def test_terminate_asks(self, child: Child) -> None:
        """A request to end is a SIGTERM."""
        child.terminate()

        assert child.wait(15)
        assert child.returncode == -signal.SIGTERM

    def test_wait_gives_up_in_time(self, child: Child) -> None:
        """A wait with a limit says that the child still runs."""
        assert not child.wait(0.01)
        assert child.returncode is None

    def test_kill_ends_the_whole_family(self, family: tuple[Child, int]) -> None:
        """A kill reaches the child's own children too."""
        child, grandchild = family

        child.kill()

        assert not child.running
        until(lambda: not alive(grandchild))

    def test_death_of_the_child_ends_its_family(self, family: tuple[Child, int]) -> None:
        """A child that dies by another hand leaves no orphans."""
        child, grandchild = family
        assert child.pid is not None

        os.kill(child.pid, signal.SIGKILL)

        until(lambda: not alive(grandchild))

    def test_may_be_asked_for_twice(self, child: Child) -> None:
        """Ending an ended child does no harm."""
        child.kill()
        child.terminate()
        child.kill()

        assert not child.running


class TestParent:
    def test_death_by_sigkill_signals_the_child(self) -> None:
        """A parent that is killed can't stop its child, so the system does."""
        code = (
            "import sys, time\n"
            "from orchestra.child import Child\n"
            f"child = Child({SLEEP!r})\n"
            "child.start()\n"
            "print(child.pid, flush=True)\n"
            "time.sleep(60)"
        )
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
            assert parent.stdout is not None
            pid = int(parent.stdout.readline())
            parent.kill()

        until(lambda: not alive(pid))

    def test_thread_that_started_it_may_end(self) -> None:
        """The child belongs to the process, not to the thread that happened to start it."""
        child = Child([sys.executable, "-c", "import time; time.sleep(0.3)"])
        starter = Thread(target=child.start)
        starter.start()
        starter.join()

        assert child.wait(15)
        assert child.returncode == 0
