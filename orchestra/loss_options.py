"""What a task may declare of the losses that it's allowed, and of its dead letters."""

from collections.abc import Mapping
from typing import Any, Final

from orchestra.exceptions import ConfigurationError

__all__ = ["LOSS_OPTIONS", "check_loss_options"]

LOSS_OPTIONS: Final = ("max_lost_processes", "max_lost_agents", "dead_letters")


def check_loss_options(task_name: str, options: Mapping[str, Any]) -> None:
    """
    Refuse what makes no sense, naming task, option and what is allowed.

    Raises:
        ConfigurationError: an option's value isn't one that it may have.

    """
    for option in ("max_lost_processes", "max_lost_agents"):
        given = options.get(option)
        if given is not None and (isinstance(given, bool) or not isinstance(given, int) or given < 0):
            message = f"Task {task_name}: {option}={given!r}; a whole number of at least 0 is allowed."
            raise ConfigurationError(message)
    if not isinstance(options.get("dead_letters"), bool | None):
        message = f"Task {task_name}: dead_letters={options['dead_letters']!r}; True or False is allowed."
        raise ConfigurationError(message)
