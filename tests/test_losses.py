"""What an agent makes of lost processes and of memory that ran out."""

from types import SimpleNamespace
from typing import Any

import pytest
from billiard.exceptions import WorkerLostError

from orchestra.exceptions import PermanentError
from orchestra.leases import Told
from orchestra.losses import as_info, error_in, is_process_loss, poison_of, survivable, told_of
from tests.fleets import app_at

NOWHERE = "redis://127.0.0.1:1/0"


class TestSurvivable:
    def test_memory(self) -> None:
        """A MemoryError, which Celery would raise in the agent, becomes the task's failure, and says why."""
        error = error_in(survivable(as_info(MemoryError("x"))))

        assert isinstance(error, PermanentError)
        assert "The task ran out of memory: x" == str(error)

    @pytest.mark.parametrize("error", [KeyError("x"), WorkerLostError("gone"), RecursionError()])
    def test_others_stay(self, error: Exception) -> None:
        """What doesn't end an agent is as it was."""
        info = as_info(error)

        assert info is survivable(info)
        assert error is error_in(info)


class TestProcessLoss:
    @pytest.mark.parametrize(
        ("error", "lost"),
        [(WorkerLostError(), True), (SystemExit(1), True), (KeyboardInterrupt(), True), (KeyError(), False)],
    )
    def test_by_what_a_pool_reports(self, error: BaseException, lost: bool) -> None:
        """A process is lost, or on its way out; a failure of code isn't that."""
        assert lost == is_process_loss(error)


class TestPoison:
    @staticmethod
    def request_of(told: Told | None, **options: Any) -> Any:
        """Give a request for a task with these options."""
        with app_at(NOWHERE) as app:
            task = app.task(name="shop.risky", shared=False, **options)(_nothing)
        message = SimpleNamespace() if told is None else SimpleNamespace(told=told)
        return SimpleNamespace(message=message, task=task, app=app, id="7c9e")

    @pytest.mark.parametrize(
        ("told", "options", "dead"),
        [
            (None, {}, False),
            (Told(3, lost_processes=3), {}, False),
            (Told(4, lost_processes=4), {}, True),
            (Told(9, lost_processes=3, lost_agents=10), {}, False),
            (Told(11, lost_agents=11), {}, True),
            (Told(20), {}, False),  # given back by agents that stopped
            (Told(1, lost_processes=1), {"max_lost_processes": 0}, True),
            (Told(8, lost_processes=8), {"max_lost_processes": 8}, False),
            (Told(1, lost_agents=1), {"max_lost_agents": 0}, True),
            (Told(1, lost_processes=1), {"max_lost_agents": 0}, False),
        ],
    )
    def test_past_its_bounds(self, told: Told | None, options: dict[str, Any], dead: bool) -> None:
        """Processes and agents are bounded apart from each other, by the task or else by the settings."""
        assert dead == (poison_of(self.request_of(told, **options)) is not None)

    def test_says_what_to_do(self) -> None:
        """The error tells what was lost, what is allowed and where the message is."""
        error = poison_of(self.request_of(Told(6, lost_processes=4, lost_agents=2)))

        assert error is not None
        assert (
            "shop.risky isn't tried again: 4 processes and 2 agents were lost while it ran, and 3 and 10 are allowed. "
            "Its message is kept: orchestra dead show 7c9e"
        ) == str(error)
        assert ("7c9e", "7c9e", 4, 2) == (error.task_id, error.letter, error.lost_processes, error.lost_agents)

    def test_of_a_foreign_message(self) -> None:
        """Of a message that came by another transport nothing is told."""
        assert Told() == told_of(SimpleNamespace())


def _nothing() -> None: ...
