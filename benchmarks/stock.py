"""The fleet of stock Celery; its processes never load ours."""

from typing import Any

from celery import Celery

from benchmarks.tasks import declare

__all__ = ["app", "bare"]

app: Any = Celery("stock", set_as_current=False)
app.config_from_object("benchmarks.settings")
bare = declare(app)
