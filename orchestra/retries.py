"""Where the retries of a whole fleet are counted, and put off when there are too many."""

import time
from collections.abc import Callable
from threading import Lock
from typing import NamedTuple

from orchestra.exceptions import AgentOrchestraException
from orchestra.logging_utils import get_logger
from orchestra.retry_budget import RetryBudget
from orchestra.store import Store, text_of

__all__ = ["RetryBudgets", "Spent"]

log = get_logger(__name__)


class Spent(NamedTuple):
    """By how many seconds a retry is put off, and how many retries per second its budget allows at the time."""

    put_off_seconds: float
    rate_per_second: float


class RetryBudgets:
    """
    The budgets of one fleet's tasks.

    First attempts are counted where they begin, in `start.lua`. A retry takes its place in the window in which it
    will be due, not in the one in which it's sent, so that tasks whose service told all of them to come back in a
    minute don't come back together. All windows are those of Redis's clock.

    Args:
        store: the fleet's Redis.
        now: a clock in seconds, for the pace of the log alone.

    """

    def __init__(self, store: Store, *, now: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._now = now
        self._quiet: dict[str, tuple[float, int]] = {}  # task -> until when nothing is said, and of how many
        self._lock = Lock()

    def counting(self, task_name: str, budget: RetryBudget) -> str:
        """Return what `start.lua` takes to count a first attempt."""
        return f"{budget.window_ms} {self._store.keys.first_attempts(task_name)}"

    def put_off_seconds(self, task_name: str, budget: RetryBudget, delay_seconds: float) -> float:
        """
        Take a place for a retry that would be due in `delay_seconds`; return how much longer it's to wait.

        While Redis can't be asked there's no budget, and the answer is 0.
        """
        try:
            spent = self.spend(task_name, budget, delay_seconds)
        except AgentOrchestraException as error:
            log.warning("retry budget not asked", task=task_name, error=str(error))
            return 0.0
        if spent.put_off_seconds > 0:
            self._tell(task_name, budget, spent)
        return spent.put_off_seconds

    def spend(self, task_name: str, budget: RetryBudget, delay_seconds: float) -> Spent:
        """
        Take a place for a retry, as `put_off_seconds` does, and say nothing in the log.

        Raises:
            BrokerUnavailableError: Redis can't be reached.

        """
        keys = self._store.keys
        put_off, rate = self._store.run(
            "spend_retry",
            [keys.first_attempts(task_name), keys.retries(task_name)],
            [budget.ratio, budget.floor_per_second, budget.window_ms, delay_seconds],
        )
        return Spent(float(text_of(put_off)), float(text_of(rate)))

    def _tell(self, task_name: str, budget: RetryBudget, spent: Spent) -> None:
        """Log that a budget bites, once in a window; `count` is how many retries it put off since the last line."""
        with self._lock:
            until, count = self._quiet.get(task_name, (0.0, 0))
            quiet = self._now() < until
            self._quiet[task_name] = (until, count + 1) if quiet else (self._now() + budget.window_seconds, 0)
        if not quiet:
            log.warning(
                "retry put off",
                task=task_name,
                seconds=round(spent.put_off_seconds, 3),
                rate_per_second=spent.rate_per_second,
                count=count + 1,
            )
