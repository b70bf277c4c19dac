"""
The main job: profile a tree of documents, each step by an agent that can do it.

    find                                        io: which files are there?
    a chord per section, a few hundred files
      header: read | describe | fingerprint     io, nlp, cpu_intensive: a chain for each batch of a few files
      body:   collect                           general
    report over all sections                    general

A task costs some milliseconds whatever it does, so files travel in batches. Sections bound what a chord hands to its
body in one message; with them a tree may be of any size.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from celery import Signature, chain, chord
from celery.result import AsyncResult

from orchestra.exceptions import PermanentError
from orchestra.state import StateManager
from orchestra.types import TaskRecord, TaskState
from workers.compute import fingerprint
from workers.documents import Listing
from workers.general import collect, report
from workers.io import read
from workers.text import describe

__all__ = ["Job", "JobFailedError", "Progress", "conclude", "parted_into_batches", "parted_into_sections", "plan"]

_T = TypeVar("_T")

_BATCH_BYTES: Final = 512 * 1024
_BATCH_FILES: Final = 40
_SECTION_BYTES: Final = 896 * 1024  # of JSON, of the 1 MiB that a message may have
_READ_AT_ONCE: Final = 150  # of the tasks that are open; they finish about in the order of their start
_PROFILE_BYTES: Final = 1600  # of JSON, at the very most, besides the file's name


class JobFailedError(PermanentError):
    """A step of the job ended without a result."""


@dataclass(frozen=True, slots=True)
class Job:
    """
    The tasks of a job, whose ids are known before they are sent.

    `files_of` tells of each step how many files it works on.
    """

    find_id: str
    sections: dict[str, Signature[Any]]  # id of the chord's body -> the chord
    files_of: dict[str, int]

    def send(self) -> Iterator[None]:
        """Send section after section, with a pause for the caller after each."""
        for section in self.sections.values():
            section.apply_async()
            yield


def plan(found: AsyncResult[Any]) -> Job:
    """Plan the work on all files that `workers.io.find` listed; `found` is its finished result."""
    listing: Listing = found.get()
    job = Job(found.id, {}, {})
    for section in parted_into_sections(parted_into_batches(listing["files"])):
        header = []
        for names in section:
            steps = [read.s(listing["root"], names), describe.s(), fingerprint.s()]
            job.files_of.update((step.freeze().id, len(names)) for step in steps)
            header.append(chain(*steps))
        body = collect.s()
        job.sections[body.freeze().id] = chord(header, body)
    return job


def conclude(job: Job) -> AsyncResult[Any]:
    """Send the last task of a job whose other tasks have finished; it returns a `Report`."""
    last: AsyncResult[Any] = report.delay(job.find_id, list(job.sections))
    return last


def parted_into_batches(files: Iterable[tuple[str, int]]) -> Iterator[list[str]]:
    """Part files, given with their sizes, into batches that are alike in work: a few large ones or more small ones."""
    least = _BATCH_BYTES // _BATCH_FILES
    for batch in _parted(files, lambda file: max(file[1], least), _BATCH_BYTES):
        yield [name for name, _ in batch]


def parted_into_sections(batches: Iterable[list[str]]) -> Iterator[list[list[str]]]:
    """Part batches into sections whose profiles fit into one message."""
    return _parted(batches, lambda names: len(json.dumps(names)) + len(names) * _PROFILE_BYTES, _SECTION_BYTES)


def _parted(items: Iterable[_T], weight: Callable[[_T], int], most: int) -> Iterator[list[_T]]:
    """Part items, in their order, such that no part weighs more than `most` unless it is a single item."""
    part: list[_T] = []
    total = 0
    for item in items:
        total += weight(item)
        if part and total > most:
            yield part
            part, total = [], weight(item)
        part.append(item)
    if part:
        yield part


class Progress:
    """How far a job is, read from the records of its tasks."""

    def __init__(self, job: Job, state: StateManager) -> None:
        self._job = job
        self._state = state
        self._open = [*job.files_of, *job.sections]
        self.finished: list[TaskRecord] = []

    def update(self) -> int:
        """
        Read what has finished since the last time, and return how many tasks that were.

        Raises:
            JobFailedError: a task failed; it says which, where and why.

        """
        found = self._state.read_many(self._open[:_READ_AT_ONCE])
        records = [record for record in found if record and record.state.finished]
        failed = next((record for record in records if record.state is not TaskState.SUCCEEDED), None)
        if failed is not None:
            reason = failed.error or failed.history[-1].note
            message = f"{failed.name} {failed.state} on {failed.agent}: {reason}"
            raise JobFailedError(message)
        self.finished += records
        done = {record.task_id for record in records}
        self._open = [task_id for task_id in self._open if task_id not in done]
        return len(done)

    @property
    def complete(self) -> bool:
        """Whether every task has finished."""
        return not self._open

    @property
    def steps(self) -> int:
        """How many steps are done, a step being one agent's work on one file."""
        return sum(self._job.files_of.get(record.task_id, 0) for record in self.finished)

    @property
    def all_steps(self) -> int:
        """How many steps there are in all."""
        return sum(self._job.files_of.values())
