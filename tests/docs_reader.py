"""
A reader who follows a page from top to bottom: writes its files, types its commands, and looks at what comes back.

- A block with a title that is neither `console` nor `diff` is a file, written into the reader's folder.
- A `console` block is typed into a terminal: lines after `$ ` are commands, `^C` and `^D` are keys. A title names the
  terminal. Without one, it's the first that is free. A word with `…` in it is copied from what a terminal has shown.
- A `text` block without a title right behind it is what the last command shows: `…` stands for some text within a
  line, and alone on a line for some lines. A command that fails has to be followed by such a block.
- A `python` block goes to the Python that `$ python` began last, or else to one of the page's own. One with `>>>` is a
  doctest.
"""

import os
import re
import shlex
import signal
import subprocess
import sysconfig
from collections.abc import Container, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Self

from redis import Redis

from tests.docs_pages import KEYS, Snippet
from tests.integration.agents import AgentProcess, wait_until

__all__ = ["Reader"]

# Commands that keep their terminal until Ctrl-C, and among them those that start one agent.
LASTING = re.compile(r"(celery -A \w+ (worker|flower|beat)|(celery -A \w+ )?orchestra up)\b")
AGENT = re.compile(r"celery -A \w+ worker\b")

PATIENCE_SECONDS = 60.0
SHELL = '{command}\nstatus=$?\nenv -0 > "$READER_STATE" && exit $status'

# Runs each file that it is told of, in one namespace, and answers with a line that ends in 0 where all was well.
PYTHON = """
import doctest, pathlib, sys, traceback

names = {"__name__": "__main__"}
for path in map(str.strip, sys.stdin):
    text = pathlib.Path(path).read_text(encoding="utf-8")
    failures = 0
    if ">>>" in text:
        test = doctest.DocTestParser().get_doctest(text, names, path, path, 0)
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.FAIL_FAST)
        failures = runner.run(test, clear_globs=False).failed
        names.update(test.globs)
    else:
        try:
            exec(compile(text, path, "exec"), names)
        except Exception:
            failures = traceback.print_exc(file=sys.stdout) or 1
    print("\\x04", failures, flush=True)
"""


class Reader:
    """Follows one page in a folder."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._folder = folder
        self._environment = {**environment, "COLUMNS": "80", "PYTHONUNBUFFERED": "1"}
        self._terminals: dict[str, Terminal] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def follow(self, snippets: Sequence[Snippet], *, leaving_out: Container[str] = ()) -> None:
        """Go through the blocks of a page; fail at the first that doesn't do what the page says."""
        for snippet, behind in pairwise([*snippets, None]):
            assert snippet is not None
            if snippet.is_file:
                (self._folder / str(snippet.title)).write_text(snippet.text, encoding="utf-8")
            elif snippet.language == "python":
                self._python(snippet)
            elif snippet.language == "console":
                self._console(snippet, behind if behind and behind.is_output else None, leaving_out)

    def _python(self, snippet: Snippet) -> None:
        begun = [terminal for terminal in self._terminals.values() if terminal.python is not None]
        terminal = begun[-1] if begun else self._terminal("python")
        terminal.type_python(snippet)

    def _console(self, snippet: Snippet, output: Snippet | None, leaving_out: Container[str]) -> None:
        for number, typed in enumerate(snippet.typed, 1):
            if typed in KEYS:
                self._terminals[str(snippet.title)].leave()
            elif typed not in leaving_out:
                shown = "\n".join(terminal.shown for terminal in self._terminals.values())
                last = number == len(snippet.typed)
                terminal = self._terminal(snippet.title or self._free())
                terminal.enter(copied(typed, shown), output if last else None)

    def _free(self) -> str:
        free = [name for name, terminal in self._terminals.items() if not terminal.busy]
        return free[0] if free else f"terminal {len(self._terminals) + 1}"

    def _terminal(self, name: str) -> "Terminal":
        if name not in self._terminals:
            self._terminals[name] = Terminal(name, self._folder, self._environment)
            self._stack.callback(self._terminals[name].close)
        return self._terminals[name]


class Terminal:
    """A shell: commands run in it one after the other, and what they export stays."""

    def __init__(self, name: str, folder: Path, environment: dict[str, str]) -> None:
        self.shown = ""
        self.python: Python | None = None
        self._lasting: AgentProcess | None = None
        self._folder = folder
        self._files = folder / f".{name.replace(' ', '_')}"
        self._environment = dict(environment)

    @property
    def busy(self) -> bool:
        """Whether something runs in it."""
        return self.python is not None or self._lasting is not None

    def enter(self, command: str, output: Snippet | None) -> None:
        """Type a command; one that lasts is left running once it's ready."""
        assert not self.busy, f"the terminal is busy: {command}"
        if command == "python":
            self.python = Python(self._folder, self._environment)
        elif LASTING.match(command):
            self._start(command, output)
        else:
            self._run(command, output)

    def type_python(self, snippet: Snippet) -> None:
        """Type Python into the Python that runs here, or into a new one."""
        self.python = self.python or Python(self._folder, self._environment)
        file = self._folder / f".line_{snippet.line}.py"
        file.write_text(snippet.text, encoding="utf-8")
        self.python.run(file, snippet)

    def leave(self) -> None:
        """Type Ctrl-D, which ends Python, or Ctrl-C, which reaches every process in the foreground."""
        if self.python is not None:
            self.python.end()
            self.python = None
            return
        assert self._lasting is not None
        os.killpg(self._lasting.process.pid, signal.SIGINT)
        self._lasting.process.wait(PATIENCE_SECONDS)
        self._lasting = None

    def close(self) -> None:
        """End what still runs."""
        if self.python is not None:
            self.python.end()
        if self._lasting is not None:
            self._lasting.stop()

    def _run(self, command: str, output: Snippet | None) -> None:
        state = self._files.with_suffix(".env")
        done = subprocess.run(
            ["bash", "-c", SHELL.format(command=command)],
            cwd=self._folder,
            env={**self._environment, "READER_STATE": str(state)},
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            timeout=PATIENCE_SECONDS,
        )
        self.shown += done.stdout
        if output is None:
            assert done.returncode == 0, f"$ {command}\n{done.stdout}"
        else:
            assert expression(output.text).fullmatch(plain(done.stdout)), f"{output}: $ {command}\n{done.stdout}"
        self._take_over(dict(pair.split("=", 1) for pair in state.read_text(encoding="utf-8").split("\0") if pair))

    def _take_over(self, environment: dict[str, str]) -> None:
        """Keep what a command exported; a virtual environment that it made gets the packages that are here."""
        activated = environment.get("VIRTUAL_ENV")
        if activated != self._environment.get("VIRTUAL_ENV"):
            share_packages(Path(str(activated)))
        self._environment = environment

    def _start(self, command: str, output: Snippet | None) -> None:
        before = self._agents()
        with self._files.with_suffix(".log").open("wb") as out:
            process = subprocess.Popen(
                shlex.split(command),
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._lasting = AgentProcess(process, self._files.with_suffix(".log"))
        is_agent = AGENT.match(command) is not None
        lines = expression(output.text if output else "" if is_agent else "● ready…", lasts=True)

        def ready() -> bool:
            return lines.search(plain(self._said())) is not None and (not is_agent or self._agents() > before)

        try:
            wait_until(lambda: ready() or process.poll() is not None, seconds=PATIENCE_SECONDS)
        finally:
            self.shown += self._said()
            assert ready(), f"{output or ''}$ {command}\n{self._said()}"

    def _said(self) -> str:
        return self._files.with_suffix(".log").read_text(encoding="utf-8", errors="replace")

    def _agents(self) -> int:
        """Count the agents in the registries of all fleets."""
        url = self._environment.get("ORCHESTRA_BROKER_URL")
        if url is None:
            return 0
        with Redis.from_url(url) as redis:
            return sum(redis.zcard(key) for key in redis.scan_iter("orchestra:{*}:agents"))


class Python:
    """A Python into which blocks of a page are typed."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            ["python", "-c", PYTHON],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
        )

    def run(self, file: Path, snippet: Snippet) -> None:
        """Run a file; fail when it raises, or prints something else than the page shows."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(file, file=self._process.stdin, flush=True)
        printed: list[str] = []
        for line in self._process.stdout:
            if line.startswith("\x04"):
                assert line == "\x04 0\n", f"{snippet}\n{''.join(printed)}"
                return
            printed.append(line)
        raise AssertionError(f"{snippet}: Python ended\n{''.join(printed)}")

    def end(self) -> None:
        """End it."""
        self._process.communicate(timeout=PATIENCE_SECONDS)


def plain(text: str) -> str:
    """Return `text` without colours, and with one space where there are several."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()
    return "\n".join(re.sub(r"[ \t]+", " ", line).rstrip() for line in lines).strip()


def expression(text: str, *, lasts: bool = False) -> re.Pattern[str]:
    """Return what finds the output that a page shows; where a command `lasts`, other lines may come between."""
    lines = [r"(?s:.*?)" if line == "…" else f"^{wildcard(line).pattern}$" for line in plain(text).splitlines()]
    return re.compile((r"\n(?:.*\n)*?" if lasts else r"\n").join(lines), re.MULTILINE)


def wildcard(text: str) -> re.Pattern[str]:
    """Return what finds `text`, in which `…` stands for anything on its line."""
    return re.compile(".*?".join(map(re.escape, text.split("…"))))


def copied(command: str, shown: str) -> str:
    """Replace each word of `command` that has `…` in it by the latest word like it that was shown."""
    for word in [word for word in command.split() if "…" in word]:
        copies = [found for found in shown.split() if wildcard(word).fullmatch(found)]
        assert copies, f"no terminal has shown anything like {word}"
        command = command.replace(word, copies[-1])
    return command


def share_packages(environment: Path) -> None:
    """Let a virtual environment see the packages that are here, so that nothing has to be fetched."""
    (folder,) = environment.glob("lib/python*/site-packages")
    (folder / "here.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")
