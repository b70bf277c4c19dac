"""Time limits in the threads of this process, for pools that have no process to kill: they interrupt Python code."""

import ctypes
import math
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Lock, Thread, get_ident, main_thread
from time import monotonic, sleep
from typing import Any, Final, TypeVar

from orchestra.coroutines import wake
from orchestra.logging_utils import get_logger

__all__ = ["Deadlines", "Limits"]

_ALARM: Final[signal.Signals | None] = getattr(signal, "SIGALRM", None)
_LONGEST_WAIT: Final = 86_400.0  # s; locks can't be waited on for ever and a day

R = TypeVar("R")

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """
    When to interrupt: `error` is raised inside the code after so many seconds, one after another.

    `overdue_seconds` is when the log says that the code goes on all the same.
    """

    steps: tuple[tuple[float, type[BaseException]], ...]
    overdue_seconds: float


@dataclass(eq=False, slots=True)
class _Run:
    """One call under limits, and the thread that it's in."""

    limits: Limits
    name: str
    started: float = field(default_factory=monotonic)
    thread: int = field(default_factory=get_ident)
    next_step: int = 0
    closing: bool = False  # written by the thread that is watched
    striking: bool = False  # written by the thread that watches
    injected: bool = False  # the same: whether an error was put into the thread, where it may still be to come

    @property
    def due(self) -> float:
        """When something is to be done next, by the monotonic clock; never once all is done."""
        waits = (*(seconds for seconds, _ in self.limits.steps), self.limits.overdue_seconds, math.inf)
        return self.started + waits[self.next_step]


class Deadlines:
    """
    Watches over calls in all threads of this process, by one thread of its own.

    In the main thread a limit interrupts waiting calls as well, such as a sleep or a read, by SIGALRM; where the
    process has another use for that signal, and in other threads, it strikes between two steps of Python code; a
    coroutine that waits is woken for it.
    What's inside C code for long isn't stopped by it.

    A thread that is watched may be struck at any step, and one that is struck between taking a lock and noting that it
    has it never gives it back. So it takes none: it says that it's over by a flag, and looks whether it's being struck.
    """

    def __init__(self) -> None:
        self._runs: set[_Run] = set()  # as many as there are calls under way
        self._words: SimpleQueue[None] = SimpleQueue()  # to the watching thread: look again
        self._sleeps_until = math.inf
        self._starting = Lock()
        self._watcher: Thread | None = None
        self._alarm: type[BaseException] | None = None  # what the main thread is to raise

    def keep(self, limits: Limits, name: str, act: Callable[[], R]) -> R:
        """
        Call `act` and return what it returns; `name` is what the log calls it.

        Raises:
            BaseException: what `limits` say, where a limit struck within `act`; or what `act` raised.

        """
        self._start()
        run = _Run(limits, name)
        try:
            self._runs.add(run)
            if run.due < self._sleeps_until:
                self._words.put(None)
            return act()
        finally:
            try:
                self._let_go(run)
            except tuple(error for _, error in limits.steps):  # on its first line; the next limit is seconds away
                self._let_go(run)

    def _start(self) -> None:
        """See to it that somebody watches, and that the main thread hears, unless somebody else uses SIGALRM."""
        if self._watcher is None or not self._watcher.is_alive():
            with self._starting:
                if self._watcher is None or not self._watcher.is_alive():
                    self._watcher = Thread(target=self._attend, name="deadlines of tasks", daemon=True)
                    self._watcher.start()
        if _ALARM is None or get_ident() != main_thread().ident:
            return
        if signal.getsignal(_ALARM) in {signal.SIG_DFL, signal.SIG_IGN}:
            signal.signal(_ALARM, self._on_alarm)

    def _let_go(self, run: _Run) -> None:
        """End the watch; a limit that strikes here, after the call, doesn't count any more."""
        while True:
            try:
                run.closing = True
                while run.striking:
                    sleep(0)
                self._take_back(run)
                self._runs.discard(run)
            except tuple(error for _, error in run.limits.steps):
                continue
            return

    def _take_back(self, run: _Run) -> None:
        """Have nothing raised in a thread that was to be raised and hasn't been."""
        if run.thread == main_thread().ident:
            self._alarm = None
        if run.injected:
            _take_out(run.thread)

    def _on_alarm(self, _signal: int, _frame: Any) -> None:  # a frame of the interpreter
        error, self._alarm = self._alarm, None
        if error is not None:
            raise error

    # ── in the watching thread ──

    def _attend(self) -> None:
        while True:
            self._sleeps_until = math.inf  # so that who comes meanwhile says a word
            now = monotonic()
            for run in list(self._runs):
                if run.due <= now:
                    self._do_next(run)
            self._sleeps_until = min((run.due for run in list(self._runs)), default=math.inf)
            with suppress(Empty):
                self._words.get(timeout=max(0.0, min(self._sleeps_until - monotonic(), _LONGEST_WAIT)))

    def _do_next(self, run: _Run) -> None:
        step, run.next_step = run.next_step, run.next_step + 1
        if step == len(run.limits.steps):
            log.warning("task overdue", task=run.name, seconds=round(monotonic() - run.started, 1), then="it goes on")
            return
        run.striking = True
        if not run.closing:
            self._interrupt(run, run.limits.steps[step][1])
        run.striking = False

    def _interrupt(self, run: _Run, error: type[BaseException]) -> None:
        if run.thread == main_thread().ident and _ALARM is not None and signal.getsignal(_ALARM) == self._on_alarm:
            self._alarm = error
            signal.pthread_kill(run.thread, _ALARM)
        else:
            run.injected = True
            _put_in(run.thread, error)
            wake(run.thread)


class _TakenOut(BaseException):
    """Takes the place of an error that is no longer to come."""


def _put_in(thread: int, error: type[BaseException]) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(error))


def _take_out(thread: int) -> None:
    """
    Have no error to come in this very thread.

    Another one takes its place, and comes here. None in its place would do as well, but CPython 3.11 then looks for an
    error at every step for as long as the process lives, and spins where its steps are traced, as by coverage.
    """
    try:
        _put_in(thread, _TakenOut)
        while True:
            sleep(0)
    except _TakenOut:
        return
