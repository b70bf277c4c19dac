"""The messages that no agent may run any more: what they are, why, and how they are published anew."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final, Unpack
from uuid import uuid4

from orchestra.exceptions import ValidationError
from orchestra.letters import LISTED, DeadFilters, DeadLetter, DeadPage, Dropped, Which, read_letter
from orchestra.queues import QueueNames
from orchestra.store import Store, pairs_of, text_of, texts_of

__all__ = ["DeadLetters"]

_PER_ROUND_TRIP: Final = 200
_PER_REPLAY: Final = 50  # which hold the server up for a few ms
_PACES_PER_SECOND: Final = 10  # how often a replay at a bounded rate goes on


class DeadLetters:
    """
    The dead letters of one fleet, newest first.

    A letter's id is its task's, as far as that is the only one of the task; `show`, `replay` and `purge` take it.
    """

    def __init__(
        self,
        store: Store,
        queues: QueueNames,
        *,
        record_ttl_seconds: float,
        result_key: Callable[[str], str] = lambda _: "",  # where a task's result is, if that's the same database
        forget: Callable[[str], None] = lambda _: None,  # forget a task's result, if it's elsewhere
    ) -> None:
        self._store = store
        self._queues = queues
        self._record_ttl_seconds = record_ttl_seconds
        self._result_key = result_key
        self._forget = forget

    # ── look ──

    def list(self, *, limit: int = 100, cursor: str | None = None, **which: Unpack[DeadFilters]) -> DeadPage:
        """
        Return up to `limit` letters, newest first, without their messages; go on with the page's `cursor`.

        Raises:
            ValidationError: a filter or the cursor can't be read.

        """
        if limit < 1:
            message = f"limit={limit} makes no sense: give at least 1."
            raise ValidationError(message)
        found = [*islice(self._walk(Which(**which), before=_read_cursor(cursor)), limit + 1)]
        page = found[:limit]
        more = len(found) > limit
        return DeadPage(letters=tuple(letter for _, letter in page), cursor=page[-1][0] if more else None)

    def count(self, **which: Unpack[DeadFilters]) -> int:
        """Return how many letters there are."""
        asked = Which(**which)
        if asked.everything:
            return int(self._store.command("ZCARD", self._store.keys.dead_letters))
        return sum(1 for _ in self._walk(asked))

    def dropped(self) -> Dropped:
        """Return how many letters were dropped so far, since they were too old or too many."""
        found = texts_of(self._store.command("HGETALL", self._store.keys.dead_dropped))
        return Dropped(age=int(found.get("age", 0)), surplus=int(found.get("surplus", 0)))

    def show(self, letter_id: str) -> DeadLetter:
        """
        Return one letter with its message.

        Raises:
            ValidationError: there is no such letter.

        """
        keys = self._store.keys
        score, fields = self._store.pipeline(
            [("ZSCORE", keys.dead_letters, letter_id), ("HGETALL", keys.dead_letter(letter_id))]
        )
        if not fields or score is None:
            raise _no_letter(letter_id)
        return self._read(letter_id, float(score), {text_of(name): value for name, value in pairs_of(fields)})

    # ── act ──

    def replay(
        self,
        *letter_ids: str,
        rate_per_second: float | None = None,
        dry_run: bool = False,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        **which: Unpack[DeadFilters],
    ) -> int:
        """
        Publish letters anew, oldest first: the same bytes into the same queue; return how many.

        A letter leaves the dead letters in the step in which its message is published, so whatever dies meanwhile, each
        is there or in its queue. Its task runs though it had expired or its id was revoked, its losses are counted from
        0, and its record is open again. Letters that come after the call has begun are left.

        Args:
            letter_ids: the letters; or give filters.
            rate_per_second: how many to publish in a second at most; None for no bound.
            dry_run: only count them.
            sleep: waits between publishes.
            clock: what the rate goes by, in s.
            which: filters; `task="*"` means all letters.

        Raises:
            ValidationError: neither ids nor a filter are given, or both, or a letter doesn't exist.

        """
        size = _batch_size(rate_per_second)
        chosen = self._chosen(letter_ids, which)
        if dry_run:
            return len(chosen)
        started, replayed = clock(), 0
        for at in range(0, len(chosen), size):
            if rate_per_second is not None and (early := started + at / rate_per_second - clock()) > 0:
                sleep(early)
            replayed += self._replay(chosen[at : at + size])
        return replayed

    def _replay(self, letters: Sequence[DeadLetter]) -> int:
        keys, words = self._store.keys, list[str]()
        for letter in letters:
            result = self._result_key(letter.task_id) if letter.task_id else ""
            if letter.task_id and not result:
                self._forget(letter.task_id)
            words += [letter.id, self._queues.suffix(letter.queue) or "", result]
        replayed: int = self._store.run(
            "replay",
            [keys.dead_letters, keys.redelivered, keys.queues, keys.queues_version, keys.replay(uuid4().hex)],
            [keys.base, int(self._record_ttl_seconds * 1000), *words],
        )
        return replayed

    def purge(self, *letter_ids: str, dry_run: bool = False, **which: Unpack[DeadFilters]) -> int:
        """
        Delete letters for good, or with `dry_run` only count them; return how many.

        Raises:
            ValidationError: as for `replay`.

        """
        chosen = self._chosen(letter_ids, which)
        if dry_run:
            return len(chosen)
        keys, purged = self._store.keys, 0
        for at in range(0, len(chosen), _PER_ROUND_TRIP):
            ids = [letter.id for letter in chosen[at : at + _PER_ROUND_TRIP]]
            purged += self._store.run("purge", [keys.dead_letters], [keys.base, *ids])
        return purged

    def trim(self, *, most: int, ttl_seconds: float, limit: int = 1000) -> int:
        """
        Drop the oldest letters beyond `most` and those older than `ttl_seconds`, up to `limit` of each.

        Returns:
            How many were dropped since this was called last, here or where letters are made.

        """
        keys = self._store.keys
        dropped: int = self._store.run(
            "trim", [keys.dead_letters, keys.dead_bounds, keys.dead_dropped], [keys.base, most, ttl_seconds, limit]
        )
        return dropped

    # ── choose ──

    def _chosen(self, letter_ids: Sequence[str], which: DeadFilters) -> Sequence[DeadLetter]:
        asked = Which(**which)
        if bool(letter_ids) == (not asked.everything):
            message = "Say which dead letters: give ids, or filters such as reason='poison'; task='*' means all."
            raise ValidationError(message)
        if letter_ids:
            return [self.show(letter_id) for letter_id in dict.fromkeys(letter_ids)]
        return [letter for _, letter in self._walk(asked)][::-1]

    def _walk(self, which: "Which", *, before: str = "+inf") -> "Iterator[tuple[str, DeadLetter]]":
        """Yield the letters, newest first, each with the time that a list goes on before."""
        keys = self._store.keys
        newest = "+inf" if which.until is None else f"{which.until.timestamp():.6f}"
        oldest = "-inf" if which.since is None else f"{which.since.timestamp():.6f}"
        if before == "+inf" or float(before.removeprefix("(")) > float(newest):
            before = newest
        while True:
            page = ("ZREVRANGEBYSCORE", keys.dead_letters, before, oldest, "WITHSCORES", "LIMIT", 0, _PER_ROUND_TRIP)
            found = [(text_of(name), float(score)) for name, score in pairs_of(self._store.command(*page))]
            if not found:
                return
            told = self._store.pipeline([("HMGET", keys.dead_letter(name), *LISTED) for name, _ in found])
            for (name, score), fields in zip(found, told, strict=True):
                before = f"({score:.6f}"
                if fields[0] is None:  # gone meanwhile
                    continue
                letter = self._read(name, score, dict(zip(LISTED, fields, strict=True)))
                if which.admits(letter):
                    yield before, letter

    def _read(self, letter_id: str, died_at: float, fields: Mapping[str, Any]) -> DeadLetter:
        requires = self._queues.requires(text_of(fields.get("queue") or b""))
        return read_letter(letter_id, died_at, fields, requires=requires)


def _read_cursor(cursor: str | None) -> str:
    if cursor is None:
        return "+inf"
    try:
        float(cursor.removeprefix("("))
    except ValueError:
        message = f"{cursor!r} is no cursor: give what the page before said, or leave it out."
        raise ValidationError(message) from None
    return cursor


def _batch_size(rate_per_second: float | None) -> int:
    if rate_per_second is None:
        return _PER_REPLAY
    if not (math.isfinite(rate_per_second) and rate_per_second > 0):
        message = f"rate_per_second={rate_per_second!r} makes no sense: give a number above 0."
        raise ValidationError(message)
    return max(1, min(_PER_REPLAY, int(rate_per_second / _PACES_PER_SECOND)))


def _no_letter(letter_id: str) -> ValidationError:
    message = f"There is no dead letter {letter_id}: it was replayed or purged, or never died. See: orchestra dead list"
    return ValidationError(message)
