"""Numbers, times and lists are said as a person would."""

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestra import wording
from orchestra.wording import listed, ordinal, span


class TestWording:
    def test_examples(self) -> None:
        """What the docstrings show is what comes."""
        assert (0, 4) == doctest.testmod(wording)

    @pytest.mark.parametrize(
        ("seconds", "said"), [(-3, "0 s"), (59.7, "1 min"), (3605, "1 h"), (86_400, "1 d"), (61, "1 min 1 s")]
    )
    def test_spans(self, seconds: float, said: str) -> None:
        """Two units at most, and none that is nothing."""
        assert said == span(seconds)

    @given(st.floats(0, 1e9))
    def test_any_span(self, seconds: float) -> None:
        """Every span has one or two units."""
        assert len(span(seconds).split()) in {2, 4}

    @given(st.integers(0, 10**6))
    def test_any_place(self, number: int) -> None:
        """Every place ends as English has it."""
        assert ordinal(number)[-2:] in {"st", "nd", "rd", "th"}

    def test_none_listed(self) -> None:
        """A list may be empty."""
        assert "" == listed([])
