"""
The development guide that the project was begun with, line by line, with `orchestra` for `agent_orchestra`.

Each test here quotes the lines that it holds to. What the guide leaves open (an operation, a task, a logger) the test
gives.
"""

import ast
import inspect
from pathlib import Path
from typing import Any

import pytest

__all__ = ["ROOT", "arun", "quotes", "run"]

ROOT = Path(__file__).parents[2]


def quotes(*lines: str) -> Any:
    """Hand the guide's own words to a test, which gets them as `quoted`."""
    return pytest.mark.parametrize("quoted", [pytest.param(inspect.cleandoc("\n".join(lines)), id="")])


def run(snippet: str, **given: Any) -> dict[str, Any]:
    """Run a snippet as it stands, with the names that it takes for granted; return all names afterwards."""
    names = {"__name__": "guide", **given}
    exec(compile(snippet, "guide", "exec"), names)
    return names


async def arun(snippet: str, **given: Any) -> dict[str, Any]:
    """Run a snippet that awaits at its top."""
    names = {"__name__": "guide", **given}
    code = compile(snippet, "guide", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    made: Any = eval(code, names)
    if made is not None:
        await made
    return names
