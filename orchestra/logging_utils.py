"""Structured logging: an event is a past fact with fields, sent through Python's own logging."""

import json
import logging
from collections.abc import MutableMapping
from typing import Any, cast

import structlog

__all__ = ["get_logger"]


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """
    Return a logger whose events become records of `logging.getLogger(name)`.

    Handlers and levels are the application's, so that an app that uses Orchestra as a library stays in charge.
    """
    logger = structlog.wrap_logger(
        logging.getLogger(name),
        wrapper_class=structlog.stdlib.BoundLogger,
        processors=[structlog.stdlib.filter_by_level, structlog.processors.format_exc_info, _as_text],
        context_class=dict,
        cache_logger_on_first_use=True,
    )
    return cast("structlog.stdlib.BoundLogger", logger)


def _as_text(_: Any, __: str, event: MutableMapping[str, Any]) -> str:  # structlog's signature
    """Write an event as `what happened: field=value field=value`."""
    trace = event.pop("exception", None)
    text = str(event.pop("event"))
    fields = " ".join(f"{name}={_one_word(value)}" for name, value in event.items())
    line = f"{text}: {fields}" if fields else text
    return f"{line}\n{trace}" if trace else line


def _one_word(value: object) -> str:
    """Quote what holds white space, so that a value can neither look like a field nor like a line of its own."""
    text = str(value)
    return text if text and not any(map(str.isspace, text)) else json.dumps(text, ensure_ascii=False)
