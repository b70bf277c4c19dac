"""How numbers, times and lists are said in a sentence."""

from collections.abc import Sequence
from typing import Final

__all__ = ["counted", "listed", "ordinal", "span"]

_UNITS: Final = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))
_MOST: Final = 3


def counted(number: int, noun: str, plural: str = "") -> str:
    """
    Return a number with its noun.

    >>> counted(1, "task"), counted(1204, "task"), counted(2, "process", "processes")
    ('1 task', '1,204 tasks', '2 processes')
    """
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def listed(names: Sequence[str], most: int = _MOST) -> str:
    """
    Return names as a sentence has them; those past `most` are counted.

    >>> listed(["a", "b"]), listed(["a", "b", "c", "d", "e"])
    ('a and b', 'a, b, c and 2 more')
    """
    shown = list(names[:most])
    if len(names) > most:
        shown.append(f"{len(names) - most:,} more")
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else "".join(shown)


def ordinal(number: int) -> str:
    """
    Return a place in a row.

    >>> [ordinal(number) for number in (1, 2, 3, 4, 11, 12, 13, 21, 101, 1011)]
    ['1st', '2nd', '3rd', '4th', '11th', '12th', '13th', '21st', '101st', '1,011th']
    """
    teens = 11 <= number % 100 <= 13  # noqa: PLR2004  # eleventh, twelfth, thirteenth
    ending = "th" if teens else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number:,}{ending}"


def span(seconds: float) -> str:
    """
    Return how long something takes, in its two largest units.

    >>> [span(seconds) for seconds in (0, 0.004, 0.25, 1.24, 42.7, 130, 3600, 93784)]
    ['0 s', '4 ms', '250 ms', '1.2 s', '43 s', '2 min 10 s', '1 h', '1 d 2 h']
    """
    if seconds < 1:
        return f"{max(seconds, 0) * 1000:.0f} ms" if seconds >= 0.0005 else "0 s"  # noqa: PLR2004  # what rounds to 1 ms
    if seconds < 10:  # noqa: PLR2004  # below this a tenth matters
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    left, parts = round(seconds), []
    for unit, length in _UNITS:
        number, left = divmod(left, length)
        if number:
            parts.append(f"{number} {unit}")
        elif parts:
            break
    return " ".join(parts[:2])
