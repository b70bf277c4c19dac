"""The general agent: whatever asks for no particular skill."""

from typing import Any

from orchestra.exceptions import PermanentError
from workers import app
from workers.documents import Listing, Profile, Report
from workers.findings import report_on, unreadable

CAPABILITIES = "general"


@app.task(timeout=120, max_attempts=3)
def collect(batches: list[list[Profile]]) -> list[Profile]:
    """Put the profiles of a section's batches together."""
    return [profile for batch in batches for profile in batch]


@app.task(timeout=300, max_attempts=3)
def report(find_id: str, section_ids: list[str]) -> Report:
    """
    Report on a tree, from what `find` and, for each section, `collect` returned.

    They are read from where results are kept: a large tree's would not fit into one message.
    """
    listing: Listing = _result_of(find_id)
    profiles = [profile for task_id in section_ids for profile in _result_of(task_id)]
    return report_on([*profiles, *map(unreadable, listing["unreadable"].items())])


def _result_of(task_id: str) -> Any:  # what that task returned
    result = app.AsyncResult(task_id)
    if not result.successful():
        message = f"The result of {task_id} can't be read: the task is {result.state}, or its result has expired."
        raise PermanentError(message)
    return result.result
