"""What follows a task is told by its signatures, however they are nested, and noted by its publish."""

from collections.abc import Iterator
from typing import Any

import pytest
from celery import chain, chord, group
from hypothesis import given
from hypothesis import strategies as st

from orchestra.followers import Awaited, Follower, Link, awaited_of, followers_of
from orchestra.state import StateManager
from tests.fleets import agent_of, app_at, commands_at


def signature(task: str, task_id: str | None = None, **options: Any) -> dict[str, Any]:
    """Return a signature as messages have it."""
    return {"task": task, "subtask_type": None, "kwargs": {}, "options": {"task_id": task_id, **options}}


def composed(kind: str, **kwargs: Any) -> dict[str, Any]:
    """Return a chain, group or chord as messages have it."""
    return {"task": f"celery.{kind}", "subtask_type": kind, "kwargs": kwargs, "options": {}}


class TestFollowersOf:
    def test_a_chain(self) -> None:
        """Each step waits for the one before it; Celery has the next one last."""
        found = followers_of("1", [signature("c", "3"), signature("b", "2")], None)

        assert (Follower("2", "b", "1", Link.CHAIN), Follower("3", "c", "2", Link.CHAIN)) == found

    def test_the_next_only(self) -> None:
        """What is further back can be left out."""
        found = followers_of("1", [signature("c", "3"), signature("b", "2")], signature("d", "4"), next_only=True)

        assert (Follower("2", "b", "1", Link.CHAIN), Follower("4", "d", "1", Link.CHORD)) == found

    def test_a_chord(self) -> None:
        """The body waits for the member, and what follows in the body for the body's first."""
        body = composed("chain", tasks=[signature("b", "2"), signature("c", "3")])

        assert (Follower("2", "b", "1", Link.CHORD), Follower("3", "c", "2", Link.CHAIN)) == followers_of(
            "1", None, body
        )

    def test_a_chord_in_a_chain(self) -> None:
        """The members wait for the step before, the body for all of them, the next step for the body."""
        header = composed("group", tasks=[signature("m", "2"), signature("m", "3")])
        step = composed("chord", header=header, body=signature("b", "4"))

        assert (
            Follower("2", "m", "1", Link.CHAIN),
            Follower("3", "m", "1", Link.CHAIN),
            Follower("4", "b", "2", Link.CHORD),
            Follower("4", "b", "3", Link.CHORD),
            Follower("5", "c", "4", Link.CHAIN),
        ) == followers_of("1", [signature("c", "5"), step], None)

    def test_a_member_that_is_a_chain(self) -> None:
        """A chord's body waits for the last step of a member."""
        found = followers_of("1", [signature("b", "2", chord=signature("body", "3"))], None)

        assert (Follower("2", "b", "1", Link.CHAIN), Follower("3", "body", "2", Link.CHORD)) == found

    def test_without_ids(self) -> None:
        """A signature that wasn't given an id can't be asked for."""
        assert () == followers_of("1", [signature("b")], signature("c"))

    def test_very_many(self) -> None:
        """A publish notes a bounded number; the rest is noted by the publishes to come."""
        assert 1000 == len(followers_of("0", [signature("b", str(number)) for number in range(3000, 0, -1)], None))

    @given(
        st.recursive(
            st.none() | st.integers() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(
                        ["task", "subtask_type", "kwargs", "options", "tasks", "header", "body", "task_id"]
                    ),
                    inner | st.sampled_from(["chain", "group", "chord"]),
                    max_size=5,
                )
            ),
            max_leaves=12,
        )
    )
    def test_anything(self, value: Any) -> None:
        """Whatever a producer hands in, a publish doesn't fail over it."""
        followers_of("1", [value], value)


class TestAwaitedOf:
    def test_a_note(self) -> None:
        """It tells the task, and all that it waits for."""
        fields = {"task": "c", "link": "chord", "after:2": "", "after:1": ""}

        assert Awaited("c", Link.CHORD, ("1", "2")) == awaited_of(fields)
        assert awaited_of({}) is None


class TestNotes:
    @pytest.fixture
    def app(self, redis_url: str) -> Iterator[Any]:
        """Give an app with a task that adds up what it gets."""
        with app_at(redis_url) as app:

            @app.task(name="shop.add", shared=False)
            def add(*numbers: Any) -> int:
                return sum(sum(one) if isinstance(one, list) else one for one in numbers)

            yield app

    @pytest.fixture
    def state(self, app: Any) -> StateManager:
        """Give what reads the notes."""
        state: StateManager = app.state
        return state

    def test_until_they_are_sent(self, app: Any, state: StateManager) -> None:
        """What follows has a note in place of a record, and a record in place of the note once it's sent."""
        add = app.tasks["shop.add"]
        last: Any = chain(add.s(1), add.s(2), add.s(3)).apply_async()
        ids = [last.parent.parent.id, last.parent.id, last.id]

        found = state.look_up(ids)

        assert [True, False, False] == [record is not None for record, _ in found]
        assert [None, *(Awaited("shop.add", Link.CHAIN, (one,)) for one in ids[:2])] == [note for _, note in found]
        with agent_of(app):
            assert 6 == last.get(timeout=20)
        assert [(True, None)] * 3 == [(record is not None, note) for record, note in state.look_up(ids)]

    def test_of_a_chord(self, app: Any, state: StateManager) -> None:
        """The body's note has every member, and is gone when the body is sent."""
        add = app.tasks["shop.add"]
        body: Any = chord([add.s(1), add.s(2), chain(add.s(3), add.s(4))], add.s()).apply_async()
        ends = sorted(one.id for one in body.parent.results)

        ((record, note),) = state.look_up([body.id])

        assert (None, Awaited("shop.add", Link.CHORD, tuple(ends))) == (record, note)
        with agent_of(app):
            assert 10 == body.get(timeout=20)
        assert state.look_up([body.id])[0][1] is None

    def test_of_a_group_in_a_chain(self, app: Any, state: StateManager) -> None:
        """What an agent sends on its own has the ids that were noted."""
        add = app.tasks["shop.add"]
        last: Any = chain(add.s(1), group(add.s(2), add.s(3)), add.s(), add.s(4)).apply_async()
        ((_, before_last),) = state.look_up([last.parent.id])

        with agent_of(app):
            assert 11 == last.get(timeout=20)

        assert before_last is not None
        assert [True, True] == [record is not None for record, _ in state.look_up(before_last.after)]

    def test_an_ordinary_task(self, app: Any, redis_url: str) -> None:
        """It takes nothing along, and a chain is still one command."""
        add = app.tasks["shop.add"]
        add.delay(1)
        with commands_at(redis_url) as commands:
            add.delay(2)
            chain(add.s(3), add.s(4)).apply_async()

        assert 2 == len(commands)
        assert ["awaits" in one or "chain" in one.split("base64")[-1] for one in commands] == [False, True]
        assert 1 == len(app.store.command("KEYS", f"{app.store.keys.base}awaits:*"))
