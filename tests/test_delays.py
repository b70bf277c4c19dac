"""When a message is due, compared with what Celery's own workers make of it."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from celery.utils.time import maybe_iso8601, maybe_make_aware
from hypothesis import given
from hypothesis import strategies as st

from orchestra.delays import due_at

_ZONES: st.SearchStrategy[timezone | None] = st.integers(-14 * 60, 14 * 60).map(
    lambda minutes: timezone(timedelta(minutes=minutes))
)


class TestDueAt:
    @pytest.mark.parametrize(
        ("eta", "due"),
        [
            ("1970-01-01T00:00:01+00:00", 1.0),
            ("1970-01-01T00:00:01.25Z", 1.25),
            ("1970-01-01T02:00:00+02:00", 0.0),
            ("1970-01-01T00:00:10", 10.0),  # without a zone: UTC
            ("19700102", 86_400.0),
        ],
    )
    def test_forms(self, eta: str, due: float) -> None:
        """A moment is counted in seconds since 1970, whichever zone it is told in."""
        assert due == due_at({"eta": eta})

    @pytest.mark.parametrize(
        "eta", [None, "", "tomorrow", "2026-13-01", 17, ["2026-01-01"], "9999-12-31T23:00:00-12:00"]
    )
    def test_none(self, eta: Any) -> None:
        """Without an eta that can be read and counted a message isn't held back."""
        assert due_at({"eta": eta}) is None
        assert due_at({}) is None

    @given(st.datetimes(datetime(1971, 1, 1), datetime(9000, 1, 1), timezones=st.one_of(st.none(), _ZONES)))  # noqa: DTZ001
    def test_as_celery_has_it(self, moment: datetime) -> None:
        """Whatever Celery writes into a message is due when Celery's worker would start it."""
        read = maybe_iso8601(moment.isoformat())
        assert read is not None
        understood = maybe_make_aware(read, UTC)

        assert understood.timestamp() == pytest.approx(due_at({"eta": moment.isoformat()}), abs=1e-5)
