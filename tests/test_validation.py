"""Checks of task names, times and payloads."""

import json
import uuid
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.utils.json import dumps
from pydantic import BaseModel

from orchestra.exceptions import PayloadError, ValidationError
from orchestra.validation import check_payload, validate_delay, validate_priority, validate_task_type, validate_timeout


def size_of(*args: Any, **kwargs: Any) -> int:
    """Check a payload within roomy bounds."""
    return check_payload(args, kwargs, max_bytes=1_000_000, max_depth=64)


class Document(BaseModel):
    """A model as tasks take it."""

    title: str
    at: datetime = datetime(2026, 1, 1, tzinfo=UTC)


class Color(Enum):
    """What JSON can't hold."""

    RED = "red"


class TestValidateTaskType:
    @pytest.mark.parametrize("value", ["workers.text.keywords", "__main__.add", "email:send", "a", "größe", "x" * 255])
    def test_names_pass(self, value: str) -> None:
        """A task's name is returned as it is."""
        assert value == validate_task_type(value)

    @pytest.mark.parametrize("value", ["", " a", "a b", "a\n", "-a", "x" * 256, "a;b", None, 3, ["a"]])
    def test_other_things_do_not(self, value: object) -> None:
        """What can't name a task is refused with the rule."""
        with pytest.raises(ValidationError, match="1 to 255 letters") as caught:
            validate_task_type(value)

        assert "task_type" == caught.value.errors[0].field
        assert len(caught.value.errors[0].given) <= 60


class TestValidateTimeout:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [(None, None), (30, 30.0), (0.5, 0.5), (timedelta(minutes=1), 60.0), (604_800, 604_800.0)],
    )
    def test_times_pass(self, value: Any, expected: float | None) -> None:
        """A timeout is a number of seconds, or none."""
        assert expected == validate_timeout(value)

    @pytest.mark.parametrize(
        "value", [0, -1, float("nan"), float("inf"), "30", True, 604_801, 10**400, timedelta(0), [3], timedelta(days=8)]
    )
    def test_other_things_do_not(self, value: object) -> None:
        """A timeout is above 0, has a bound, and is no text."""
        with pytest.raises(ValidationError, match="above 0 and up to 604800"):
            validate_timeout(value)

    def test_the_bound_is_the_callers(self) -> None:
        """The longest timeout is a setting."""
        assert 5.0 == validate_timeout(5, max_seconds=5)
        with pytest.raises(ValidationError, match="up to 5"):
            validate_timeout(6, max_seconds=5)


class TestValidateDelay:
    @pytest.mark.parametrize(("value", "expected"), [(None, None), (0, 0.0), (3, 3.0), (timedelta(hours=1), 3600.0)])
    def test_times_pass(self, value: Any, expected: float | None) -> None:
        """A delay may be 0."""
        assert expected == validate_delay(value)

    @pytest.mark.parametrize("value", [-0.1, float("nan"), "soon", False, 1e12])
    def test_other_things_do_not(self, value: object) -> None:
        """A delay is no text, not negative, and has a bound."""
        with pytest.raises(ValidationError, match="from 0 to"):
            validate_delay(value)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


def depth(value: object) -> int:
    """Count the levels of lists and objects."""
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


class TestPriority:
    @pytest.mark.parametrize("value", [None, 0, 9, 3.0, -1, 255])
    def test_numbers(self, value: float | None) -> None:
        """Any number is a priority, as for Celery; none stays none."""
        assert value == validate_priority(value)

    @pytest.mark.parametrize("value", ["high", "", "3", True, False, float("nan"), float("inf"), [3], object()])
    def test_others_are_refused(self, value: object) -> None:
        """What is no number is refused, with the names of the urgencies."""
        with pytest.raises(
            ValidationError, match=r"is no priority: give a number .* critical, high, normal, low"
        ) as caught:
            validate_priority(value)
        assert "priority" == caught.value.errors[0].field


class TestCheckPayload:
    @given(st.lists(JSON, max_size=3), st.dictionaries(st.text(), JSON, max_size=3))
    def test_json_passes_and_its_size_is_told(self, args: list[Any], kwargs: dict[str, Any]) -> None:
        """Whatever JSON can hold passes, and the size is that of its JSON."""
        assert len(json.dumps([args, kwargs])) == size_of(*args, **kwargs)

    @given(JSON, st.integers(0, 4))
    def test_depth_counts_levels(self, value: object, max_depth: int) -> None:
        """A value is refused exactly when it has more levels than allowed."""

        def check() -> int:
            return check_payload((), {"value": value}, max_bytes=10_000_000, max_depth=max_depth)

        if depth(value) <= max_depth:
            assert check() > 0
            return
        with pytest.raises(PayloadError, match="too deep"):
            check()

    @pytest.mark.parametrize("kind", ["nope", "decimal", 3])
    def test_what_agents_would_misread(self, kind: object) -> None:
        """An object in the form of kombu's marked values would reach the task as something else, or not at all."""
        with pytest.raises(PayloadError, match=r"value\.deep\[0\] has just the keys __type__ and __value__"):
            size_of(value={"deep": [{"__type__": kind, "__value__": 1}]})

        assert size_of({"__type__": kind, "__value__": 1, "more": 2}) > 0

    def test_as_deep_as_settings_allow(self) -> None:
        """The deepest payload that settings allow is walked without an end of the stack."""
        value: Any = []
        for _ in range(127):
            value = [value]

        assert check_payload((value,), {}, max_bytes=10_000, max_depth=128) > 0

    @pytest.mark.parametrize(
        "value",
        [
            datetime.now(UTC),
            date(2026, 3, 1),
            time(12, 30),
            uuid.uuid4(),
            Decimal("1.50"),
            b"text",
            b"\xff\x00",
            (1, "a"),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_what_the_serializer_marks_passes(self, value: object) -> None:
        """Datetimes, dates, times, UUIDs, Decimals, bytes and tuples pass, and their size is nearly told."""
        size = size_of(value)

        assert size == pytest.approx(len(dumps([[value], {}])), abs=20)

    def test_models_count_as_their_json_form(self) -> None:
        """A pydantic model passes, and counts as what is sent of it."""
        document = Document(title="a")

        assert size_of(document.model_dump(mode="json")) == size_of(document)

    @pytest.mark.parametrize(
        ("value", "place", "problem"),
        [
            (float("nan"), "x", "nan"),
            ([1, {"a": float("inf")}], r"x\[1\]\.a", "inf"),
            ({1: 2}, "x", "has the key 1"),
            ({"a": {None: 2}}, r"x\.a", "has the key None"),
            ([{1, 2}], r"x\[0\]", "type set.*send a list"),
            (object(), "x", "type object"),
            (Color.RED, "x", "type Color"),
            (timedelta(1), "x", "type timedelta"),
            (bytearray(b"a"), "x", "type bytearray"),
            (MappingProxyType({}), "x", "type mappingproxy"),
        ],
        ids=repr,
    )
    def test_what_json_cannot_hold_is_refused_with_its_place(self, value: object, place: str, problem: str) -> None:
        """What JSON can't hold is refused, and the error says where it stands."""
        with pytest.raises(PayloadError, match=f"{place} .*{problem}") as caught:
            size_of(x=value)

        assert 1 == len(caught.value.errors)

    def test_positions_are_told_too(self) -> None:
        """A positional argument is named by its place."""
        with pytest.raises(PayloadError, match=r"args\[1\]\.a"):
            size_of(1, {"a": {1}})

    def test_names_of_arguments_are_texts(self) -> None:
        """An argument's own name is a key like others."""
        with pytest.raises(PayloadError, match="kwargs has the key 1"):
            check_payload((), {1: 2}, max_bytes=1000, max_depth=1)  # type: ignore[dict-item]

    def test_cycles_are_refused(self) -> None:
        """A payload that contains itself is refused."""
        loop: list[Any] = [1]
        loop.append({"again": loop})

        with pytest.raises(PayloadError, match=r"x\[1\]\.again contains itself"):
            size_of(x=loop)

    def test_a_part_may_stand_twice(self) -> None:
        """A part that stands in two places is no cycle."""
        part = [1]

        assert size_of(part, part)

    def test_parts_that_multiply_are_refused_early(self) -> None:
        """Lists that hold each other twice are huge as JSON, and are refused without writing them out."""
        value: list[Any] = []
        for _ in range(60):
            value = [value, value]

        with pytest.raises(PayloadError, match="more than 10,000 bytes are too many"):
            check_payload((value,), {}, max_bytes=10_000, max_depth=64)

    def test_deep_nesting_does_not_break_the_walk(self) -> None:
        """Nesting far beyond the interpreter's recursion is refused as too deep."""
        value: list[Any] = []
        for _ in range(100_000):
            value = [value]

        with pytest.raises(PayloadError, match="too deep: 64"):
            size_of(value)

    def test_the_bound_of_the_size_is_exact(self) -> None:
        """A payload of as many bytes as allowed passes, and one byte more doesn't."""
        size = size_of("a" * 100)

        assert size == check_payload(("a" * 100,), {}, max_bytes=size, max_depth=1)
        with pytest.raises(PayloadError, match=f"{size} bytes are too many: {size - 1}"):
            check_payload(("a" * 100,), {}, max_bytes=size - 1, max_depth=1)

    def test_an_int_that_cannot_be_written_is_refused(self) -> None:
        """An int beyond what Python writes as text is refused."""
        with pytest.raises(PayloadError, match="can't be written as JSON"):
            size_of(10**5000)

    def test_the_callers_own_types_pass(self) -> None:
        """A type that the caller's encoder knows passes, and so does one that tells its JSON form itself."""

        class Own:
            def __json__(self) -> str:
                return "own"

        def encode(value: object) -> object:
            if isinstance(value, Color):
                return value.value
            raise TypeError

        assert len('[["own"], {}]') == size_of(Own())
        assert len('[["red"], {}]') == check_payload((Color.RED,), {}, max_bytes=1000, max_depth=1, default=encode)
