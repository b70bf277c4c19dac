"""What goes the short way, run by a stock worker: filled into a template, a message is Celery's own."""

from typing import Any

import pytest

from orchestra import Orchestra, OrchestraCelery
from orchestra.store import load_script
from tests.fleets import commands_at
from tests.integration.agents import Agents

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

STOCK = """
from celery import Celery

app = Celery("stock")


@app.task(name="fleet.echo", bind=True, shared=False)
def echo(self, *args, **kwargs):
    told = self.request
    return [args, kwargs, told.id == told.correlation_id == told.root_id, told.parent_id, told.timelimit, told.argsrepr]
"""
ARGUMENTS: list[tuple[list[Any], dict[str, Any]]] = [
    ([], {}),
    ([1, "two", None, 2.5, True], {"x": 'it\'s 100 %s \\ "quoted" 日本'}),
    ([[1, {"deep": [2, [3]]}]], {"many": ["x" * 2_000]}),
]


def test_a_stock_worker_runs_it(fleet: Agents, sender: OrchestraCelery, redis_url: str) -> None:
    """Single and in a batch, whatever the arguments, and the results are read as ever."""
    fleet.write_app(STOCK, module="stock")
    environment = {"CELERY_BROKER_URL": redis_url, "CELERY_RESULT_BACKEND": redis_url}
    fleet.start("-c", "1", name="stock", module="stock", wait=False, **environment).wait_for(" ready.")
    own: Any = sender

    @own.task(name="fleet.echo", shared=False)
    def echo(*args: Any, **kwargs: Any) -> None:
        pass

    task: Any = own.tasks["fleet.echo"]
    task.delay().get(timeout=30)

    with commands_at(redis_url) as commands:
        results = [task.apply_async(args, kwargs, time_limit=50) for args, kwargs in ARGUMENTS]
        handles = Orchestra(sender).submit_many("fleet.echo", [{"number": number} for number in range(20)])
        for (args, kwargs), result in zip(ARGUMENTS, results, strict=True):
            *echoed, is_root, parent, limits, shown = result.get(timeout=30)
            assert [args, kwargs] == echoed
            assert (True, None, [50, None]) == (is_root, parent, limits)
            assert shown.startswith("(")
        assert [[[], {"number": number}] for number in range(20)] == [one.get(timeout=30)[:2] for one in handles]

    short = load_script("submit").sha
    assert len(ARGUMENTS) + 1 == sum(command.startswith(f"EVALSHA {short}") for command in commands)
