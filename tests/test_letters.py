"""What is read of a dead letter, and how its losses are counted."""

from datetime import UTC, datetime

import pytest

from orchestra.letters import DeadLetter, Delivery, Which, read_letter


def letter_with(*kinds: str) -> DeadLetter:
    """Give a letter that such things befell, in this order."""
    at = datetime(2030, 1, 1, tzinfo=UTC)
    deliveries = tuple(Delivery(kind=kind, at=at) for kind in kinds)
    return DeadLetter(
        id="1", task_id="1", task="t", reason="poison", error=None, died_at=at, queue="q", requires="",
        deliveries=deliveries,
    )  # fmt: skip


class TestLosses:
    @pytest.mark.parametrize(
        ("kinds", "lost"),
        [
            ((), (0, 0)),
            (("process", "agent", "process"), (2, 1)),
            (("process", "replay"), (0, 0)),
            (("process", "replay", "agent", "replay", "process", "agent", "agent"), (1, 2)),
        ],
    )
    def test_since_the_last_replay(self, kinds: tuple[str, ...], lost: tuple[int, int]) -> None:
        """Only what was lost since the last replay counts."""
        letter = letter_with(*kinds)

        assert lost == (letter.lost_processes, letter.lost_agents)


class TestRead:
    def test_whatever_was_sent(self) -> None:
        """A field that holds a piece of somebody's message may be any bytes, and one may be missing."""
        letter = read_letter("1", 1.5, {"task": b"\xff", "queue": b"q", "raw": b"\x00"}, requires="nlp")

        assert ("\\xff", "q", "nlp", b"\x00") == (letter.task, letter.queue, letter.requires, letter.message)
        assert (None, None, 1, (), ()) == (
            letter.task_id, letter.submitted_at, letter.attempt, letter.history, letter.deliveries,
        )  # fmt: skip
        assert datetime(1970, 1, 1, 0, 0, 1, 500_000, tzinfo=UTC) == letter.died_at


class TestWhich:
    def test_no_filter(self) -> None:
        """Without a filter all letters are meant."""
        assert Which().everything
        assert Which().admits(letter_with())
        assert not Which(task="*").everything

    def test_a_requirement_that_is_unknown(self) -> None:
        """A letter from a queue that says nothing of requirements isn't found by one."""
        assert not Which(requires="nlp").admits(letter_with())
