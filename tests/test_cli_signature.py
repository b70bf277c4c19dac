from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from enum import Enum
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import pytest
from pydantic import BaseModel, SecretStr
from typing_extensions import TypedDict

from orchestra.arguments import ArgumentSchema
from orchestra.cli_signature import signature_of


class Item(BaseModel):
    """A model."""

    name: str


class Row(TypedDict):
    """A typed dictionary."""

    id: int


@dataclass
class Point:
    """A dataclass."""

    x: float


class Size(Enum):
    """An enumeration."""

    SMALL = "s"
    LARGE = "l"


def _plain(text: str, limit: int = 10, *, ratio: float = 0.5, exact: bool = False) -> None: ...
def _no_hints(first, second=None) -> None: ...  # type: ignore[no-untyped-def]  # what is tested  # noqa: ANN001
def _parted(one: int, /, two: int, *rest: str, three: None = None, **others: bytes) -> None: ...
def _only_first(one: int, two: int = 2, /) -> None: ...
def _keyword_only(*, one: int) -> None: ...
def _collections(a: list[Item], b: dict[str, Row], c: set[int], d: tuple[int, str], e: list, f: dict) -> None: ...
def _named(item: Item, row: Row, point: Point, size: Size, secret: SecretStr) -> None: ...
def _choices(a: Literal["x", "y"], b: Literal[1], c: int | str | None = None) -> None: ...
def _moments(a: datetime, b: date, c: time, d: timedelta, e: UUID, f: Path) -> None: ...
def _anything(a: Any, b: list[Any], c: dict[str, Any], d: object = None) -> None: ...


class TestSignatureOf:
    @pytest.mark.parametrize(
        ("function", "signature"),
        [
            (_plain, "text: str, limit: int = …, *, ratio: float = …, exact: bool = …"),
            (_no_hints, "first, second=…"),
            (_parted, "one: int, /, two: int, *rest: str, three: None = …, **others: bytes"),
            (_only_first, "one: int, two: int = …, /"),
            (_keyword_only, "*, one: int"),
            (
                _collections,
                "a: list[Item], b: dict[str, Row], c: set[int], d: tuple[int, str], e: list, f: dict",
            ),
            (_named, "item: Item, row: Row, point: Point, size: 's' | 'l', secret: str"),
            (_choices, "a: 'x' | 'y', b: 1, c: int | str | None = …"),
            (_moments, "a: datetime, b: date, c: time, d: timedelta, e: UUID, f: Path"),
            (_anything, "a, b: list, c: dict, d=…"),
        ],
    )
    def test_reads_as_the_code_does(self, function: Callable[..., object], signature: str) -> None:
        """What the catalogue holds of a task is written as its code is; defaults alone aren't known."""
        assert signature == signature_of(ArgumentSchema.from_callable(function).to_catalogue())

    def test_without_arguments(self) -> None:
        """A task that takes nothing has an empty signature."""
        assert "" == signature_of({"parameters": []})

    @pytest.mark.parametrize("arguments", [None, {}, {"parameters": 5}, {"parameters": [{"name": "a"}]}])
    def test_what_cannot_be_read_takes_anything(self, arguments: dict[str, Any] | None) -> None:
        """A stock task publishes nothing of its arguments, and another version may write them otherwise."""
        assert "*args, **kwargs" == signature_of(arguments)
