"""What a task may ask, and have done, while it runs."""

from typing import Any

from orchestra.cancellation import Look
from orchestra.effects import Effect, once
from orchestra.exceptions import ValidationError
from orchestra.types import JSONValue

__all__ = ["WhileRunning"]


class WhileRunning:
    """Mixed into every task."""

    app: Any  # OrchestraCelery, which is built on this
    name: Any  # the task's
    request: Any  # of the run

    @property
    def cancelled(self) -> bool:
        """
        Whether somebody has cancelled the task that runs: for long tasks to look at now and then, and return.

        Redis is asked once a second at most. What a task returns or raises after it has seen this is dropped.
        """
        request: Any = self.request
        if request.called_directly or request.is_eager:
            return False
        request.look = getattr(request, "look", None) or Look(self.app.store, request.id)
        return bool(request.look())

    def once(self, name: str, effect: Effect) -> JSONValue:
        """
        Carry out an effect in the fleet's Redis once, however often the task that runs is run; return its value.

        `effect` gets a pipeline of redis-py, puts commands on it, and returns a JSON value, which later runs get
        without its being called. It may be called more than once itself; its commands take effect once, in one
        transaction with the note of it. `name` tells a task's effects apart.

        Raises:
            FencedError: a later run of the task has taken over. Let it pass: this run is dropped.
            ValidationError: the value is no JSON, or no task runs.

        """
        task_id: Any = self.request.id
        if task_id is None:
            message = f"{self.name} was called as a function, so it has no id by which an effect is remembered."
            raise ValidationError(message)
        return once(self.app.store, task_id, name, effect, ttl_seconds=self.app.settings.state_ttl_seconds)
