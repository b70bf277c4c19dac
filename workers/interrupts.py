"""Ctrl-C, and its like, as an orderly way out: once it is under way, further signals don't disturb it."""

import signal
import sys
from types import FrameType
from typing import Final, Self

__all__ = ["Interrupted", "Interrupts"]

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """The program was told to end by a signal; like KeyboardInterrupt, it is no error."""

    @property
    def exit_code(self) -> int:
        """The exit code by which a shell tells this signal: 130 for Ctrl-C."""
        return 128 + int(self.args[0])


class Interrupts:
    """
    The signals that end the program; the first of them raises `Interrupted` in the main thread.

    At the end comes `retire`: a late signal must not tear the interpreter's last moments apart.
    """

    def __init__(self) -> None:
        self._signal: int | None = None
        self._shielded = False

    @classmethod
    def install(cls) -> Self:
        """Handle the signals, except those that the program was started to ignore."""
        interrupts = cls()
        sys.unraisablehook = _tell_but_interrupts
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, interrupts.receive)
        return interrupts

    @staticmethod
    def retire() -> None:
        """Ignore the signals from now on: nothing is left to be ended but the process itself."""
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def receive(self, number: int, _frame: FrameType | None = None) -> None:
        """Note a signal, and raise `Interrupted` unless the way out has begun."""
        self._signal = self._signal or number
        if not self._shielded:
            self._shielded = True
            raise Interrupted(self._signal)

    def shield(self) -> None:
        """Let the way out begin: from now on signals are noted only."""
        self._shielded = True

    def check(self) -> None:
        """Raise `Interrupted` if a signal was received: an exception in a destructor, say, goes unheard."""
        if self._signal is not None:
            raise Interrupted(self._signal)


def _tell_but_interrupts(unraisable: "sys.UnraisableHookArgs") -> None:
    """Pass over an interrupt that came while a destructor ran: Python drops it, and `check` brings it back."""
    if not isinstance(unraisable.exc_value, Interrupted):
        sys.__unraisablehook__(unraisable)
