"""How many retries a budget has room for."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestra.exceptions import ValidationError
from orchestra.retry_budget import RetryBudget

BUDGETS = st.builds(
    RetryBudget, ratio=st.floats(0, 10), floor_per_second=st.floats(0, 1e4), window_seconds=st.floats(0.1, 3600)
)


class TestRetryBudget:
    def test_default(self) -> None:
        """A fifth of the first attempts, above a floor of ten a second, over ten seconds."""
        assert RetryBudget(ratio=0.2, floor_per_second=10, window_seconds=10) == RetryBudget()

    @pytest.mark.parametrize(("first_attempts", "room"), [(0, 100), (500, 100), (501, 100), (505, 101), (5_000, 1_000)])
    def test_room(self, first_attempts: float, room: int) -> None:
        """The ratio counts where it allows more than the floor."""
        assert room == RetryBudget().room(first_attempts)

    @pytest.mark.parametrize(
        ("wrong", "words"),
        [
            ({"ratio": -0.1}, "RetryBudget(ratio=-0.1) makes no sense: give a share of the first attempts, from 0"),
            ({"ratio": math.nan}, "ratio=nan"),
            ({"ratio": True}, "ratio=True"),
            ({"floor_per_second": "10"}, "floor_per_second='10'"),
            ({"floor_per_second": math.inf}, "a number of retries per second"),
            ({"window_seconds": 0}, "a number of seconds from 0.1 to 3600"),
            ({"window_seconds": 86_400}, "window_seconds=86400"),
        ],
    )
    def test_nonsense_is_refused(self, wrong: dict[str, Any], words: str) -> None:
        """What is no budget is refused where it's made, with what is allowed."""
        with pytest.raises(ValidationError) as caught:
            RetryBudget(**wrong)

        assert words in str(caught.value)

    @given(budget=BUDGETS, first_attempts=st.floats(0, 1e6), more=st.floats(0, 1e6))
    def test_more_attempts_never_mean_less_room(self, budget: RetryBudget, first_attempts: float, more: float) -> None:
        """Room grows with the first attempts, and there's always some, so that no retry waits for ever."""
        assert 1 <= budget.room(first_attempts) <= budget.room(first_attempts + more)

    @given(budget=BUDGETS, first_attempts=st.floats(0, 1e6))
    def test_room_is_the_ratio_or_the_floor(self, budget: RetryBudget, first_attempts: float) -> None:
        """Above one, room is what the ratio or the floor allows, rounded down."""
        allowed = max(budget.ratio * first_attempts, budget.floor_per_second * budget.window_ms / 1000)

        assert max(1, math.floor(allowed)) == budget.room(first_attempts)
