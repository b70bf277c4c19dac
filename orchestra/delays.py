"""When a task may start, as its message says and as Celery's workers understand it."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from dateutil.parser import isoparse  # type: ignore[import-untyped]  # Celery's own dependency

__all__ = ["due_at"]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def due_at(headers: Mapping[str, Any]) -> float | None:
    """
    Return a message's `eta` in seconds since 1970, by the parser that Celery has; a time without a zone is UTC there.

    None where there is none, or one that can't be read or counted: Celery itself complains of that, so such a message
    isn't held back.
    """
    eta = headers.get("eta")
    try:
        moment: datetime | None = isoparse(eta) if eta else None
        if moment is None:
            return None
        aware = moment if moment.utcoffset() is not None else moment.replace(tzinfo=UTC)
        return (aware.astimezone(UTC) - _EPOCH).total_seconds()  # a year that no zone can tell is refused here
    except (AttributeError, OverflowError, TypeError, ValueError):
        return None
