"""A call is validated and routed before Redis is touched."""

import json
from collections import namedtuple
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, SecretStr

from orchestra.arguments import ArgumentSchema
from orchestra.capabilities import Requirement
from orchestra.exceptions import PayloadError, ValidationError
from orchestra.submission import Call, Declared, Limits, Prepared, complete_signatures, plain, prepare
from orchestra.types import Urgency

LIMITS = Limits(max_bytes=1_000, max_depth=5)


class Order(BaseModel):
    """An argument that isn't a plain value."""

    number: int
    lines: list[str] = []


class Aliased(BaseModel):
    """An argument whose fields have other names outside."""

    identity: str = Field(alias="@id")


class Login(BaseModel):
    """An argument with a secret in it."""

    user: str
    password: SecretStr


class Keyring(BaseModel):
    """An argument with several secrets in it."""

    listed: list[SecretStr] = []
    named: dict[str, tuple[SecretStr, ...]] = {}
    labels: set[str] = {"spare"}


class Nested(BaseModel):
    """An argument with such an argument in it."""

    login: Login


class Colour(Enum):
    """One of a closed set."""

    RED = "red"


@dataclass(frozen=True)
class Box:
    """An argument that holds others."""

    colour: Colour
    orders: tuple[Order, ...]


Point = namedtuple("Point", ["x", "y"])  # noqa: PYI024  # what users have


def index(text: str, limit: int = 10) -> None:
    """Stand for a task's code."""


INDEX = Declared(arguments=ArgumentSchema.from_callable(index), enforced=True)


def call(
    *args: Any, requires: Any = None, urgency: Any = None, priority: Any = None, queue: Any = None, **kwargs: Any
) -> Call:
    """Write a call down."""
    return Call(
        task="shop.index", args=args, kwargs=kwargs, requires=requires, urgency=urgency, priority=priority, queue=queue
    )


def prepared(one: Call, declared: Declared = INDEX, *, enforce: bool = True) -> Prepared:
    """Prepare a call within the tests' limits."""
    return prepare(one, declared, LIMITS, enforce=enforce)


class TestRequires:
    def test_is_read_where_it_is_given(self) -> None:
        """What a call asks for comes back as a requirement."""
        assert Requirement.parse("gpu,mem_gb>=16") == prepared(call("a", requires={"gpu", "mem_gb>=16"})).requires

    def test_is_none_where_nothing_is_asked_for(self) -> None:
        """A call that asks for nothing leaves routing to what the task declares."""
        declared = Declared(requires=Requirement.parse("nlp"))

        assert prepared(call("a"), declared).requires is None

    @pytest.mark.parametrize("requires", ["", "gpu,,cpu", "mem_gb>=lots", {"a", "!a"}, 42, []])
    def test_nonsense_is_refused(self, requires: object) -> None:
        """A requirement that can't be read, and an empty one, is refused."""
        with pytest.raises(ValidationError):
            prepared(call("a", requires=requires))

    def test_queue_excludes_it(self) -> None:
        """A call that names both queue and requirement contradicts itself, and reads what to do."""
        with pytest.raises(ValidationError) as caught:
            prepared(call("a", requires="gpu", queue="billing"))

        assert "shop.index was not submitted" in str(caught.value)
        assert "requires='gpu' and queue='billing' exclude each other" in str(caught.value)

    def test_queue_alone_is_the_callers(self) -> None:
        """A call may name its queue."""
        assert prepared(call("a", queue="billing")).requires is None


class TestUrgency:
    @pytest.mark.parametrize(
        ("asked", "declared", "priority"),
        [
            (None, None, 6),
            (None, Urgency.LOW, 9),
            ("critical", None, 0),
            ("HIGH", Urgency.LOW, 3),
            (Urgency.NORMAL, Urgency.HIGH, 6),
        ],
    )
    def test_becomes_a_priority(self, asked: object, declared: Urgency | None, priority: int) -> None:
        """The call's urgency comes first, then the task's, then `normal`."""
        assert priority == prepared(call("a", urgency=asked), Declared(urgency=declared)).priority

    def test_callers_priority_stays(self) -> None:
        """`priority=` keeps Celery's meaning, 0 included."""
        assert prepared(call("a", priority=0), Declared(urgency=Urgency.LOW)).priority is None

    def test_priority_excludes_it(self) -> None:
        """A call that gives both contradicts itself."""
        with pytest.raises(ValidationError, match=r"urgency= or priority=, not both"):
            prepared(call("a", urgency="high", priority=3))

    @pytest.mark.parametrize("urgency", ["soon", "", 3])
    def test_unknown_one_is_refused(self, urgency: object) -> None:
        """An urgency that isn't one is refused with the names that there are."""
        with pytest.raises(ValidationError, match="critical, high, normal, low"):
            prepared(call("a", urgency=urgency))


class TestArguments:
    def test_fitting_call_has_no_remarks(self) -> None:
        """A call that fits is let through without a word."""
        assert prepared(call("a", limit=3)).remarks is None

    def test_every_field_is_told(self) -> None:
        """An enforced call that doesn't fit is refused with everything that is wrong."""
        with pytest.raises(ValidationError) as caught:
            prepared(call(text=42, limit="many", depth=1))

        assert {"text", "limit", "depth"} == {error.field for error in caught.value.errors}
        assert str(caught.value).startswith("shop.index was not submitted: ")

    def test_mismatch_is_remarked_on_where_hints_are_not_enforced(self) -> None:
        """A project that adopts Orchestra isn't refused what it always did; it is told."""
        remarks = prepared(call(42), enforce=False).remarks

        assert remarks is not None
        assert "text" in str(remarks)

    def test_unknown_task_is_not_checked(self) -> None:
        """Of a task without a schema nothing is expected."""
        assert prepared(call(42, anything=None), Declared()).remarks is None

    @pytest.mark.parametrize(
        "value", ["x" * 1_000, [[[[[[1]]]]]], {1, 2}, float("nan"), {1: 2}, object(), "x" * 10_000_000]
    )
    def test_payload_has_bounds(self, value: object) -> None:
        """A payload that is too large, too deep or not JSON is refused where the call is enforced."""
        with pytest.raises(PayloadError):
            prepared(call(value), Declared())

    def test_payload_of_others_is_theirs(self) -> None:
        """A task without any option of ours may send what Celery can."""
        assert prepared(call("x" * 2_000), Declared(), enforce=False).remarks is None


def of(task: str, *args: Any, kwargs: Mapping[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    """Write a signature as Celery has it: a dictionary."""
    return {
        "task": task,
        "args": args,
        "kwargs": dict(kwargs or {}),
        "options": options,
        "subtask_type": None,
        "immutable": False,
    }


def chain_with(inner: dict[str, Any]) -> Any:
    """Put a signature among the followers of a task, as `apply_async(chain=…)` has them."""
    return [of("last"), inner]


PLACES: list[Callable[[dict[str, Any]], Any]] = [
    lambda inner: inner,
    lambda inner: [inner],
    lambda inner: (1, inner),
    lambda inner: {"callback": inner},
    lambda inner: {"deep": [{"er": inner}]},
    lambda inner: of("outer", inner),
    lambda inner: of("celery.map", kwargs={"task": inner, "it": [1]}),
    lambda inner: of("celery.group", kwargs={"tasks": [inner]}),
    lambda inner: of("celery.chord", kwargs={"header": of("celery.group", kwargs={"tasks": [inner]}), "body": of("b")}),
    lambda inner: of("outer", link=[inner]),
    lambda inner: of("outer", chord=inner),
    chain_with,
]


class TestCompleteSignatures:
    @pytest.mark.parametrize("place", PLACES)
    def test_reaches_signatures_everywhere(self, place: Callable[[dict[str, Any]], Any]) -> None:
        """A signature's requirement is canonical text before it is serialised, wherever the signature stands."""
        inner = of("shop.index", requires={"mem_gb>=016", "gpu"})
        whole = place(inner)

        complete_signatures(whole)

        assert "gpu,mem_gb>=16" == inner["options"]["requires"]
        json.dumps(whole)

    def test_requirement_value_becomes_text(self) -> None:
        """A requirement that was read already can travel too."""
        inner = of("shop.index", requires=Requirement.parse("gpu"))

        complete_signatures(inner)

        assert "gpu" == inner["options"]["requires"]

    @pytest.mark.parametrize("place", PLACES)
    def test_takes_along_what_the_task_declares(self, place: Callable[[dict[str, Any]], Any]) -> None:
        """A signature that is sent later, by an agent that may not know its task, carries what the task requires."""
        inner = of("shop.index", headers={"tenant": "a"})

        complete_signatures(place(inner), {"shop.index": Requirement.parse("mem_gb>=16,gpu")}.get)

        assert {"tenant": "a", "declared_requires": "gpu,mem_gb>=16"} == inner["options"]["headers"]

    @pytest.mark.parametrize("options", [{"requires": "nlp"}, {"queue": "mine"}, {"routing_key": "mine"}])
    def test_what_a_signature_says_itself_counts(self, options: dict[str, Any]) -> None:
        """One that says what it requires, or where it goes, gets nothing else."""
        inner = of("shop.index", **options)

        complete_signatures(inner, {"shop.index": Requirement.parse("gpu")}.get)

        assert of("shop.index", **options) == inner

    def test_known_before_and_not_here(self) -> None:
        """What a first sender knew stays where a later one knows nothing."""
        inner = of("shop.index", headers={"declared_requires": "gpu"})

        complete_signatures(inner)

        assert {"declared_requires": "gpu"} == inner["options"]["headers"]

    @pytest.mark.parametrize("options", [{}, {"requires": None}, {"queue": "billing"}])
    def test_signature_without_one_is_left_alone(self, options: dict[str, Any]) -> None:
        """A signature that asks for nothing stays as it is."""
        inner = of("shop.index", **options)

        complete_signatures(inner)

        assert of("shop.index", **options) == inner

    @pytest.mark.parametrize(
        "value",
        [
            None,
            "text",
            {"requires": {"gpu"}},
            {"options": {"requires": {"gpu"}}},
            {"subtask_type": None, "options": None},
            {"subtask_type": None, "options": "none"},
            {"subtask_type": None},
        ],
    )
    def test_other_values_are_left_alone(self, value: object) -> None:
        """An argument that only looks like a signature is the user's own."""
        before = repr(value)

        complete_signatures(value)

        assert before == repr(value)

    def test_nonsense_inside_is_refused(self) -> None:
        """A requirement that can't be read is refused before anything is sent."""
        with pytest.raises(ValidationError, match="mem_gb>=lots"):
            complete_signatures([of("outer", link=[of("shop.index", requires="mem_gb>=lots")])])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.lists(inner).map(tuple),
    max_leaves=20,
)


class TestPlain:
    @given(json_values)
    def test_leaves_plain_values_as_they_are(self, value: object) -> None:
        """What JSON holds already isn't changed."""
        assert value == plain(value)
        assert type(value) is type(plain(value))

    def test_models_become_their_json_form(self) -> None:
        """A pydantic model, wherever it stands, travels as JSON."""
        order = Order(number=1, lines=["a"])
        form = {"number": 1, "lines": ["a"]}

        assert form == plain(order)
        assert [form, (form,), {"order": form}] == plain([order, (order,), {"order": order}])

    def test_alias_is_the_name_that_travels(self) -> None:
        """A model with aliases travels under the names that it is read by."""
        assert {"@id": "7c9e"} == plain(Aliased.model_validate({"@id": "7c9e"}))

    @pytest.mark.parametrize(
        ("value", "form"),
        [
            (Colour.RED, "red"),
            (Box(Colour.RED, (Order(number=1),)), {"colour": "red", "orders": ({"number": 1, "lines": []},)}),
            ({1}, [1]),
            (frozenset({Colour.RED}), ["red"]),
            ([{"boxes": {Colour.RED}}], [{"boxes": ["red"]}]),
            (Box, Box),
        ],
    )
    def test_other_values_become_their_json_form(self, value: object, form: object) -> None:
        """Enums, dataclasses and sets travel as JSON has them; a class isn't a value."""
        assert form == plain(value)

    @pytest.mark.parametrize("value", [datetime(2030, 1, 1, tzinfo=UTC), UUID(int=1), Decimal("1.10"), b"raw"])
    def test_what_kombu_marks_stays(self, value: object) -> None:
        """Values that the message's JSON carries marked arrive as what they are."""
        assert value is plain(value)

    @pytest.mark.parametrize(
        "place", [lambda it: it, lambda it: [it], lambda it: {"a": it}, lambda it: Nested(login=it)]
    )
    def test_secret_is_refused(self, place: Callable[[BaseModel], object]) -> None:
        """A secret would arrive as asterisks, so it is refused, without being shown."""
        with pytest.raises(PayloadError) as caught:
            plain(place(Login(user="ann", password=SecretStr("hunter2"))))

        assert "Login.password is a secret" in str(caught.value)
        assert "hunter2" not in str(caught.value)

    def test_model_that_may_hold_secrets_and_does_not_is_fine(self) -> None:
        """It is the secret that can't travel, not its place."""
        assert {"listed": [], "named": {"mail": []}, "labels": ["spare"]} == plain(Keyring(named={"mail": ()}))

    @pytest.mark.parametrize("field", ["listed", "named"])
    def test_secret_inside_a_field_is_refused(self, field: str) -> None:
        """A secret deep inside a model is found as well, and the field is named."""
        secret = SecretStr("hunter2")
        keys = Keyring(listed=[secret]) if field == "listed" else Keyring(named={"mail": (secret,)})

        with pytest.raises(PayloadError, match=f"Keyring.{field} is a secret"):
            plain(keys)

    def test_other_tuples_are_left_alone(self) -> None:
        """A named tuple isn't made anew, which could fail."""
        point = Point(1, 2)

        assert point is plain(point)
