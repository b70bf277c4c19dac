"""What the pages tell of the code's names, defaults and floors is what the code says."""

import re
import tomllib
from importlib import import_module
from itertools import pairwise
from typing import Any

import pytest
from pydantic import Secret

import _orchestra_pytest as plugin
import orchestra
from orchestra import exceptions, testing_utils
from orchestra.broker import QueueFullError, SubmissionError
from orchestra.config import PREFIX, OrchestraSettings
from orchestra.invariants import INVARIANTS
from orchestra.task import DECLARABLE
from tests.docs_pages import PAGES, ROOT, snippets_of

API = PAGES["docs/api.md"].read_text(encoding="utf-8")
ARCHITECTURE = PAGES["docs/architecture.md"].read_text(encoding="utf-8")
NAMED = re.findall(r"^::: (\S+)$", API, re.MULTILINE)


def rows(page: str, header: str) -> list[list[str]]:
    """Return the cells of the table that begins with `header`."""
    _, _, below = page.partition(f"| {header} |")
    table = re.match(r".*\n\|[-|]+\n((?:\|.*\n)*)", below)
    assert table is not None
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table[1].splitlines()]


def found(path: str) -> Any:  # whatever it is
    """Return what a dotted path names."""
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


class TestNames:
    @pytest.mark.parametrize("name", orchestra.__all__)
    def test_the_facade_is_told(self, name: str) -> None:
        """Every name of the package stands on the page."""
        assert getattr(orchestra, name) in [found(path) for path in NAMED]

    def test_what_tests_need_is_told(self) -> None:
        """Every name of the testing utilities stands on the page."""
        assert set(testing_utils.__all__) <= {path.rpartition(".")[2] for path in NAMED}

    @pytest.mark.parametrize("path", NAMED)
    def test_what_is_told_is_public(self, path: str) -> None:
        """A name on the page is in its module's `__all__`, and has a docstring."""
        module, _, name = path.rpartition(".")

        assert name in import_module(module).__all__
        assert found(path).__doc__

    def test_every_error_is_told(self) -> None:
        """The tree of errors has them all, each below its base."""
        (tree,) = (snippet.text for snippet in snippets_of("docs/api.md") if "└── " in snippet.text)
        told: dict[str, str] = {}
        path = ["Exception"]
        for indent, name in re.findall(r"^([│├└─ ]*)(\w+)", tree, re.MULTILINE):
            path = [*path[: len(indent) // 4 + 1], name]
            told[name] = path[-2]
        classes = [getattr(exceptions, name) for name in exceptions.__all__]
        errors = [one for one in classes if isinstance(one, type) and issubclass(one, Exception)]

        assert {
            error.__name__: error.__bases__[0].__name__ for error in [*errors, SubmissionError, QueueFullError]
        } == told


class TestTables:
    def test_task_options(self) -> None:
        """The options of a task are those that the code knows, in its order."""
        assert list(DECLARABLE) == [cells[0].strip("`") for cells in rows(API, "option of a task")]

    def test_fixtures(self) -> None:
        """The fixtures of the plugin are those that pytest finds."""
        assert sorted(plugin.__all__) == sorted(cells[0].strip("`") for cells in rows(API, "fixture"))

    def test_settings(self) -> None:
        """Each setting stands there with its default and its description."""
        expected = [
            [f"`{PREFIX}{name.upper()}`", shown(field.default), field.description]
            for name, field in OrchestraSettings.model_fields.items()
        ]

        assert expected == rows(API, "variable")

    def test_settings_of_celery(self) -> None:
        """What the app sets in Celery's configuration is told."""
        expected = [[f"`{name}`", f"`{value!r}`".replace("'", '"')] for name, value in INVARIANTS.items()]

        assert expected == rows(API, "setting")


class TestFloors:
    def test_every_module_stands_on_its_floor(self) -> None:
        """The list of floors names the package's modules, in the order that import-linter holds."""
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
        (contract,) = (one for one in project["tool"]["importlinter"]["contracts"] if one["type"] == "layers")
        heights = {
            module: height
            for height, layer in enumerate(contract["layers"])
            for module in layer.split(" | ")
            if not module.startswith("(")
        }
        told = [re.findall(r"`(\w+)`", modules) for _, modules in rows(ARCHITECTURE, "floor")]

        assert sorted(heights) == sorted(module for floor in told for module in floor)
        for above, below in pairwise(told):
            assert max(heights[module] for module in above) < min(heights[module] for module in below)

    def test_the_drawing_names_modules(self) -> None:
        """A file that the drawing names is there."""
        drawing = (ROOT / "docs/walk.svg").read_text(encoding="utf-8")
        named = re.findall(r"\b\w+\.py\b", drawing)

        assert named
        assert [] == [name for name in named if not (ROOT / "orchestra" / name).is_file()]


def shown(default: Any) -> str:  # of any setting
    """Return a default as the page writes it."""
    if default is None:
        return "—"
    value = default.get_secret_value() if isinstance(default, Secret) else default
    return f"`{int(value) if isinstance(value, float) and value.is_integer() else value}`"
