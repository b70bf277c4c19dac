"""The settings that correctness rests on, and how a wrong one is told."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import click

from orchestra.exceptions import ConfigurationError, ValidationError

__all__ = [
    "DEFAULTS",
    "INVARIANTS",
    "check_invariants",
    "refuse_pickle",
    "refuse_serializer",
    "set_defaults",
    "told_plainly",
]

INVARIANTS: Final[Mapping[str, Any]] = {
    "accept_content": ["json"],
    "task_serializer": "json",
    "result_serializer": "json",
    "task_reject_on_worker_lost": True,
    "worker_consumer": "orchestra.request:OrchestraConsumer",
}


DEFAULTS: Final[Mapping[str, Any]] = {
    "task_acks_late": True,
    "worker_prefetch_multiplier": 64,  # an upper bound only: how many to fetch is measured
}


def set_defaults(conf: Any) -> None:
    """Set what serves us better than Celery's defaults, where the project's configuration doesn't say."""
    for name, value in DEFAULTS.items():
        if not conf.value_set_for(name):
            conf[name] = value


def check_invariants(conf: Any) -> None:
    """
    Refuse settings that differ from the invariants; `conf` is Celery's.

    Raises:
        ConfigurationError: it names the setting, its value and what is needed.

    """
    for name, value in INVARIANTS.items():
        if conf[name] != value:
            message = f"The setting {name} is {conf[name]!r}, and Orchestra needs {value!r}: remove the override."
            raise ConfigurationError(message)


def refuse_pickle(conf: Any) -> None:
    """Refuse a project's configuration that names pickle; the ConfigurationError says what to change."""
    for setting in ("task_serializer", "result_serializer", "accept_content", "result_accept_content"):
        named = conf[setting]
        if "pickle" in ([named] if isinstance(named, str) else named or ()):
            message = (
                f"The setting {setting} names pickle, which runs code from whoever can write to Redis; Orchestra takes "
                "JSON only. Remove the setting, and pass ids or JSON values to the tasks that relied on it."
            )
            raise ConfigurationError(message)


def refuse_serializer(name: str, options: Mapping[str, Any]) -> None:
    """Refuse what agents would discard; a queue that the caller names may be one of other workers."""
    serializer = options.get("serializer")
    if serializer not in {None, "json"} and options.get("queue") is None:
        message = (
            f"{name} was not submitted: serializer={serializer!r}; agents take JSON only and would discard it. "
            "Leave the option out."
        )
        raise ValidationError(message)


@contextmanager
def told_plainly() -> Iterator[None]:
    """End a `celery` command with one line, where a wrong setting would make it show a trace."""
    try:
        yield
    except (ConfigurationError, ValidationError) as error:
        if click.get_current_context(silent=True) is None:
            raise
        raise click.UsageError(str(error)) from error
