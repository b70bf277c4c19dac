"""What may come from outside, and what is said of the rest."""

import json
from collections import OrderedDict
from contextlib import suppress
from copy import deepcopy
from enum import StrEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.utils.json import loads

from orchestra.exceptions import FieldError, ValidationError
from orchestra.sanitizer import InputLimits, InputSanitizer

validate = InputSanitizer.validate_user_input


def problems(data: object, **limits: int) -> list[FieldError]:
    """Return what is wrong with an input."""
    with pytest.raises(ValidationError) as caught:
        validate(data, limits=InputLimits(**limits))
    assert caught.value.errors
    return list(caught.value.errors)


def problem(data: object, **limits: int) -> tuple[str, str]:
    """Return the place and the words of the only thing that is wrong with an input."""
    (only,) = problems(data, **limits)
    return only.field, only.message


CLEAN_TEXT = st.text(st.characters(exclude_categories=["Cc", "Cs"], include_characters="\t\n\r"), max_size=12)
CLEAN_KEY = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=8)
INTEGERS = st.integers(-(2**63) + 1, 2**63 - 1)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)


def nested(leaves: st.SearchStrategy[Any], keys: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Put values into lists and objects."""
    return st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=10
    )


CLEAN = nested(st.none() | st.booleans() | INTEGERS | FLOATS | CLEAN_TEXT, CLEAN_KEY)
ANYTHING = nested(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary() | st.just((1,)),
    st.text(st.characters(), max_size=4) | st.integers(),
)


class Color(StrEnum):
    """A text that isn't only a text."""

    RED = "red"


class TestWhatPasses:
    @given(CLEAN)
    def test_json_comes_back_equal_and_round_trips(self, data: Any) -> None:
        """What a JSON parser gives passes as it is, and is the same after a trip through JSON."""
        clean = validate(data)

        assert repr(data) == repr(clean) == repr(json.loads(json.dumps(clean)))

    @given(ANYTHING)
    def test_what_passes_once_passes_again(self, data: Any) -> None:
        """Checking is idempotent, its result is JSON, and the input isn't touched whatever the outcome."""
        before = repr(data)
        clean = None
        with suppress(ValidationError):
            clean = validate(data)

        assert repr(clean) == repr(validate(clean)) == repr(json.loads(json.dumps(clean, allow_nan=False)))
        assert before == repr(data)

    def test_the_copy_is_deep(self) -> None:
        """What is done to the result doesn't reach the input, at any depth."""
        data = {"pages": [{"title": "a"}]}
        before = deepcopy(data)

        clean = validate(data)
        clean["pages"][0]["title"] = "b"
        clean["pages"].append({})

        assert before == data

    def test_the_guides_input_passes(self) -> None:
        """The development guide's input: a type, a timeout, and what else there is."""
        user_input = {"type": "workers.text.keywords", "timeout": 30, "data": {"text": "naïve\r\n\t✓ 👩‍👩‍👧"}}

        assert user_input == validate(user_input)

    @pytest.mark.parametrize("text", ["<b>'; DROP TABLE tasks; --</b>", "../../etc/passwd", "e\u0301", "\u202eabc", ""])
    def test_text_is_not_judged_by_its_meaning(self, text: str) -> None:
        """No text is refused or changed for what it would mean to a database, a page or a shell."""
        assert text == validate(text)

    def test_a_part_may_stand_twice(self) -> None:
        """A part that stands in two places becomes two parts."""
        part = [1]

        clean = validate([part, part])

        assert [[1], [1]] == clean
        assert clean[0] is not clean[1]


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        ("value", "message"),
        [
            (float("nan"), "is nan, which is no JSON number"),
            (float("-inf"), "is -inf, which is no JSON number"),
            (2**63, "is beyond the whole numbers up to ±9223372036854775807"),
            (-(10**5000), "is beyond the whole numbers up to ±9223372036854775807"),
            ("a\x00b", "holds the control character U+0000 at 1"),
            ("\x1b[31m", "holds the control character U+001B at 0"),
            ("ab\x7f", "holds the control character U+007F at 2"),
            ("\x85", "holds the control character U+0085 at 0"),
            ("a\ud800", "holds half of a surrogate pair at 1"),
            ((1, 2), "is of type tuple, which no JSON parser gives"),
            (b"a", "is of type bytes, which no JSON parser gives"),
            ({1}, "is of type set, which no JSON parser gives"),
            (Color.RED, "is of type Color, which no JSON parser gives"),
            (OrderedDict(a=1), "is of type OrderedDict, which no JSON parser gives"),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_values(self, value: object, message: str) -> None:
        """What JSON can't hold is refused, at any place, and so is what hides in a text."""
        assert ("input", message) == problem(value)
        assert ("pages[1].title", message) == problem({"pages": [0, {"title": value}]})

    @pytest.mark.parametrize(
        ("key", "message"),
        [
            (1, "has the key 1, which is no text"),
            (None, "has the key None, which is no text"),
            ((1,), "has the key tuple, which is no text"),
            (Color.RED, "has the key Color, which is no text"),
            ("a\nb", r"has the key 'a\nb', which holds the control character U+000A at 1"),
            ("\udfff", r"has the key '\udfff', which holds half of a surrogate pair at 0"),
            ("e\u0301", "has the key 'e\u0301', which isn't in Unicode's composed form (NFC)"),
            ("x" * 129, f"has the key '{'x' * 58}…, which has 129 characters: 128 are allowed"),
        ],
        ids=repr,
    )
    def test_keys(self, key: object, message: str) -> None:
        """A key is a text of bounded length that reads in one way only."""
        assert ("input", message) == problem({key: "v"})
        assert ("a", message) == problem({"a": {key: "v"}})

    @pytest.mark.parametrize("value", [{"__type__": "decimal", "__value__": "1"}, {"__type__": [], "__value__": 1}])
    def test_marks_of_the_serializer(self, value: dict[str, Any]) -> None:
        """An object that agents would read as something else, or fail to read, is refused."""
        try:
            arrived = loads(json.dumps(value))
        except (TypeError, ValueError):
            arrived = None

        assert arrived != value
        assert "mark other things than objects" in problem({"a": value})[1]
        assert "mark other things than objects" in problem({**value, "more": 1})[1]
        assert {"__type__": "decimal"} == validate({"__type__": "decimal"})

    def test_every_problem_is_listed(self) -> None:
        """Who sent an input learns at once all that is wrong with it, each with its place."""
        data = {"a": float("nan"), "b": [1, "\x00", {"c d": b""}], 2: 3, "e\u0301": float("inf"), "ok": "ok"}

        found = [(one.field, one.given) for one in problems(data)]

        expected = [
            ("a", "nan"),
            ("b[1]", r"'\x00'"),
            ("b[2]['c d']", "bytes"),
            ("input", "2"),
            ("input", "'e\u0301'"),
            ("input['e\u0301']", "inf"),
        ]
        assert expected == found

    def test_the_message_is_short(self) -> None:
        """The message tells of the first problems, and how many there are besides."""
        with pytest.raises(ValidationError) as caught:
            validate([float("nan")] * 5)

        assert (
            "the input was refused: input[0] is nan, which is no JSON number; input[1] is nan, which is no JSON "
            "number; input[2] is nan, which is no JSON number; and 2 more."
        ) == str(caught.value)

    def test_the_answer_stays_small(self) -> None:
        """A hostile input can't make a huge answer of itself."""
        key = "k\x00" * 10_000

        found = problems({key: {key: ["\x00" * 10_000] * 1_000}}, max_bytes=10_000_000)

        assert 50 == len(found)
        assert all(len(one.field) <= 200 and len(one.message) <= 200 and len(one.given) <= 60 for one in found)

    def test_secrets_are_not_shown(self) -> None:
        """What stands under a secret's name isn't repeated, and neither is a password inside a text."""
        found = problems({"auth": {"password": ["hunter2\x00"]}, "url": "redis://:hunter2@h/\x00"})

        assert ["***", r"'redis://:***@h/\x00'"] == [one.given for one in found]

    def test_nothing_is_shown_that_a_terminal_acts_on(self) -> None:
        """Control characters and half surrogates are escaped, so that the error can be printed and logged."""
        with pytest.raises(ValidationError) as caught:
            validate({"\x1b[2J\udc80": "\x1b[2J\udc80\u202e"})

        told = f"{caught.value}{caught.value.errors}"
        assert told.isprintable()
        assert told.encode()


class TestLimits:
    def test_depth(self) -> None:
        """Lists and objects may stand in each other as deep as allowed, and no deeper."""
        assert {"a": [{"b": 1}]} == validate({"a": [{"b": 1}]}, limits=InputLimits(max_depth=3))
        assert ("a[0]", "is nested too deep: 2 levels are allowed") == problem({"a": [{"b": 1}]}, max_depth=2)

    def test_depth_has_an_end(self) -> None:
        """Nesting beyond the interpreter's recursion is refused, and so is what contains itself."""
        data: list[Any] = []
        for _ in range(100_000):
            data = [data]
        loop: list[Any] = []
        loop.append(loop)

        assert "is nested too deep: 64 levels are allowed" == problem(data, max_depth=64)[1]
        assert "is nested too deep: 32 levels are allowed" == problem(loop)[1]

    def test_values(self) -> None:
        """Lists that hold each other many times are refused without walking to their end."""
        data: list[Any] = [1]
        for _ in range(30):
            data = [data] * 10

        assert ("input", "holds too many values: 10,000 are allowed") == problem(data)
        assert [1, 2] == validate([1, 2], limits=InputLimits(max_values=3))
        assert "holds too many values" in problem([1, 2], max_values=2)[1]

    def test_keys(self) -> None:
        """Each object has a bounded number of keys."""
        data = {str(number): number for number in range(3)}

        assert data == validate(data, limits=InputLimits(max_keys=3))
        assert ("a", "has 3 keys: 2 are allowed") == problem({"a": data}, max_keys=2)

    def test_lengths(self) -> None:
        """Texts and keys have lengths of their own."""
        assert {"abc": "defg"} == validate({"abc": "defg"}, limits=InputLimits(max_key_length=3, max_text_length=4))
        assert ("a", "has 4 characters: 3 are allowed") == problem({"a": "defg"}, max_text_length=3)
        assert "has 3 characters: 2 are allowed" in problem({"abc": 1}, max_key_length=2)[1]

    @given(CLEAN)
    def test_bytes(self, data: Any) -> None:
        """The bytes of the JSON are counted exactly."""
        size = len(json.dumps(data))

        assert repr(data) == repr(validate(data, limits=InputLimits(max_bytes=size)))
        if size > 1:
            assert "bytes" in problem(data, max_bytes=size - 1)[1]

    def test_long_texts_are_not_read_on(self) -> None:
        """When the texts alone are too many bytes, the rest isn't looked at."""
        found = problem(["a" * 10, "\x00", "b"], max_bytes=10)

        assert ("input", "takes more than 10 bytes as JSON") == found

    def test_integers(self) -> None:
        """Whole numbers can be kept to those that every reader of JSON holds exactly."""
        largest = 2**53 - 1

        assert [largest, -largest] == validate([largest, -largest], limits=InputLimits(max_integer=largest))
        assert 2 == len(problems([largest + 1, -largest - 1], max_integer=largest))

    @pytest.mark.parametrize("value", [0, -1, 1.5, "9", None, True])
    def test_limits_are_whole_numbers(self, value: Any) -> None:
        """A limit that makes no sense is refused where it's set."""
        with pytest.raises(ValidationError, match=r"InputLimits\(max_keys=.*1 or more"):
            InputLimits(max_keys=value)

    def test_depth_is_bounded_itself(self) -> None:
        """No one can allow so much nesting that the walk itself would break."""
        with pytest.raises(ValidationError, match="from 1 to 64"):
            InputLimits(max_depth=65)
