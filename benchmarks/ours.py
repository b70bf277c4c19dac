"""The same fleet on Orchestra, and what only Orchestra's tasks can declare."""

from typing import Any, Final

from benchmarks.tasks import declare
from orchestra.app import OrchestraCelery

__all__ = ["SKILLS", "app", "bare", "declare_ours", "declare_skilled", "enforced", "requiring", "skilled"]

SKILLS: Final = 256


def _hinted(x: int, y: str) -> None:
    """Do nothing."""


def declare_ours(app: Any) -> tuple[Any, Any, Any]:  # OrchestraCelery, whose tasks' options Celery's types don't know
    """Declare the tasks without hints, with enforced ones, and with a requirement, and return them in this order."""
    return (
        declare(app),
        app.task(name="enforced", max_attempts=4, shared=False)(_hinted),
        app.task(name="requiring", requires={"nlp"}, shared=False)(_hinted),
    )


def declare_skilled(app: Any, count: int) -> list[Any]:  # OrchestraCelery, and its tasks
    """Declare so many tasks, each with a requirement of its own."""
    return [
        app.task(name=f"skilled{number}", requires={f"skill{number}"}, shared=False)(_hinted) for number in range(count)
    ]


app: Any = OrchestraCelery("ours", set_as_current=False)
app.config_from_object("benchmarks.settings")
bare, enforced, requiring = declare_ours(app)
skilled = declare_skilled(app, SKILLS)
