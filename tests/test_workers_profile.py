"""The main job: how its work is parted."""

import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestra.app import OrchestraCelery
from orchestra.config import load_settings
from orchestra.state import StateManager
from orchestra.types import TaskState
from workers.profile import Job, JobFailedError, Progress, parted_into_batches, parted_into_sections

FILES = st.lists(st.tuples(st.text(max_size=50), st.integers(0, 2**21)), max_size=200)
LIMIT = 1024 * 1024


@pytest.fixture
def state(redis_url: str) -> Iterator[StateManager]:
    """Give the records of a fleet of which nothing is known yet."""
    app = OrchestraCelery("progress", settings=load_settings(broker_url=redis_url))
    yield app.state
    app.close()


class TestBatches:
    @given(FILES)
    def test_every_file_once_in_order(self, files: list[tuple[str, int]]) -> None:
        """Nothing is lost, doubled or moved."""
        batches = list(parted_into_batches(files))

        assert [name for batch in batches for name in batch] == [name for name, _ in files]

    @given(FILES)
    def test_are_bounded(self, files: list[tuple[str, int]]) -> None:
        """A batch has forty files at most, and more than one only when they are small together."""
        sizes = iter(size for _, size in files)
        for batch in parted_into_batches(files):
            total = sum(next(sizes) for _ in batch)

            assert 1 <= len(batch) <= 40
            assert len(batch) == 1 or total <= 512 * 1024

    def test_none(self) -> None:
        """No files, no batches."""
        assert list(parted_into_batches([])) == []


class TestSections:
    @pytest.mark.parametrize("name", ["a.py", "ü" * 200, "d/" * 2000])
    def test_profiles_fit_into_a_message(self, name: str) -> None:
        """The profiles of a section, each at its largest, stay under the limit of a message."""
        batches = parted_into_batches([(f"{number}{name}", 1) for number in range(3000)])

        sections = list(parted_into_sections(batches))

        assert sum(len(batch) for section in sections for batch in section) == 3000
        for section in sections:
            assert sum(len(json.dumps(path)) + 1600 for batch in section for path in batch) < LIMIT


class TestProgress:
    JOB = Job("found", {}, {"a": 20, "b": 5})

    def test_counts_the_steps_that_are_done(self, state: StateManager) -> None:
        """A step is one agent's work on one file; what was counted isn't counted again."""
        progress = Progress(self.JOB, state)
        state.advance("a", TaskState.RUNNING, agent="io@here")
        nothing_yet = progress.update()
        state.advance("a", TaskState.SUCCEEDED)

        done = [progress.update(), progress.update()]

        assert (nothing_yet, done) == (0, [1, 0])
        assert (progress.steps, progress.all_steps, progress.complete) == (20, 25, False)

    def test_is_complete_in_the_end(self, state: StateManager) -> None:
        """When every task has succeeded, the job is done."""
        progress = Progress(self.JOB, state)
        for task_id in "ab":
            state.advance(task_id, TaskState.SUCCEEDED)

        progress.update()

        assert progress.complete

    @pytest.mark.parametrize("end", [TaskState.FAILED, TaskState.CANCELLED])
    def test_a_failure(self, state: StateManager, end: TaskState) -> None:
        """A task that ends without a result ends the job, which says which, where and why."""
        state.advance("a", TaskState.RUNNING, agent="io@here", name="workers.io.read")
        state.advance("a", end, note="out of paper")

        with pytest.raises(JobFailedError, match=f"workers.io.read {end} on io@here: out of paper"):
            Progress(self.JOB, state).update()
