"""Tasks that several test modules run, and what these tasks are to raise."""

from datetime import date
from typing import Any

from pydantic import BaseModel

from orchestra.exceptions import Backoff

__all__ = ["AT_ONCE", "FAILURES", "Document", "Failures", "declare_tasks"]

AT_ONCE = Backoff(base_seconds=0.0, jitter="none")


class Document(BaseModel):
    """What some tasks take and return."""

    title: str
    pages: int = 1
    on: date | None = None


class Failures:
    """What the tasks below are to raise, one for each attempt, and how often they were tried."""

    def __init__(self) -> None:
        self.errors: list[BaseException] = []
        self.attempts = 0

    def set(self, *errors: BaseException) -> None:
        """Raise these, one an attempt, and nothing after them."""
        self.errors, self.attempts = list(errors), 0

    def next(self) -> int:
        """Take part in one attempt."""
        self.attempts += 1
        if self.errors:
            raise self.errors.pop(0)
        return self.attempts


FAILURES = Failures()


def declare_tasks(app: Any) -> None:
    """Declare the tasks of these tests."""
    _declare_more(app)

    @app.task(name="t.model", requires="general", shared=False)
    def model(document: Document, *, copies: int = 1) -> Document:
        assert isinstance(document, Document)
        return Document(title=document.title * copies, pages=document.pages, on=document.on)

    @app.task(name="t.nested", urgency="normal", shared=False)
    def nested(documents: list[Document], by_name: dict[str, Document]) -> dict[str, Any]:
        assert all(isinstance(one, Document) for one in [*documents, *by_name.values()])
        return {"all": [*documents, *by_name.values()], "pair": (documents[0], 1)}

    @app.task(name="t.strict", requires="general", max_attempts=3, backoff=AT_ONCE, shared=False)
    def strict(number: int = 0) -> int:
        return FAILURES.next()

    @app.task(name="t.loose", shared=False)
    def loose(number: int = 0) -> int:
        return FAILURES.next()


def _declare_more(app: Any) -> None:
    @app.task(name="t.listed", retry_on=(KeyError,), backoff=AT_ONCE, shared=False)
    def listed() -> int:
        return FAILURES.next()

    @app.task(
        name="t.never", max_attempts=3, retry_on=(LookupError,), never_retry=(KeyError,), backoff=AT_ONCE, shared=False
    )
    def never() -> int:
        return FAILURES.next()

    @app.task(name="t.endless", retry_on=KeyError, max_retries=None, backoff=AT_ONCE, shared=False)
    def endless() -> int:
        return FAILURES.next()

    @app.task(name="t.once", max_attempts=3, acks_late=False, backoff=AT_ONCE, shared=False)
    def once() -> int:
        return FAILURES.next()

    @app.task(name="t.hand", bind=True, shared=False)
    def hand(self: Any, number: int = 0) -> list[Any]:
        if self.request.retries < 2:
            raise self.retry(countdown=0, args=(number + 1,))
        return [number, self.request.retries]

    @app.task(name="t.hand_out", bind=True, requires="general", max_attempts=2, shared=False)
    def hand_out(self: Any) -> None:
        self.retry(countdown=0)

    @app.task(name="t.ignored", ignore_result=True, shared=False)
    def ignored() -> int:
        return FAILURES.next()

    @app.task(name="t.auto", autoretry_for=(ValueError,), retry_backoff=False, default_retry_delay=0, shared=False)
    def auto() -> int:
        return FAILURES.next()
