"""Type hints: which ones JSON already fulfils, and how they're read."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from enum import Enum
from typing import Annotated, Any, Literal, Optional, TypedDict, Union

import pytest
from pydantic import AfterValidator, BaseModel, Field

from orchestra.hints import checkable, is_plain, read_hints


class Model(BaseModel):
    """A model."""


class Letter(Enum):
    """An enum."""

    A = "a"


class Tree(TypedDict, total=False):
    """A dictionary that holds its own kind."""

    name: str
    children: "list[Tree]"


class Dated(TypedDict):
    """A dictionary with something that JSON doesn't have."""

    at: datetime


class TestIsPlain:
    @pytest.mark.parametrize(
        "hint",
        [
            str,
            None,
            Any,
            dict,
            list[int],
            Sequence[str],
            dict[str, list[float]],
            Mapping[str, Any],
            int | None,
            Union[str, list[str]],  # noqa: UP007
            Optional[bool],  # noqa: UP045
            Literal["a", 1],
            Annotated[int, Field(ge=1)],
            Tree,
            list[Tree],
        ],
        ids=str,
    )
    def test_what_json_has(self, hint: object) -> None:
        """JSON's own kinds are plain, with constraints and inside each other too."""
        assert is_plain(hint)

    @pytest.mark.parametrize(
        "hint",
        [
            datetime,
            bytes,
            Model,
            Letter,
            Literal[Letter.A],
            tuple[int, str],
            set[int],
            dict[int, str],
            list[Model],
            Model | None,
            Dated,
            Annotated[int, AfterValidator(lambda value: value + 1)],
            Annotated[datetime, "when"],
        ],
        ids=str,
    )
    def test_what_json_does_not_have(self, hint: object) -> None:
        """Whatever has to be made of JSON isn't plain, wherever it stands."""
        assert not is_plain(hint)


class TestCheckable:
    def test_iterables_become_lists(self) -> None:
        """An iterable is a list in JSON, inside other hints too."""
        assert list[int] == checkable(Iterable[int])
        assert dict[str, list[int]] == checkable(dict[str, Iterable[int]])
        assert (list[int] | None) == checkable(Iterable[int] | None)
        assert list is checkable(Iterable)


class TestReadHints:
    def test_one_that_fails_does_not_take_the_others_with_it(self) -> None:
        """A hint that can't be resolved is Any; the others stay."""

        def task(a: "Nowhere", b: "int") -> None: ...  # type: ignore[name-defined]  # noqa: F821

        hints = read_hints(task)

        assert (Any, int) == (hints["a"], hints["b"])
