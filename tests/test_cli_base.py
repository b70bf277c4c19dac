import logging
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from orchestra.cli_base import Failure, OrchestraCommand, OrchestraGroup, given_app, printable
from orchestra.exceptions import ConfigurationError, ValidationError
from tests.command_line import clean_environment
from tests.logs import logging_left_alone

HIDDEN = "redis://:hidden@redis.example:6379/0"


@pytest.fixture(autouse=True)
def nothing_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no setting come from outside."""
    clean_environment(monkeypatch)
    monkeypatch.chdir(tmp_path)


def run(error: BaseException | None = None, *words: str) -> Result:
    """Run a command of a group; it raises `error`, or prints the app that it was given."""

    @click.group(cls=OrchestraGroup)
    def group() -> None:
        pass

    @group.command(cls=OrchestraCommand)
    @click.argument("names", nargs=-1)
    @click.pass_context
    def act(ctx: click.Context, *, names: tuple[str, ...]) -> None:
        if error is not None:
            raise error
        click.echo(given_app(ctx))

    group.add_command(click.Command("zebra"))
    group.add_command(click.Command("ant"))
    with logging_left_alone():
        return CliRunner().invoke(group, words or ("act",), prog_name="tool")


class TestErrors:
    @pytest.mark.parametrize(
        ("error", "line"),
        [
            (ConfigurationError(f"{HIDDEN} is wrong.\nMore of it."), "redis://:***@redis.example:6379/0 is wrong."),
            (Failure("no such thing"), "no such thing"),
            (ValidationError("a\x1b[2Jb"), "a\\x1b[2Jb"),
            (KeyError("a\nb"), "KeyError: 'a\\nb' (unexpected; --debug shows where it comes from)"),
        ],
    )
    def test_are_one_line(self, error: Exception, line: str) -> None:
        """Whatever happens is one line on stderr, without secrets and control characters, and exit code 2."""
        result = run(error)

        assert (2, "") == (result.exit_code, result.stdout)
        assert f"error: {line}\n" == result.stderr

    @pytest.mark.parametrize("words", [("--debug", "act"), ("act", "--debug")])
    def test_debug_shows_the_trace(self, words: tuple[str, ...]) -> None:
        """With --debug, before or behind the command's name, the trace is shown too; its secrets aren't."""
        result = run(KeyError(HIDDEN), *words)

        assert result.stderr.startswith("Traceback")
        assert "test_cli_base.py" in result.stderr
        assert "hidden" not in result.stderr
        assert result.stderr.splitlines()[-1].startswith("error: KeyError")

    def test_interrupt(self) -> None:
        """Ctrl-C ends a command as shells expect it, without a trace."""
        result = run(KeyboardInterrupt())

        assert (130, "\n") == (result.exit_code, result.stderr)

    @pytest.mark.parametrize(
        ("words", "line"),
        [
            (("act", "--no"), "error: No such option"),
            (("--no",), "error: No such option"),
            (("no",), "error: No such command 'no'."),
        ],
    )
    def test_wrong_use(self, words: tuple[str, ...], line: str) -> None:
        """A wrong call is one line too, and names the help that tells what is right."""
        result = run(None, *words)

        assert 2 == result.exit_code
        assert result.stderr.startswith(line)
        assert result.stderr.endswith(f"(see tool{' act' if words[0] == 'act' else ''} --help)\n")
        assert 1 == result.stderr.count("\n")

    def test_wrong_setting_within_celery(self) -> None:
        """An error of ours that has Celery's form is told as ours is."""
        told = click.UsageError("shown with its usage")
        told.__cause__ = ConfigurationError("the setting is wrong")

        assert "error: the setting is wrong\n" == run(told).stderr

    def test_wrong_log_level(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A setting that isn't right stops the command before it does anything."""
        monkeypatch.setenv("ORCHESTRA_LOG_LEVEL", "loud")

        result = run()

        assert 2 == result.exit_code
        assert result.stderr.startswith("error: ORCHESTRA_LOG_LEVEL is 'LOUD'; it must be one of: DEBUG")

    def test_closed_pipe_is_none(self) -> None:
        """Who reads no further isn't told anything."""
        assert "" == run(BrokenPipeError(32, "Broken pipe")).stderr


class TestOptions:
    @pytest.mark.parametrize(
        ("words", "app"),
        [
            (("act",), ""),
            (("-A", "one", "act"), "one"),
            (("act", "--app", "two"), "two"),
            (("-A", "one", "act", "--app", "two"), "two"),
        ],
    )
    def test_app_may_stand_before_or_behind(self, words: tuple[str, ...], app: str) -> None:
        """The command's own word wins over the group's."""
        assert f"{app}\n" == run(None, *words).stdout

    def test_commands_stand_in_the_order_of_their_adding(self) -> None:
        """The order tells a newcomer where to begin."""
        listed = run(None, "--help").stdout.partition("Commands:")[2].split()

        assert ["act", "zebra", "ant"] == listed


LOGGING = """
import logging, click
from orchestra.cli_base import OrchestraCommand
def act():
    for level in (10, 20, 30):
        logging.getLogger("shop").log(level, "level %s", level)
OrchestraCommand("act", callback=act).main()
"""


@pytest.mark.slow
class TestLogging:
    @pytest.mark.parametrize(
        ("words", "level", "least"),
        [
            ((), "", logging.WARNING),
            (("-v",), "", logging.INFO),
            (("-vv",), "ERROR", logging.DEBUG),
            ((), "info", logging.INFO),
        ],
    )
    def test_level(self, words: tuple[str, ...], level: str, least: int) -> None:
        """Warnings are logged to stderr; -v and the environment ask for more, and the command line wins."""
        done = subprocess.run(
            [sys.executable, "-c", LOGGING, *words],
            env={"ORCHESTRA_LOG_LEVEL": level},
            capture_output=True,
            text=True,
            check=True,
        )

        assert "" == done.stdout
        assert [number for number in (10, 20, 30) if number >= least] == [
            number for number in (10, 20, 30) if f"level {number}" in done.stderr
        ]


class TestPrintable:
    @pytest.mark.parametrize(("text", "shown"), [("ä €", "ä €"), ("a\tb\x9b", "a\\tb\\x9b"), ("\udcff", "\\udcff")])
    def test_writes_out_what_cannot_be_seen(self, text: str, shown: str) -> None:
        """What would move the cursor or change colours becomes text."""
        assert shown == printable(text)
