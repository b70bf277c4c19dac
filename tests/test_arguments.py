"""Arguments of tasks: checked against type hints, brought to life, and described for the catalogue."""

from __future__ import annotations

import json
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from functools import partial, wraps
from typing import Annotated, Any, Literal, Optional
from uuid import UUID, uuid4

import pytest
import typing_extensions
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, Secret, SecretStr, computed_field

from orchestra.arguments import ArgumentSchema, CatalogueSchema
from orchestra.exceptions import FieldError, ValidationError


class Color(Enum):
    """A closed set."""

    RED = "red"
    BLUE = "blue"


class Item(BaseModel):
    """A nested model."""

    count: int = Field(ge=1)


class Order(BaseModel):
    """A model with a nested one, an alias and a computed field."""

    model_config = ConfigDict(extra="forbid")

    name: str
    items: list[Item] = []
    kind: str = Field(default="plain", alias="type")

    @computed_field
    def total(self) -> int:
        """Count everything."""
        return sum(item.count for item in self.items)


class Login(BaseModel):
    """A model that holds a secret."""

    user: str
    secret: SecretStr


class Key(Secret[str]):
    """A secret type of a project's own."""


@dataclass
class Point:
    """A dataclass."""

    x: int
    y: float = 0.0


class Row(typing.TypedDict, total=False):
    """A dictionary with known keys, of the standard library."""

    a: typing_extensions.Required[int]
    b: str


class Foreign:
    """A class that pydantic doesn't know."""


def keywords(text: str, limit: int = 10) -> list[str]:
    """Stand for an ordinary task."""
    return [text] * limit


def schemas(function: Callable[..., Any]) -> list[ArgumentSchema | CatalogueSchema]:
    """Return the schema of a callable, and what a sender without its code makes of the catalogue's entry."""
    schema = ArgumentSchema.from_callable(function)
    return [schema, ArgumentSchema.from_catalogue(json.loads(json.dumps(schema.to_catalogue())))]


def errors_of(function: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, str]:
    """Return the fields that both schemas refuse, with what the task's own says of each."""
    own, published = (refused(schema, *args, **kwargs) for schema in schemas(function))
    assert {root_of(field) for field in own} == {root_of(field) for field in published}
    return own


def root_of(field: str) -> str:
    """Return the parameter that a field belongs to."""
    return field.split(".", maxsplit=1)[0].split("[", maxsplit=1)[0]


def refused(schema: ArgumentSchema | CatalogueSchema, *args: Any, **kwargs: Any) -> dict[str, str]:
    """Return the fields that a schema refuses."""
    try:
        schema.check("task", args, kwargs)
    except ValidationError as error:
        return {problem.field: problem.message for problem in error.errors}
    return {}


class TestCheck:
    def test_the_error_reads_as_promised(self) -> None:
        """The error names task, field, problem and value, and carries them as evidence."""
        with pytest.raises(ValidationError) as caught:
            ArgumentSchema.from_callable(keywords).check("workers.text.keywords", (42,), {})

        expected = "workers.text.keywords was not submitted: text: Input should be a valid string (got 42)"
        assert expected == str(caught.value)
        assert (FieldError("text", "Input should be a valid string", "42"),) == caught.value.errors

    def test_the_caller_says_what_became_of_the_call(self) -> None:
        """Where a call is refused elsewhere than at its submission, the error says so."""
        with pytest.raises(ValidationError, match=r"^task can't run: text"):
            ArgumentSchema.from_callable(keywords).check("task", (42,), {}, verdict="can't run")

    @pytest.mark.parametrize(
        ("args", "kwargs"),
        [(("a",), {}), (("a", 5), {}), (("a",), {"limit": 5}), ((), {"limit": 5, "text": "a"}), ((), {"text": ""})],
    )
    def test_right_calls_pass(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Arguments by position and by name pass, and defaults may be left out."""
        for schema in schemas(keywords):
            schema.check("task", args, kwargs)

    def test_every_wrong_field_is_told(self) -> None:
        """Wrong, superfluous, doubled and missing arguments are told in one error."""

        def task(first: int, second: str, *, third: float) -> None: ...

        errors = errors_of(task, "1", 2, 3, first=4, fourth=5)

        assert {"first", "second", "third", "args[2]", "fourth"} == errors.keys()
        assert ("Missing required argument", "Unexpected positional argument", "Unexpected keyword argument") == (
            errors["third"],
            errors["args[2]"],
            errors["fourth"],
        )

    def test_positional_only_and_keyword_only(self) -> None:
        """Each kind of parameter takes its argument in its own way alone."""

        def task(first: int, /, second: int, *, third: int) -> None: ...

        assert {} == errors_of(task, 1, 2, third=3)
        assert {} == errors_of(task, 1, second=2, third=3)
        assert {"first"} == {*errors_of(task, first=1, second=2, third=3)}
        assert {"args[2]", "third"} == {*errors_of(task, 1, 2, 3)}

    def test_the_rest_is_checked_one_by_one(self) -> None:
        """`*args` and `**kwargs` take any number, each checked against the hint; a name may be used twice there."""

        def task(first: str, /, *rest: int, **more: bool) -> None: ...

        assert {} == errors_of(task, "a", 1, 2, x=True, first=False)
        assert {"rest[1]", "x"} == {*errors_of(task, "a", 1, "2", x=1)}

    @pytest.mark.parametrize(
        ("hint", "right", "wrong"),
        [
            (int, [1, True - 1], ["5", 1.0, 1.5, True, None, [1]]),
            (float, [1, 1.5], ["1.5", True, None, Decimal("1.5")]),
            (str, ["a", ""], [1, None, b"a" * 3, uuid4(), datetime.now(UTC)]),
            (bool, [True], [1, "true", None]),
            (Optional[int], [1, None], ["1"]),  # noqa: UP045
            (int | list[str], [1, ["a"]], ["1", [1]]),
            (Literal["a", "b"], ["a"], ["c", 1]),
            (Annotated[int, Field(ge=3, lt=9)], [3, 8], [2, 9, "5"]),
            (Annotated[str, Field(min_length=2, max_length=3, pattern="^a")], ["ab"], ["a", "abcd", "ba"]),
            (Color, ["red", Color.RED], ["green", 1]),
            (list[int], [[], [1], (1, 2), {1}], ["1", [1, "2"], 3]),
            (tuple[int, str], [[1, "a"], (1, "a")], [[1], [1, 2], [1, "a", 3]]),
            (tuple[int, ...], [[], (1, 2)], [["a"]]),
            (set[int], [[1, 1], {1}], [["a"], 1]),
            (dict[str, int], [{"a": 1}], [{"a": "1"}, [1]]),
            (datetime, [datetime.now(UTC), "2026-03-01T12:00:00Z"], ["yesterday", 5]),
            (UUID, [uuid4(), str(uuid4())], ["1", 5]),
            (bytes, [b"\xff", b"a"], [1, None]),
            (
                Order,
                [{"name": "a", "items": [{"count": 1}]}, Order(name="a", type="b")],
                [{"items": []}, "a", {"name": 1}],
            ),
            (Point, [{"x": 1}, Point(1, 2.5)], [{"y": 1}, {"x": "1"}]),
            (Row, [{"a": 1}, {"a": 1, "b": "x"}], [{"b": "x"}, {"a": "1"}, 3]),
            (list[Item], [[{"count": 1}], [Item(count=2)]], [[{"count": 0}], [1]]),
            (Any, [1, None, object()], []),
            (Foreign, [1, Foreign()], []),
        ],
        ids=str,
    )
    def test_a_value_is_right_when_its_json_form_is(self, hint: Any, right: list[Any], wrong: list[Any]) -> None:
        """Strict JSON decides: a list is a fine tuple, 1 a fine float, "5" no int; the catalogue decides the same."""

        def task(value): ...  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202

        task.__annotations__ = {"value": hint}

        assert [] == [value for value in right if errors_of(task, value)]
        assert [] == [value for value in wrong if not errors_of(task, value)]

    def test_nested_fields_are_named(self) -> None:
        """An error deep in a value says where: through lists, models and unions."""

        def task(order: Order | None, rows: list[Row], either: dict[str, int] | int) -> None: ...

        order = {"name": 1, "items": [{"count": 1}, {"count": 0}], "more": 1}
        errors = errors_of(task, order, [{"a": 1}, {"b": "x"}], {"x": "y"})

        assert {"order.name", "order.items[1].count", "order.more", "rows[1].a"} <= errors.keys()
        assert "either.x" in errors

    @given(st.lists(st.integers() | st.text(max_size=3) | st.floats(allow_nan=False) | st.none(), max_size=6))
    def test_both_sides_agree_on_lists(self, value: list[Any]) -> None:
        """A sender with the task's code and one without refuse the same items."""

        def task(value: list[int | None]) -> None: ...

        expected = {f"value[{place}]" for place, item in enumerate(value) if not isinstance(item, int | None)}
        assert expected == errors_of(task, value).keys()

    def test_hints_that_cannot_be_resolved_accept_anything(self) -> None:
        """A hint that names nothing doesn't take its neighbours with it."""

        def task(odd: Sequence[Nowhere], even: int) -> None: ...  # type: ignore[name-defined]  # noqa: F821

        assert {"even"} == {*errors_of(task, object(), "1")}

    def test_a_default_of_none_allows_none(self) -> None:
        """`x: int = None` takes None, as its author means."""

        def task(number: int = None, items: list[int] = None) -> None: ...  # type: ignore[assignment]  # noqa: RUF013

        assert {} == errors_of(task, None, None)
        assert {"number", "items[0]"} == {*errors_of(task, "1", ["1"])}

    def test_any_iterable_is_a_list_in_json(self) -> None:
        """`Iterable[str]` is checked to its last item, and a text is no list of texts."""

        def task(words: Iterable[str], table: Mapping[str, int]) -> None: ...

        assert {} == errors_of(task, ["a"], {"a": 1})
        assert {} == errors_of(task, {"a"}, {})
        assert {"words[1]", "table.a"} == {*errors_of(task, ["a", 1], {"a": "1"})}
        assert {"words"} == {*errors_of(task, "abc", {})}

    @pytest.mark.parametrize(
        ("function", "args"), [(len, (1,)), (print, (1, 2)), (partial(keywords, "a"), (1,)), (dict, ())], ids=repr
    )
    def test_every_callable_has_a_schema(self, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        """Callables without hints, or without a readable signature, accept what they can take."""
        for schema in schemas(function):
            schema.check("task", args, {})

    def test_decorated_functions_and_objects(self) -> None:
        """A wrapped function and an object with `__call__` are read as what they stand for."""

        @wraps(keywords)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            return keywords(*args, **kwargs)

        class Task:
            def __call__(self, text: str) -> None: ...

        assert {"text"} == {*errors_of(wrapped, 1)}
        assert {"text"} == {*errors_of(Task(), 1)}

    def test_a_bound_task_does_not_count_itself(self) -> None:
        """With `bound`, the first parameter is the task, which no caller gives."""

        def task(self: Any, text: str) -> None: ...

        schema = ArgumentSchema.from_callable(task, bound=True)

        schema.check("task", ("a",), {})
        assert ["text"] == [parameter["name"] for parameter in schema.to_catalogue()["parameters"]]

    def test_values_without_a_json_form(self) -> None:
        """Bytes that aren't text pass inside a list; cycles and foreign objects don't."""

        def task(value: list[bytes] | None = None, names: list[str] | None = None) -> None: ...

        loop: list[Any] = []
        loop.append(loop)

        assert {} == errors_of(task, [b"\xff"])
        assert {"value"} == {*errors_of(task, loop)}
        assert {"names[0]"} == {*errors_of(task, names=[Foreign()])}

    def test_many_errors_are_counted(self) -> None:
        """The message tells the first twenty fields, the evidence all."""

        def task(numbers: list[int]) -> None: ...

        with pytest.raises(ValidationError, match=r"and 80 more$") as caught:
            ArgumentSchema.from_callable(task).check("task", (["a"] * 100,), {})

        assert 100 == len(caught.value.errors)

    @pytest.mark.parametrize(
        "value", ["x" * 10_000, ["x" * 100] * 100, {"a" * 100: "b" * 100}, Foreign(), 10**3000, b"x" * 1000], ids=type
    )
    def test_the_given_value_is_shown_in_short(self, value: Any) -> None:
        """However large a value is, its error shows at most 60 characters of it."""

        def task(number: float) -> None: ...

        for schema in schemas(task):
            with pytest.raises(ValidationError) as caught:
                schema.check("task", ("" if value is None else [value],), {})
            assert all(len(problem.given) <= 60 for problem in caught.value.errors)


class TestSecrets:
    @pytest.mark.parametrize(
        "value",
        [
            {"secret": ["hunter2"]},
            {"login": {"user": 1, "secret": "hunter2"}},
            {"login": ["hunter2"]},
            {"login": {"user": "a", "secret": 1, "hunter2": 1}, "secret": 5},
            {"key": {"hunter2": 1}},
            {"password": ["hunter2"]},
            {"settings": ["redis://:hunter2@host"]},
            {"settings": {"password": "hunter2"}},
            {"unknown": "hunter2"},
        ],
        ids=str,
    )
    def test_they_are_never_shown(self, value: dict[str, Any]) -> None:
        """Values for secret types, secret names and passwords in URLs aren't in the error, on either side."""

        def task(
            secret: SecretStr | None = None,
            login: Login | None = None,
            key: Key | None = None,
            password: str = "",
            settings: int = 0,
        ) -> None: ...

        for schema in schemas(task):
            with pytest.raises(ValidationError) as caught:
                schema.check("task", (), value)
            assert "hunter2" not in str([error._replace(field="") for error in caught.value.errors])
            assert "(got" not in str(caught.value) or "***" in str(caught.value)


class TestRevive:
    def test_json_becomes_what_the_hints_say(self) -> None:
        """Models, dataclasses, enums, tuples, sets, datetimes and UUIDs come to life, by position and by name."""

        def task(
            order: Order, *points: Point, color: Color, at: datetime, pair: tuple[int, str], **ids: UUID
        ) -> None: ...

        schema = ArgumentSchema.from_callable(task)
        some = uuid4()
        args = ({"name": "a", "items": [{"count": 2}], "type": "b"}, {"x": 1}, {"x": 2, "y": 3})
        kwargs = {"color": "red", "at": "2026-03-01T12:00:00Z", "pair": [1, "a"], "one": str(some)}

        schema.check("task", args, kwargs)
        revived_args, revived_kwargs = schema.revive(args, kwargs)

        assert schema.revives
        assert (Order(name="a", items=[Item(count=2)], type="b"), Point(1), Point(2, 3.0)) == revived_args
        assert {
            "color": Color.RED,
            "at": datetime(2026, 3, 1, 12, tzinfo=UTC),
            "pair": (1, "a"),
            "one": some,
        } == revived_kwargs

    def test_plain_hints_leave_everything_alone(self) -> None:
        """Where JSON already gives what the hints say, the very arguments are passed on."""

        def task(a: str, b: list[dict[str, int]], c: float | None = None, d: Any = None, *e: Row) -> None: ...

        schema = ArgumentSchema.from_callable(task)
        rows = [{"x": 1}]

        args, kwargs = schema.revive(("a", rows), {"c": 1})

        assert not schema.revives
        assert ("a", {"c": 1}) == (args[0], kwargs)
        assert args[1] is rows
        assert isinstance(kwargs["c"], int)

    def test_living_values_stay_alive(self) -> None:
        """Values that the serializer itself brings back, and models in an eager call, are fine too."""

        def task(order: Order, at: datetime, data: bytes, odd: Foreign) -> None: ...

        values = (Order(name="a", items=[Item(count=1)], type="b"), datetime.now(UTC), b"\xff", Foreign())

        assert (values, {}) == ArgumentSchema.from_callable(task).revive(values, {})

    def test_what_check_refuses_is_refused(self) -> None:
        """Arguments that don't fit raise the same kind of error."""

        def task(order: Order) -> None: ...

        with pytest.raises(ValidationError, match=r"order\.name: Field required"):
            ArgumentSchema.from_callable(task).revive(({},), {})

    @given(
        st.builds(
            Order,
            name=st.text(st.characters(exclude_categories=["Cs"])),
            items=st.lists(st.builds(Item, count=st.integers(1, 9))),
            type=st.just("x"),
        )
    )
    def test_it_undoes_what_is_sent(self, order: Order) -> None:
        """A model comes back from its JSON form as it was."""

        def task(order: Order) -> None: ...

        sent = json.loads(order.model_dump_json(by_alias=True, round_trip=True))

        assert ((order,), {}) == ArgumentSchema.from_callable(task).revive((sent,), {})


class TestCatalogue:
    def test_an_entry_describes_the_parameters(self) -> None:
        """The entry holds names, kinds and schemas in order, as JSON."""

        def task(a: int, /, b: str = "x", *c: float, d: SecretStr, **e: Any) -> None: ...

        entry = ArgumentSchema.from_callable(task).to_catalogue()

        assert [
            ("a", "positional_only", True, False),
            ("b", "positional_or_keyword", False, False),
            ("c", "var_positional", False, False),
            ("d", "keyword_only", True, True),
            ("e", "var_keyword", False, False),
        ] == [(one["name"], one["kind"], one["required"], one["secret"]) for one in entry["parameters"]]
        assert {} == entry["parameters"][-1]["schema"]
        assert entry == json.loads(json.dumps(entry))
