"""What a task may declare of losses and dead letters."""

from typing import Any

import pytest

from orchestra.exceptions import ConfigurationError
from orchestra.loss_options import LOSS_OPTIONS, check_loss_options


class TestCheck:
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"max_lost_processes": 0, "max_lost_agents": 0, "dead_letters": False},
            {"max_lost_processes": 100, "dead_letters": True},
            dict.fromkeys(LOSS_OPTIONS),
        ],
    )
    def test_sense(self, options: dict[str, Any]) -> None:
        """Whole numbers from 0 on, and yes or no, are allowed, and so is saying nothing."""
        check_loss_options("shop.index", options)

    @pytest.mark.parametrize("option", ["max_lost_processes", "max_lost_agents"])
    @pytest.mark.parametrize("given", [-1, 1.5, True, "3"])
    def test_numbers(self, option: str, given: object) -> None:
        """A bound that is no whole number is refused with what is allowed."""
        with pytest.raises(ConfigurationError, match=rf"Task shop\.index: {option}=.*; a whole number of at least 0"):
            check_loss_options("shop.index", {option: given})

    @pytest.mark.parametrize("given", [0, 1, "no"])
    def test_yes_or_no(self, given: object) -> None:
        """Whether letters are kept is said by True or False."""
        with pytest.raises(ConfigurationError, match=r"dead_letters=.*; True or False"):
            check_loss_options("shop.index", {"dead_letters": given})
