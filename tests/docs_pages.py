"""The pages of the documentation, and the fenced blocks that they show."""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from textwrap import dedent

__all__ = ["FENCE_LINE", "KEYS", "PAGES", "ROOT", "SNIPPETS", "Snippet", "snippets_of"]

ROOT = Path(__file__).parents[1]
PAGES = {path.relative_to(ROOT).as_posix(): path for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))}

FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)(?: title=\"(?P<title>.+?)\")?\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
KEYS = {"^C", "^D"}

FENCE_LINE = re.compile(r"^\s*```", re.MULTILINE)


@dataclass(frozen=True)
class Snippet:
    """One fenced block of a page; a title names the file that it is, or the terminal that it stands in."""

    page: str
    line: int
    language: str
    title: str | None
    text: str

    def __str__(self) -> str:
        """Return where it stands."""
        return f"{self.page}:{self.line}"

    @property
    def is_file(self) -> bool:
        """Whether the reader writes it down as a file."""
        return self.title is not None and self.language not in {"console", "diff"}

    @property
    def is_output(self) -> bool:
        """Whether it is what a command shows, if one stands right before it."""
        return self.language == "text" and self.title is None

    @cached_property
    def typed(self) -> list[str]:
        """What a reader types into a terminal: commands and keys."""
        lines = self.text.splitlines() if self.language == "console" else []
        return [line.removeprefix("$ ") for line in lines if line.startswith("$ ") or line in KEYS]

    @property
    def commands(self) -> list[str]:
        """What a reader types, without the keys."""
        return [line for line in self.typed if line not in KEYS]


def snippets_of(page: str) -> list[Snippet]:
    """Return a page's fenced blocks, in order."""
    text = PAGES[page].read_text(encoding="utf-8")
    return [
        Snippet(page, text.count("\n", 0, found.start()) + 1, found["language"], found["title"], dedent(found["text"]))
        for found in FENCE.finditer(text)
    ]


SNIPPETS = [snippet for page in sorted(PAGES) for snippet in snippets_of(page)]
