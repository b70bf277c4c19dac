"""Limits within a process: they interrupt what takes too long, in its own thread, and nothing else."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Event
from typing import Any

import pytest

from orchestra.deadlines import Deadlines, Limits
from tests.processes import until


class SoftError(Exception):
    """The first limit."""


class HardError(Exception):
    """The second limit."""


pytestmark = pytest.mark.timeout(120, method="thread")  # the other method is SIGALRM

SHORT = Limits(((0.05, SoftError),), 60)
LONG = Limits(((60, SoftError),), 60)


@pytest.fixture
def deadlines() -> Iterator[Deadlines]:
    """Give what watches, and leave SIGALRM as it was."""
    yield Deadlines()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)


@pytest.fixture
def thread() -> Iterator[Callable[..., Any]]:
    """Give a function that calls another one in a thread, and returns what comes of it."""
    with ThreadPoolExecutor(1) as pool:
        yield lambda act: pool.submit(act).result(timeout=60)


def spin(seconds: float = 60.0) -> str:
    """Be busy with Python code."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
    return "done"


class TestKeep:
    @pytest.mark.parametrize("where", ["here", "thread"])
    def test_in_time(self, deadlines: Deadlines, thread: Callable[..., Any], where: str) -> None:
        """A call that ends in time returns what it returns, and raises what it raises."""
        call = thread if where == "thread" else lambda act: act()

        assert "done" == call(lambda: deadlines.keep(LONG, "t", lambda: spin(0.01)))
        with pytest.raises(ZeroDivisionError):
            call(lambda: deadlines.keep(LONG, "t", lambda: 1 // 0))

    @pytest.mark.parametrize("where", ["here", "thread"])
    def test_too_long(self, deadlines: Deadlines, thread: Callable[..., Any], where: str) -> None:
        """A limit is raised inside the call, in whichever thread it is."""
        call = thread if where == "thread" else lambda act: act()

        with pytest.raises(SoftError):
            call(lambda: deadlines.keep(SHORT, "t", spin))

    def test_waiting_in_the_main_thread(self, deadlines: Deadlines) -> None:
        """In the main thread a limit cuts a sleep short."""
        started = time.monotonic()

        with pytest.raises(SoftError):
            deadlines.keep(SHORT, "t", lambda: time.sleep(50))

        assert time.monotonic() - started < 40

    @pytest.mark.parametrize("where", ["here", "thread"])
    def test_one_after_another(self, deadlines: Deadlines, thread: Callable[..., Any], where: str) -> None:
        """A call that answers the first limit and goes on meets the second."""
        seen: list[str] = []

        def stubborn() -> None:
            try:
                spin()
            except SoftError:
                seen.append("soft")
            spin()

        limits = Limits(((0.05, SoftError), (0.2, HardError)), 60)
        call = thread if where == "thread" else lambda act: act()
        with pytest.raises(HardError):
            call(lambda: deadlines.keep(limits, "t", stubborn))
        assert ["soft"] == seen

    def test_several_at_once(self, deadlines: Deadlines) -> None:
        """Each call has its own limit, and those beside it go on."""
        with ThreadPoolExecutor(4) as pool:
            fine = [pool.submit(deadlines.keep, LONG, "fine", lambda: spin(0.5)) for _ in range(2)]
            late = [pool.submit(deadlines.keep, SHORT, "late", spin) for _ in range(2)]

            assert [SoftError, SoftError] == [type(one.exception(timeout=60)) for one in late]
            assert ["done", "done"] == [one.result(timeout=60) for one in fine]

    def test_a_limit_at_the_very_end(self, deadlines: Deadlines, thread: Callable[..., Any]) -> None:
        """A limit that strikes about when its call ends never strikes what the thread does next."""

        def many() -> int:
            struck = 0
            for number in range(300):
                try:
                    deadlines.keep(Limits(((0.002, SoftError),), 60), "t", partial(spin, 0.0017 + number % 7 * 1e-4))
                except SoftError:
                    struck += 1
                spin(0.001)
            return struck

        assert 0 <= thread(many) <= 300
        assert 0 <= many() <= 300

    @pytest.mark.parametrize("limit", [0.05, 60])
    def test_the_interpreter_is_left_as_it_was(self, limit: float) -> None:
        """Neither a call that was struck nor one that wasn't has CPython look for errors from then on."""
        code = f"""
import sys, time
from threading import Thread
from orchestra.deadlines import Deadlines, Limits

def spin() -> None:
    end = time.monotonic() + 0.3
    while time.monotonic() < end:
        pass

def call() -> None:
    try:
        Deadlines().keep(Limits((({limit}, ValueError),), 90), "t", spin)
    except ValueError:
        print("struck")

thread = Thread(target=call)
thread.start()
thread.join()
sys.settrace(lambda *_: None)
spin()
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

        assert ("struck" in done.stdout) == (limit < 1)

    def test_nothing_is_kept(self, deadlines: Deadlines) -> None:
        """What is over takes no memory until the time that it might have taken."""
        for _ in range(100):
            deadlines.keep(LONG, "t", list)

        assert not deadlines._runs

    def test_overdue(self, deadlines: Deadlines, thread: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
        """What no limit stops goes on, and the log says so."""
        release = Event()

        def deaf() -> str:
            while not release.is_set():
                try:
                    release.wait(0.05)
                except SoftError:
                    continue
            return "done"

        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(deadlines.keep, Limits(((0.05, SoftError),), 0.2), "shop.deaf 7", deaf)
            until(lambda: "task overdue" in caplog.text)
            release.set()

            assert "done" == running.result(timeout=60)
        assert "shop.deaf 7" in caplog.text

    def test_a_signal_that_is_used(self, deadlines: Deadlines) -> None:
        """A process that has another use for SIGALRM keeps it, and is interrupted between steps of Python code."""
        heard: list[int] = []
        signal.signal(signal.SIGALRM, lambda number, _: heard.append(number))

        with pytest.raises(SoftError):
            deadlines.keep(SHORT, "t", spin)

        assert [] == heard
