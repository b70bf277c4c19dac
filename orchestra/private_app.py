"""An app for one test, whose tasks no other app of the process gets."""

from typing import Any

from orchestra.app import OrchestraCelery
from orchestra.config import settings_from

__all__ = ["PrivateApp"]


class PrivateApp(OrchestraCelery):
    """
    An app at `url` whose tasks are its own; Celery would give them to every app that the process makes later.

    What other apps of the process share, it has too. Its settings know nothing of the environment, and let nothing
    take long. It never is the current app.
    """

    def __init__(self, url: str, *, name: str = "tests", **options: Any) -> None:  # Celery's own
        settings = settings_from({"beat_seconds": 0.2, "connect_timeout_seconds": 2.0})
        super().__init__(name, broker=url, set_as_current=False, settings=settings, **options)

    def task(self, *args: Any, **options: Any) -> Any:
        """Make a task, as every app does, but for this one alone."""
        return super().task(*args, **{"shared": False, **options})
