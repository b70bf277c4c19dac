"""States, urgencies and records."""

import dataclasses
from datetime import UTC, datetime

import pytest

from orchestra.exceptions import ValidationError
from orchestra.types import Health, HistoryEntry, QueueInfo, TaskRecord, TaskState, Urgency


class TestTaskState:
    def test_values_are_lower_case_names(self) -> None:
        """A state is written as its name in lower case."""
        assert [state.name.lower() for state in TaskState] == [state.value for state in TaskState]

    def test_only_ends_are_finished(self) -> None:
        """A task is finished when it succeeded, failed, expired or was cancelled, and not before."""
        finished = {state for state in TaskState if state.finished}

        assert {TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED, TaskState.EXPIRED} == finished


class TestUrgency:
    def test_priorities_are_the_steps_of_the_transport(self) -> None:
        """Each urgency has its own step, and the most urgent comes first."""
        assert [0, 3, 6, 9] == [urgency.priority for urgency in Urgency]

    @pytest.mark.parametrize("value", ["high", "HIGH", Urgency.HIGH])
    def test_parse_takes_names_and_members(self, value: str | Urgency) -> None:
        """An urgency is read by its name, in upper or lower case."""
        assert Urgency.HIGH is Urgency.parse(value)

    @pytest.mark.parametrize("value", ["soon", "", 3, None, ["high"]])
    def test_parse_lists_the_names(self, value: object) -> None:
        """What is no urgency is refused with the names that there are."""
        with pytest.raises(ValidationError, match="critical, high, normal, low") as caught:
            Urgency.parse(value)  # type: ignore[arg-type]

        assert repr(value) in str(caught.value)
        assert "urgency" == caught.value.errors[0].field


class TestRecords:
    def test_records_cannot_be_changed(self) -> None:
        """A record is a value: a change makes a new one."""
        entry = HistoryEntry(state=TaskState.RUNNING, at=datetime.now(UTC))
        record = TaskRecord(task_id="1", name="a", requires="gpu", queue="q", state=TaskState.RUNNING, history=(entry,))
        queue = QueueInfo(name="q", requires="gpu", depth=3)
        health = Health(ok=True, redis_ms=0.2, agents=1, waiting=0)

        for value in (entry, record, queue, health):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(value, dataclasses.fields(value)[0].name, None)
        assert record == dataclasses.replace(record)
