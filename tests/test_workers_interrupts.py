"""Ctrl-C as an orderly way out."""

import signal
import subprocess
import sys

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


class TestInstall:
    def test_in_a_destructor(self) -> None:
        """An interrupt that comes while a destructor runs is neither printed nor lost; other errors there are told."""
        program = (
            "import os, signal\n"
            "from workers.interrupts import Interrupted, Interrupts\n"
            "class Left:\n"
            "    def __init__(self, act): self.act = act\n"
            "    def __del__(self): self.act()\n"
            "interrupts = Interrupts.install()\n"
            "Left(lambda: signal.raise_signal(signal.SIGTERM))\n"
            "Left(lambda: 1 / 0)\n"
            "try: interrupts.check()\n"
            "except Interrupted as interrupted: print(interrupted.exit_code)\n"
        )

        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)

        assert "143\n" == done.stdout
        assert "ZeroDivisionError" in done.stderr
        assert "Interrupted" not in done.stderr
