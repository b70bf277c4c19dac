"""The systems that the faults are struck at, by name."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Final

__all__ = ["BROKER_VARIABLE", "OPTIONS_VARIABLE", "SYSTEMS", "SYSTEM_VARIABLE", "app_of", "worker_options"]

SYSTEMS: Final = ("ours", "stock")
SYSTEM_VARIABLE: Final = "CHAOS_SYSTEM"
OPTIONS_VARIABLE: Final = "CHAOS_OPTIONS"  # of the transport, as JSON
BROKER_VARIABLE: Final = "ORCHESTRA_BROKER_URL"


def app_of(system: str, url: str, options: Mapping[str, Any], settings: Mapping[str, Any]) -> Any:  # Celery or ours
    """Make an app of this system, with options of the transport and, for ours, settings; only its module is loaded."""
    return import_module(f"tests.chaos.{system}").make_app(url, options, settings)


def worker_options(system: str) -> tuple[str, ...]:
    """Return what `celery worker` is told besides."""
    options: tuple[str, ...] = import_module(f"tests.chaos.{system}").WORKER_OPTIONS
    return options
