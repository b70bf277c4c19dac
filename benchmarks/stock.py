"""The fleet of stock Celery; its processes never load ours."""

from typing import Any

from celery import Celery

from benchmarks.tasks import declare

__all__ = ["app", "bare"]

app: Any = Celery("stock", set_as_current=False)
app.config_from_object("benchmarks.settings")
app.conf.update(  # what loses least, beside what both sides share
    worker_prefetch_multiplier=1,
    worker_deduplicate_successful_tasks=True,
    result_backend_always_retry=True,
    broker_connection_retry_on_startup=True,
)
bare = declare(app)
