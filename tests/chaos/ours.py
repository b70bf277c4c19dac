"""Agent Orchestra with its plain defaults."""

from collections.abc import Mapping
from typing import Any, Final

from orchestra.app import OrchestraCelery
from orchestra.breaker_policy import Breaker
from orchestra.config import load_settings
from tests.chaos.tasks import declare

__all__ = ["WORKER_OPTIONS", "make_app"]

WORKER_OPTIONS: Final = ("--capabilities", "chaos")

_LIMITS: Final = {"timeout": 2.0}
_CALLS: Final = {"breaker": Breaker("chaos", cooldown=2.0), "max_attempts": 10}


def make_app(url: str, options: Mapping[str, Any], settings: Mapping[str, Any]) -> Any:  # OrchestraCelery, as below
    """Make the app; agents and the producer each have their own."""
    app: Any = OrchestraCelery(  # whose tasks' options Celery's types don't know
        "chaos",
        broker=url,
        set_as_current=False,
        changes={"broker_transport_options": dict(options)},
        settings=load_settings(**settings),
    )
    declare(app, limits=_LIMITS, calls=_CALLS, requires={"chaos"})
    return app
