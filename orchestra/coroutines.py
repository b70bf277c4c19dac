"""How a task that is an `async def` runs: one event loop for each process or thread, and what interrupts it arrives."""

import asyncio
import threading
from collections.abc import Coroutine, Generator
from contextlib import suppress
from contextvars import copy_context
from types import coroutine
from typing import Any, TypeVar

__all__ = ["run_coroutine", "wake"]

R = TypeVar("R")


class _Kept:
    """A loop that is closed when it's no longer kept, as at the end of its thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()

    def __del__(self) -> None:
        """Close the loop."""
        self.loop.close()


class _Loops(threading.local):
    """The event loop of each thread, kept from task to task: connections belong to the loop that they're made in."""

    kept: _Kept | None = None

    def get(self) -> asyncio.AbstractEventLoop:
        """Return this thread's loop."""
        if self.kept is None:
            self.kept = _Kept()
        return self.kept.loop


_LOOPS = _Loops()
_RUNNING: dict[int, asyncio.AbstractEventLoop] = {}  # by the thread that waits in it


def run_coroutine(code: Coroutine[Any, Any, R], *, interrupts: tuple[type[BaseException], ...] = ()) -> R:
    """
    Run a coroutine to its end, and return what it returns.

    What interrupts the thread while the coroutine waits, such as a time limit, is raised inside it, where it waits.
    Tasks that it has started and left are cancelled. Of `interrupts` none is lost that strikes the loop's own code.

    Raises:
        BaseException: what the coroutine raises.

    """
    if _runs_a_loop():  # a caller's own, as in a test that is asynchronous
        return _run_aside(code)
    loop = _LOOPS.get()
    interrupt: list[BaseException] = []
    before = asyncio.all_tasks(loop)
    main = loop.create_task(_main(code, interrupt), context=copy_context())

    def take(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:  # as the loop calls it
        error = context.get("exception")
        if isinstance(error, interrupts) and not main.done():
            interrupt.append(error)
            main.cancel()
        else:
            loop.default_exception_handler(context)

    loop.set_exception_handler(take)
    _RUNNING[threading.get_ident()] = loop
    try:
        return _awaited(loop, main, interrupt)
    finally:
        _RUNNING.pop(threading.get_ident(), None)
        loop.set_exception_handler(None)
        left = asyncio.all_tasks(loop) - before - {main}
        if left:
            _cancel(loop, left)


def wake(thread: int) -> None:
    """Have a thread whose coroutine waits take a step, so that what was put into it is raised now."""
    loop = _RUNNING.get(thread)
    if loop is not None:
        with suppress(RuntimeError):  # closed meanwhile
            loop.call_soon_threadsafe(_nothing)


def _nothing() -> None: ...


def _awaited(loop: asyncio.AbstractEventLoop, main: asyncio.Task[R], interrupt: list[BaseException]) -> R:
    while True:
        try:
            return loop.run_until_complete(main)
        except BaseException as error:
            if main.done():
                raise
            interrupt.append(error)
            main.cancel()


def _cancel(loop: asyncio.AbstractEventLoop, left: set[asyncio.Task[Any]]) -> None:
    for task in left:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))


async def _main(code: Coroutine[Any, Any, R], interrupt: list[BaseException]) -> R:
    result: R = await _driven(code, interrupt)
    return result


@coroutine
def _driven(code: Coroutine[Any, Any, R], interrupt: list[BaseException]) -> Generator[Any, Any, R]:
    """Run `code`; a cancellation that stands for an interrupt is that interrupt to it."""
    value, error = None, None
    while True:
        try:
            awaited = code.send(value) if error is None else code.throw(error)
        except StopIteration as end:
            result: R = end.value
            return result
        try:
            value, error = (yield awaited), None
        except BaseException as raised:  # noqa: BLE001  # whatever it is, it's the code's
            error = interrupt.pop() if interrupt else raised


def _runs_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _run_aside(code: Coroutine[Any, Any, R]) -> R:
    """Run a coroutine in a thread of its own, whose loop is closed behind it."""
    ended: list[R] = []
    raised: list[BaseException] = []
    context = copy_context()

    def act() -> None:
        try:
            ended.append(context.run(asyncio.run, code))
        except BaseException as error:  # noqa: BLE001  # which is the caller's
            raised.append(error)

    thread = threading.Thread(target=act, name="coroutine")
    thread.start()
    thread.join()
    if raised:
        raise raised[0]
    return ended[0]
