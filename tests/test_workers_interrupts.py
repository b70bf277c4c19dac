"""Ctrl-C as an orderly way out."""

import signal

import pytest

from workers.interrupts import Interrupted, Interrupts


class TestReceive:
    def test_the_first_signal_raises(self) -> None:
        """The first one ends the program, with the exit code that shells know."""
        with pytest.raises(Interrupted) as raised:
            Interrupts().receive(signal.SIGINT)

        assert raised.value.exit_code == 130

    def test_further_ones_do_not_disturb(self) -> None:
        """On the way out, more signals change nothing; the first one counts."""
        interrupts = Interrupts()
        with pytest.raises(Interrupted):
            interrupts.receive(signal.SIGTERM)

        interrupts.receive(signal.SIGINT)

        with pytest.raises(Interrupted) as raised:
            interrupts.check()
        assert raised.value.exit_code == 143

    def test_shielded(self) -> None:
        """A signal during the regular way out is told after it."""
        interrupts = Interrupts()
        interrupts.shield()

        interrupts.receive(signal.SIGINT)

        with pytest.raises(Interrupted):
            interrupts.check()


class TestCheck:
    def test_nothing_received(self) -> None:
        """Without a signal it does nothing."""
        Interrupts().check()
