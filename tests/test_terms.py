"""Values, their canonical form and their order."""

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestra.terms import Value

VERSIONS = st.from_regex(r"\Av[0-9]{1,3}([._-]?([0-9]{1,3}|[a-z]{1,3})){0,4}\Z")
WORDS = st.from_regex(r"\A[A-Za-z0-9._-]{1,12}\Z").filter(
    lambda text: text.lstrip("-").lower() not in {"nan", "inf", "infinity"}
)


class TestValue:
    @pytest.mark.parametrize(
        "ascending",
        [
            ["-2", "-1.5", "0", "1", "9.99", "10", "1000000000000000000000"],
            [
                "v0",
                "v0.1",
                "v1-alpha",
                "v1-rc",
                "v1-rc.0",
                "v1-rc1",
                "v1-rc2",
                "v1-rc10",
                "v1",
                "v1.0.1",
                "v1.9",
                "v1.10",
                "v2",
            ],
        ],
    )
    @given(random=st.randoms())
    def test_values_have_an_order(self, ascending: list[str], random: Random) -> None:
        """Numbers go by size, versions part by part, and a version with letters precedes the one without."""
        values = [Value.parse(text) for text in ascending]

        assert values == sorted(random.sample(values, len(values)))
        assert all(one < other for one, other in pairwise(values))

    @given(VERSIONS, VERSIONS)
    def test_the_order_of_versions_is_total(self, one: str, other: str) -> None:
        """Of two versions one comes first, or they are the same in their canonical form too."""
        first, second = Value.parse(one), Value.parse(other)

        assert 1 == (first < second) + (second < first) + (first == second)
        assert (first.key == second.key) == (first.text == second.text)

    @given(WORDS)
    def test_the_canonical_form_is_a_fixed_point(self, text: str) -> None:
        """Reading a canonical value changes neither its text nor its kind."""
        value = Value.parse(text)

        assert (value.text, value.kind) == (Value.parse(value.text).text, Value.parse(value.text).kind)

    def test_hostile_text_is_read_in_no_time(self) -> None:
        """A long text that is nearly a version doesn't make the reader try again and again."""
        assert "v" + "1" * 400 + "__" == Value.parse("v" + "1" * 400 + "__").text
