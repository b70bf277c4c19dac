"""From facts to reasons: each case has its own, and the words say whom and when."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestra.explanations import CauseKind, Explanation, Subject
from orchestra.facts import Buried, Delayed, Facts, Leased, Parent, Place, Queued
from orchestra.followers import Awaited, Link
from orchestra.reasons import explain
from orchestra.types import HistoryEntry, TaskState
from tests.cases import NOW, agent, ago, facts, record

LOST: dict[str, Any] = {"alive": False, "seen_at": ago(9)}


def first(known: Facts) -> tuple[CauseKind, str]:
    """Return the first cause's kind and text."""
    cause = explain(known).causes[0]
    return cause.kind, cause.text


class TestTasks:
    @pytest.mark.parametrize(
        ("state", "given", "text"),
        [
            (TaskState.SUCCEEDED, {"agent": "text@a"}, "It succeeded on text@a."),
            (TaskState.FAILED, {"agent": "text@a", "error": "KeyError: 1"}, "It failed on text@a: KeyError: 1"),
            (TaskState.FAILED, {"attempt": 3, "error": "E: 1"}, "It failed at attempt 3: E: 1"),
            (TaskState.EXPIRED, {}, "It expired before an agent started it."),
            (TaskState.CANCELLED, {}, "It was cancelled."),
        ],
    )
    def test_ended(self, state: TaskState, given: dict[str, Any], text: str) -> None:
        """What has ended is told with its end, and isn't waited for."""
        found = explain(facts(agent(), record=record(state, **given), place=None))

        assert (state.value, text) == (found.causes[0].kind.value, found.causes[0].text)
        assert (None, (), given.get("error")) == (found.wait, found.agents, found.causes[0].error)

    @pytest.mark.parametrize(
        ("place", "given", "kind"),
        [
            (Leased("text", started=True, kept=False), {}, CauseKind.RUNNING),
            (Leased("text", started=True, kept=False), LOST, CauseKind.RUNNING_ON_LOST_AGENT),
            (Leased("text", started=False, kept=False), {}, CauseKind.FETCHED),
            (Leased("text", started=False, kept=False), LOST, CauseKind.FETCHED_BY_LOST_AGENT),
            (Leased("text", started=False, kept=True), {}, CauseKind.RATE_LIMITED),
            (Leased("text", started=False, kept=True), LOST, CauseKind.FETCHED_BY_LOST_AGENT),
            (Leased("other", started=False, kept=False), {}, CauseKind.FETCHED),
            (Delayed(ago(-60)), {}, CauseKind.DELAYED),
            (Delayed(ago(1)), {}, CauseKind.ABOUT_TO_START),  # no agent has moved it yet
            (Queued("shop:nlp", 0, ago(5)), {}, CauseKind.EXPIRED),
            (Queued("shop:nlp", 0, ago(-5)), {}, CauseKind.ABOUT_TO_START),
            (Buried("unregistered"), {}, CauseKind.DEAD_LETTERED),
            (None, {}, CauseKind.MESSAGE_GONE),
        ],
    )
    def test_by_the_place_of_the_message(self, place: Place | None, given: dict[str, Any], kind: CauseKind) -> None:
        """The record says what should be, and the place of the message what is."""
        assert kind is first(facts(agent(**given), place=place))[0]

    def test_running_without_a_lease(self) -> None:
        """One that runs at most once has no lease: its agent's life is all that tells of it."""
        running = record(TaskState.RUNNING, agent="text@a", started_at=ago(40))

        assert (CauseKind.RUNNING, "It runs on text@a for 40 s.") == first(facts(agent(), record=running, place=None))
        for others in ([agent(**LOST)], [agent(started_at=ago(10))], []):
            assert CauseKind.RUNNING_ON_LOST_AGENT is first(facts(*others, record=running, place=None))[0]

    def test_running_again(self) -> None:
        """One whose agent was lost waits again; what keeps it comes first, and that it ran is told behind."""
        running = record(TaskState.RUNNING, agent="old@a")

        found = explain(facts(agent(running=2), record=running))

        assert [CauseKind.ALL_BUSY, CauseKind.RUNNING_ON_LOST_AGENT] == [cause.kind for cause in found.causes]

    def test_retrying(self) -> None:
        """Between attempts it tells until when, and why; then what keeps it from the next one."""
        retrying = record(TaskState.RETRYING, attempt=2, error="OSError: full", not_before=ago(-90))

        found = explain(facts(agent(), record=retrying, place=Delayed(ago(-90))))

        assert CauseKind.WAITS_FOR_RETRY is found.causes[0].kind
        assert ("OSError: full", ago(-90)) == (found.causes[0].error, found.causes[0].until)
        assert found.wait is not None
        assert 90 == found.wait.seconds
        again = explain(facts(record=retrying))
        assert [CauseKind.NO_AGENT_ALIVE, CauseKind.WAITS_FOR_RETRY] == [cause.kind for cause in again.causes]

    def test_place_and_time(self) -> None:
        """The place counts from 1, and a delayed task waits since it was due."""
        due = record(not_before=ago(30), history=(HistoryEntry(state=TaskState.SUBMITTED, at=ago(130)),))

        assert (3, 3, ago(130)) == _standing(explain(facts()))
        assert ago(30) == explain(facts(record=due)).since
        assert (None, 3) == _standing(explain(facts(place=Leased("text", started=False, kept=False))))[:2]

    def test_dead_letters(self) -> None:
        """The reason of the dead letter comes before the failure that was made of it."""
        failed = record(TaskState.FAILED, error="NotRegistered: shop.index")

        found = explain(facts(agent(), record=failed, place=Buried("unregistered")))

        assert ["unregistered", "NotRegistered: shop.index"] == [cause.error for cause in found.causes]

    @pytest.mark.parametrize("reason", ["permanent", "exhausted"])
    def test_a_failure_of_its_own(self, reason: str) -> None:
        """A task that failed by itself has failed first of all; that its message is kept comes second."""
        failed = record(TaskState.FAILED, error="ValueError: no")

        found = explain(facts(agent(), record=failed, place=Buried(reason)))

        assert [CauseKind.FAILED, CauseKind.DEAD_LETTERED] == [cause.kind for cause in found.causes]


def _standing(found: Explanation) -> tuple[object, ...]:
    return found.position, found.depth, found.since


class TestFollowers:
    def _waiting(self, link: Link, *states: TaskState | None, sent: Parent | None = None) -> Facts:
        parents = tuple(
            Parent(f"p{number}", "shop.add", state, "E: 1" if state is TaskState.FAILED else None)
            for number, state in enumerate(states)
        )
        awaited = Awaited("shop.index", link, tuple(one.task_id for one in parents))
        return facts(record=None, place=None, queue=None, depth=None, awaited=awaited, parents=parents, sent=sent)

    def test_a_parent(self) -> None:
        """The one before it is named, with where it stands."""
        kind, text = first(self._waiting(Link.CHAIN, TaskState.RUNNING))

        assert CauseKind.WAITS_FOR_PARENT is kind
        assert text == "It follows shop.add p0, which is running. Ask about that one: orchestra explain p0"

    def test_a_parent_that_waits_itself(self) -> None:
        """Further back in a chain, the one is named that was sent."""
        sent = Parent("p9", "shop.first", TaskState.SUBMITTED)

        cause = explain(self._waiting(Link.CHAIN, None, sent=sent)).causes[0]

        assert ("p0", "p9") == cause.tasks
        assert "which is not sent yet; before that, shop.first p9 waits. Ask about that one" in cause.text

    @pytest.mark.parametrize("state", [TaskState.FAILED, TaskState.CANCELLED, TaskState.EXPIRED])
    def test_a_parent_that_ended_badly(self, state: TaskState) -> None:
        """What follows is never sent, however far back it is."""
        assert CauseKind.PARENT_ENDED is first(self._waiting(Link.CHAIN, state))[0]
        assert CauseKind.PARENT_ENDED is first(self._waiting(Link.CHORD, TaskState.RUNNING, state))[0]
        further = self._waiting(Link.CHAIN, None, sent=Parent("p9", "shop.first", state))
        assert ("p9",) == explain(further).causes[0].tasks

    def test_a_chord(self) -> None:
        """How many are done, and which are not."""
        cause = explain(self._waiting(Link.CHORD, TaskState.SUCCEEDED, TaskState.RUNNING, None)).causes[0]

        assert (CauseKind.WAITS_FOR_CHORD, ("p1", "p2")) == (cause.kind, cause.tasks)
        assert (
            "1 of 3 tasks of its chord are done. It waits for shop.add p1, which is running, and 1 other." in cause.text
        )
        assert "sent now" in first(self._waiting(Link.CHORD, TaskState.SUCCEEDED))[1]


class TestOthers:
    def test_a_task_type(self) -> None:
        """A new task would be the last of its queue."""
        found = explain(facts(agent(running=2), subject=Subject.TASK_TYPE, record=None, place=None))

        assert CauseKind.ALL_BUSY is found.causes[0].kind
        assert (None, None, "nlp", 3) == (found.state, found.position, found.requires, found.depth)
        assert found.wait is not None
        assert 4 / 2 * 1.5 == found.wait.seconds

    def test_unknown(self) -> None:
        """It is told what that may mean, or what is near it."""
        known: dict[str, Any] = {
            "subject": Subject.UNKNOWN,
            "record": None,
            "place": None,
            "queue": None,
            "depth": None,
        }

        assert "older than 7 days" in first(facts(**known, record_ttl_seconds=604_800.0))[1]
        near = explain(facts(**known, nearest=("shop.index",)))
        assert (Subject.UNKNOWN, CauseKind.UNKNOWN, ("shop.index",)) == (
            near.subject,
            near.causes[0].kind,
            near.nearest,
        )
        assert "near it: shop.index" in near.causes[0].text

    @given(
        st.sampled_from(TaskState),
        st.none()
        | st.builds(Queued, st.just("shop:nlp"), st.integers(0, 5), st.none() | st.just(ago(3)))
        | st.builds(Leased, st.sampled_from(["text", "x"]), started=st.booleans(), kept=st.booleans())
        | st.builds(Delayed, st.sampled_from([ago(5), ago(-5)]))
        | st.builds(Buried, st.text(max_size=5)),
        st.lists(st.sampled_from([agent(), agent("b", "gpu"), agent("c", **LOST)]), max_size=3, unique_by=id),
    )
    def test_anything(self, state: TaskState, place: Place | None, agents: list[Any]) -> None:
        """Whatever is found there's a cause, and words for it."""
        found = explain(facts(*agents, record=record(state), place=place))

        assert found.causes
        assert all(cause.text for cause in found.causes)
        assert str(found)
        assert found.at == NOW
