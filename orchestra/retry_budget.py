"""How many retries of one kind of task a fleet affords."""

import math
from dataclasses import dataclass
from typing import Final

from orchestra.exceptions import ValidationError

__all__ = ["RetryBudget"]

_BOUNDS: Final = {  # field -> least, most, and the words for both
    "ratio": (0.0, 1_000.0, "a share of the first attempts, from 0 to 1000, such as 0.2"),
    "floor_per_second": (0.0, 1e6, "a number of retries per second, from 0 to 1000000"),
    "window_seconds": (0.1, 3600.0, "a number of seconds from 0.1 to 3600"),
}


@dataclass(frozen=True, slots=True)
class RetryBudget:
    """
    How many retries of one kind of task may be due in each window of `window_seconds`, in the whole fleet.

    As many as `ratio` of the first attempts that began within such a time, or `floor_per_second` for each second where
    that's more, and one at least. Retries above that aren't dropped: they're put off to the next window with room, over
    which they're spread evenly. The default is 20 % of the first attempts, or 100 in 10 seconds.
    """

    ratio: float = 0.2
    floor_per_second: float = 10.0
    window_seconds: float = 10.0

    def __post_init__(self) -> None:
        for name, (least, most, allowed) in _BOUNDS.items():
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            if not (number and least <= value <= most):
                message = f"RetryBudget({name}={value!r}) makes no sense: give {allowed}."
                raise ValidationError(message)

    @property
    def window_ms(self) -> int:
        """The window in whole milliseconds, as Redis counts it."""
        return round(self.window_seconds * 1000)

    def room(self, first_attempts: float) -> int:
        """Return how many retries a window has room for when so many first attempts began within its time."""
        return max(1, math.floor(max(self.floor_per_second * self.window_ms / 1000, self.ratio * first_attempts)))
