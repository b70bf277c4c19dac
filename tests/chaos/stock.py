"""Stock Celery with the settings that lose least; its processes never load ours."""

from collections.abc import Mapping
from typing import Any, Final

from celery import Celery

from tests.chaos.tasks import declare

__all__ = ["WORKER_OPTIONS", "make_app"]

WORKER_OPTIONS: Final[tuple[str, ...]] = ()

_VISIBILITY_SECONDS: Final = 5
_LIMITS: Final = {"soft_time_limit": 2, "time_limit": 4}  # seconds
_CALLS: Final = {"autoretry_for": (ConnectionError,), "max_retries": None, "default_retry_delay": 1}
_SETTINGS: Final[dict[str, Any]] = {
    "task_acks_late": True,
    "task_reject_on_worker_lost": True,
    "worker_prefetch_multiplier": 1,
    "worker_deduplicate_successful_tasks": True,
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
    "broker_transport_options": {
        "visibility_timeout": _VISIBILITY_SECONDS,
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
        "unacked_restore_limit": None,
        "unacked_mutex_expire": _VISIBILITY_SECONDS,
        "socket_timeout": 5,  # else a connection that falls silent is waited for without end
        "socket_connect_timeout": 5,
        "health_check_interval": 3,
    },
    "redis_socket_timeout": 5,
    "redis_socket_connect_timeout": 5,
    "result_backend_always_retry": True,
    "task_publish_retry_policy": {
        "max_retries": None,  # until it's accepted
        "interval_start": 0.1,
        "interval_step": 0.1,
        "interval_max": 1.0,
    },
}


def make_app(url: str, options: Mapping[str, Any], settings: Mapping[str, Any]) -> Any:  # Celery; untyped as ours is
    """Make the app; agents and the producer each have their own."""
    del settings  # which are ours
    app: Any = Celery("chaos", broker=url, backend=url, set_as_current=False)
    app.conf.update(_SETTINGS)
    app.conf.broker_transport_options = {**app.conf.broker_transport_options, **options}
    app.conf.result_backend_transport_options = dict(options)
    declare(app, limits=_LIMITS, calls=_CALLS)
    return app
