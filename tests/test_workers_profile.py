"""The main job: how its work is parted."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.profile import parted_into_batches, parted_into_sections

FILES = st.lists(st.tuples(st.text(max_size=50), st.integers(0, 2**21)), max_size=200)
LIMIT = 1024 * 1024


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
