import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from threading import Thread

import pytest

from orchestra.supervised import Death, Supervised
from tests.processes import until

READY_THEN_SLEEP = "print('here I am', flush=True); import time; time.sleep(60)"

Start = Callable[[str], Supervised]


@pytest.fixture
def heard() -> list[tuple[str, str]]:
    """Give the list of what was heard."""
    return []


@pytest.fixture
def start(heard: list[tuple[str, str]]) -> Iterator[Start]:
    """Give a way to start Python code under supervision; it ends with the test."""
    started: list[Supervised] = []

    def start_code(code: str) -> Supervised:
        process = Supervised(
            name="one",
            command=[sys.executable, "-c", code],
            ready_line=re.compile("here I am"),
            hear=lambda name, line: heard.append((name, line)),
        )
        started.append(process)
        process.start()
        return process

    yield start_code
    for each in started:
        each.kill()


def death_of(process: Supervised) -> Death:
    """Wait until a death is told."""
    deaths: list[Death | None] = [None]

    def told() -> bool:
        deaths.append(process.tend())
        return deaths[-1] is not None

    until(told)
    assert deaths[-1] is not None
    return deaths[-1]


class TestHear:
    def test_passes_each_line_on(self, start: Start, heard: list[tuple[str, str]]) -> None:
        """What the process writes, to either stream, is heard line by line under its name."""
        process = start("import sys; print('out', flush=True); print('err', file=sys.stderr)")

        until(process.death)

        assert heard == [("one", "out"), ("one", "err")]

    def test_bears_bytes_that_are_no_text(self, start: Start, heard: list[tuple[str, str]]) -> None:
        """Output in an unknown encoding is shown as well as it can be."""
        process = start(r"import os; os.write(1, b'\xff\xfe!\n')")

        until(process.death)

        assert heard == [("one", "\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}!")]

    def test_ready_line_is_noticed(self, start: Start) -> None:
        """The line that was agreed upon says that the process is ready."""
        process = start(READY_THEN_SLEEP)

        until(lambda: process.said_ready)


class TestTend:
    def test_tells_a_death_once_with_its_last_lines(self, start: Start) -> None:
        """A death comes with its exit code and the last lines, and isn't told twice."""
        process = start("print('why'); raise SystemExit(3)")

        death = death_of(process)

        assert death.cause == "ended with exit code 3"
        assert death.last_lines == ("why",)
        assert process.tend() is None

    def test_names_the_signal(self, start: Start) -> None:
        """A process that was killed says by which signal."""
        process = start(READY_THEN_SLEEP)
        assert process.pid is not None

        os.kill(process.pid, signal.SIGKILL)

        assert death_of(process).cause == "was ended by SIGKILL"

    def test_starts_a_successor_after_the_wait(self, start: Start) -> None:
        """A dead process is followed by another one, which has to become ready anew."""
        process = start(READY_THEN_SLEEP)
        until(lambda: process.said_ready)
        first = process.pid
        assert first is not None

        os.kill(first, signal.SIGKILL)
        death_of(process)
        until(lambda: process.tend() is None and process.pid is not None)

        assert process.pid != first
        until(lambda: process.said_ready)

    def test_waits_longer_each_time(self, start: Start) -> None:
        """Who dies again at once waits twice as long."""
        process = start("raise SystemExit(1)")

        waits = [death_of(process).restart_in_seconds for _ in range(2)]

        assert waits == [0.5, 1.0]


class TestKill:
    def test_after_an_interrupted_start(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """An interrupt right before the process is listened to leaves something that can be ended."""
        process = Supervised(
            name="one",
            command=[sys.executable, "-c", READY_THEN_SLEEP],
            ready_line=re.compile("here I am"),
            hear=lambda _name, _line: None,
        )

        def interrupt_the_reader(thread: Thread, start: Callable[[Thread], None] = Thread.start) -> None:
            if thread.name.startswith("reader"):
                raise KeyboardInterrupt
            start(thread)

        monkeypatch.setattr(Thread, "start", interrupt_the_reader)
        with pytest.raises(KeyboardInterrupt):
            process.start()
        process.kill()

        assert process.pid is None
        assert process._child is not None
        assert process._child.output is not None
        process._child.output.close()
