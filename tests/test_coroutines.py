"""How coroutines run to their end, and what reaches them while they wait."""

import asyncio
import ctypes
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import pytest

from orchestra.coroutines import run_coroutine, wake
from tests.processes import until


class InterruptError(Exception):
    """What somebody raises in a thread."""


def interrupt(thread_id: int | None, kind: type[BaseException] = InterruptError) -> None:
    """Raise something in a thread, as pools without processes do when a limit is reached."""
    assert thread_id is not None
    assert 1 == ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread_id), ctypes.py_object(kind))
    wake(thread_id)


def interrupted(code: Callable[[], Any], started: threading.Event) -> list[Any]:
    """Run a coroutine in a thread, interrupt it once it has started, and return what came of it."""
    came: list[Any] = []

    def act() -> None:
        try:
            came.append(run_coroutine(code(), interrupts=(InterruptError, KeyError)))
        except BaseException as error:  # noqa: BLE001  # it's what came
            came.append(error)

    thread = threading.Thread(target=act)
    thread.start()
    assert started.wait(10)
    time.sleep(0.05)  # until it waits; if it doesn't yet, it's interrupted in its own code
    interrupt(thread.ident)
    thread.join(10)
    assert not thread.is_alive()
    return came


class TestEnds:
    def test_what_it_returns(self) -> None:
        """A coroutine runs to its end, whatever it waits for."""

        async def code() -> int:
            await asyncio.sleep(0)
            return sum(await asyncio.gather(*(asyncio.sleep(0, number) for number in range(5))))

        assert 10 == run_coroutine(code())

    def test_what_it_raises(self) -> None:
        """Its error is the caller's, and the loop goes on."""

        async def code(error: BaseException) -> None:
            await asyncio.sleep(0)
            raise error

        for error in (ValueError("no"), SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError("by itself")):
            with pytest.raises(type(error)) as raised:
                run_coroutine(code(error))
            assert error is raised.value

    def test_one_loop_a_thread(self) -> None:
        """Clients that a task keeps for the next one find the loop that they were made in; threads share none."""

        async def loop() -> int:
            return id(asyncio.get_running_loop())

        own = {run_coroutine(loop()) for _ in range(3)}
        others: list[int] = []
        thread = threading.Thread(target=lambda: others.append(run_coroutine(loop())))
        thread.start()
        thread.join()

        assert 1 == len(own)
        assert own.isdisjoint(others)

    def test_the_context(self) -> None:
        """It sees its caller's context, and leaves that as it was."""
        variable = ContextVar("variable", default="unset")

        async def code() -> str:
            seen = variable.get()
            variable.set("by the coroutine")
            return seen

        variable.set("by the caller")

        assert "by the caller" == run_coroutine(code())
        assert "by the caller" == variable.get()

    def test_what_it_leaves(self) -> None:
        """A task that it has started and not waited for doesn't run on beside the next coroutine."""
        ended: list[str] = []

        async def beside() -> None:
            try:
                await asyncio.sleep(60)
            finally:
                ended.append("beside")

        async def code() -> None:
            code.kept = asyncio.create_task(beside())  # type: ignore[attr-defined]  # else it might be collected
            await asyncio.sleep(0)

        run_coroutine(code())

        assert ["beside"] == ended

    def test_within_a_loop(self) -> None:
        """Where a loop runs already, as in an asynchronous test, it runs beside that."""

        async def code() -> int:
            await asyncio.sleep(0)
            return 4

        async def failing() -> None:
            raise KeyError

        async def caller() -> int:
            with pytest.raises(KeyError):
                run_coroutine(failing())
            return run_coroutine(code())

        assert 4 == asyncio.run(caller())


class TestInterrupts:
    def test_reach_it(self) -> None:
        """What is raised in the thread while the coroutine waits is raised where it waits; it may answer it."""
        started = threading.Event()

        async def code() -> str:
            started.set()
            try:
                await asyncio.sleep(60)
            except InterruptError:
                await asyncio.sleep(0)
                return "answered"
            return "never"

        assert ["answered"] == interrupted(code, started)

    def test_end_it(self) -> None:
        """One that it doesn't answer ends it, with all that it has to tidy up, and is the caller's."""
        started, tidied = threading.Event(), list[str]()

        async def code() -> None:
            try:
                started.set()
                await asyncio.gather(asyncio.sleep(60), asyncio.sleep(60))
            finally:
                await asyncio.sleep(0)
                tidied.append("up")

        (came,) = interrupted(code, started)

        assert isinstance(came, InterruptError)
        assert ["up"] == tidied

    def test_a_second_one(self) -> None:
        """One that comes while the first is answered is raised as well."""
        started, answering, came = threading.Event(), threading.Event(), list[Any]()

        async def code() -> None:
            started.set()
            try:
                await asyncio.sleep(60)
            except InterruptError:
                answering.set()
                await asyncio.sleep(60)

        def act() -> None:
            try:
                run_coroutine(code(), interrupts=(InterruptError, KeyError))
            except BaseException as error:  # noqa: BLE001  # it's what came
                came.append(error)

        thread = threading.Thread(target=act)
        thread.start()
        assert started.wait(10)
        interrupt(thread.ident)
        assert answering.wait(10)
        interrupt(thread.ident, KeyError)
        until(lambda: not thread.is_alive(), seconds=10)

        assert [KeyError] == [type(error) for error in came]
