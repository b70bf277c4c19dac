"""The reader of the pages fails where it should."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.docs_pages import Snippet
from tests.docs_reader import Reader

Follow = Callable[..., None]


def console(*typed: str, title: str | None = None) -> Snippet:
    """Return a block of commands and keys."""
    return Snippet("page", 1, "console", title, "".join(f"{line}\n" for line in typed))


def text(*lines: str) -> Snippet:
    """Return a block of output."""
    return Snippet("page", 2, "text", None, "".join(f"{line}\n" for line in lines))


def python(*lines: str, title: str | None = None) -> Snippet:
    """Return a block of Python."""
    return Snippet("page", 3, "python", title, "".join(f"{line}\n" for line in lines))


@pytest.fixture
def follow(tmp_path: Path) -> Follow:
    """Give what follows some blocks in an empty folder."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

    def follow(*snippets: Snippet) -> None:
        with Reader(tmp_path, {"PATH": path}) as reader:
            reader.follow(snippets)

    return follow


class TestOutput:
    @pytest.mark.parametrize(
        "shown",
        [
            ["one two", "three", "four"],
            ["one    two", "three", "four"],
            ["o…", "th…ee", "four"],
            ["one two", "…", "four"],
            ["…"],
        ],
    )
    def test_may_leave_something_open(self, follow: Follow, shown: list[str]) -> None:
        """Spaces count as one, `…` is some text, and alone on a line some lines."""
        follow(console("$ printf 'one  two\\nthree\\nfour\\n'"), text(*shown))

    @pytest.mark.parametrize("shown", [["one"], ["one two", "…", "five"], ["one …", "four"], ["o…e", "three", "four"]])
    def test_has_to_be_what_comes(self, follow: Follow, shown: list[str]) -> None:
        """Another output than the page's is an error."""
        with pytest.raises(AssertionError, match="printf"):
            follow(console("$ printf 'one  two\\nthree\\nfour\\n'"), text(*shown))

    def test_a_failure_has_to_be_shown(self, follow: Follow) -> None:
        """A command may fail if the page shows how, and not in passing."""
        follow(console("$ echo no && false"), text("no"))

        with pytest.raises(AssertionError, match="echo no"):
            follow(console("$ echo no && false"))
        with pytest.raises(AssertionError, match="echo no"):
            follow(console("$ echo no && false", "$ true"), text(""))


class TestTerminals:
    def test_keep_what_is_exported(self, follow: Follow) -> None:
        """What one command exports holds for the next one in this terminal, and in no other."""
        follow(
            console("$ export WORD=hello", title="a"),
            console("$ echo $WORD", title="a"),
            text("hello"),
            console("$ echo $WORD.", title="b"),
            text("."),
        )

    def test_are_copied_from(self, follow: Follow) -> None:
        """A word that the page can't know is the latest one of its form that any terminal has shown."""
        follow(
            console("$ echo key=17", "$ echo key=18, key=19", title="a"),
            console("$ echo key=…", title="b"),
            text("key=19"),
        )

        with pytest.raises(AssertionError, match="key="):
            follow(console("$ echo key=…"))

    def test_are_busy_with_python(self, follow: Follow) -> None:
        """Where Python runs, the next command comes after Ctrl-D."""
        follow(console("$ python", title="a"), python(">>> 1 + 1", "2"), console("^D", "$ true", title="a"))

        with pytest.raises(AssertionError, match="busy"):
            follow(console("$ python", "$ true", title="a"))


class TestPython:
    def test_is_one_session(self, follow: Follow) -> None:
        """Later blocks know the names of earlier ones, and import the page's files."""
        follow(
            python("word = 'hello'", title="words.py"),
            python("from words import word"),
            python(">>> word", "'hello'"),
        )

    @pytest.mark.parametrize("lines", [[">>> 1 + 1", "3"], ["assert False"], ["import sys; sys.exit(0)"]])
    def test_has_to_do_what_the_page_says(self, follow: Follow, lines: list[str]) -> None:
        """A wrong result, an error and an early end are errors."""
        with pytest.raises(AssertionError, match="page:3"):
            follow(python(*lines))

    def test_begins_anew(self, follow: Follow) -> None:
        """`$ python` begins a session that knows nothing of the one before."""
        with pytest.raises(AssertionError, match="NameError"):
            follow(python("word = 1"), console("$ python", title="a"), python("word"))
