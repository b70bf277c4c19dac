"""What one submission costs, counted rather than timed, so that it can't grow unseen."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from orchestra.orchestra import Orchestra
from tests.fleets import app_at, commands_at

# Calls of Python's and C's functions for one warm submission, a tenth above what they were when they were counted (with
# Python 3.11: 435 for a delay, 504 for a submit, 146 for each task of a batch; Celery's own way takes 1,399).
# A bound that has to rise is a submission that costs more: say in the commit what for.
MOST_OF_A_DELAY = 480
MOST_OF_A_SUBMIT = 555
MOST_OF_A_BATCH = 160  # for each of its tasks
WARM, COUNTED = 20, 50


@pytest.fixture
def app(redis_url: str) -> Iterator[Any]:
    """Give an app with a task that requires something and has its hints enforced."""
    with app_at(redis_url) as app:

        @app.task(name="shop.index", requires={"nlp"}, max_queue_depth=1_000_000, shared=False)
        def index(x: int, y: str) -> None:
            pass

        yield app


def _calls(act: Callable[[], object]) -> float:
    """Return how many functions one act calls, on the average of many in a warm process."""
    for _ in range(WARM):
        act()
    counted: Counter[str] = Counter()

    def count(_frame: object, event: str, _argument: object) -> None:
        counted[event] += 1

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        for _ in range(COUNTED):
            act()
    finally:
        sys.setprofile(before)
    return (counted["call"] + counted["c_call"]) / COUNTED


class TestCalls:
    def test_of_a_delay(self, app: Any) -> None:
        """A delay calls no more functions than it did."""
        index = app.tasks["shop.index"]

        assert MOST_OF_A_DELAY >= _calls(lambda: index.delay(1, "two"))

    def test_of_a_submit(self, app: Any) -> None:
        """Nor does the engine's submit."""
        orchestra = Orchestra(app)

        assert MOST_OF_A_SUBMIT >= _calls(lambda: orchestra.submit("shop.index", {"x": 1, "y": "two"}))

    def test_of_a_batch(self, app: Any) -> None:
        """Nor does each task of a batch."""
        orchestra, payloads = Orchestra(app), [{"x": 1, "y": "two"}] * 100

        assert MOST_OF_A_BATCH >= _calls(lambda: orchestra.submit_many("shop.index", payloads)) / len(payloads)

    def test_celerys_way_is_told_apart(self, app: Any) -> None:
        """A call that isn't filled into a template is far above the bound, so that one who lost his way is found."""
        index = app.tasks["shop.index"]

        assert 2 * MOST_OF_A_DELAY < _calls(lambda: index.apply_async((1, "two"), headers={"own": 1}))


class TestCommands:
    def test_one_for_each_submission(self, app: Any, redis_url: str) -> None:
        """Ten warm submissions are ten commands, each waited for once, and nothing is subscribed to."""
        index, orchestra = app.tasks["shop.index"], Orchestra(app)
        index.delay(1, "two")

        with commands_at(redis_url) as commands:
            results = [index.delay(1, "two") for _ in range(5)]
            handles = [orchestra.submit("shop.index", {"x": 1, "y": "two"}) for _ in range(5)]
            ids = {one.id for one in [*results, *handles]}
            del results, handles

        assert ["EVALSHA"] * 10 == [command.split()[0] for command in commands]
        assert 10 == len(ids)

    def test_one_for_five_hundred(self, app: Any, redis_url: str) -> None:
        """A batch of a thousand is two commands."""
        orchestra = Orchestra(app)
        orchestra.submit_many("shop.index", [{"x": 1, "y": "two"}])

        with commands_at(redis_url) as commands:
            orchestra.submit_many("shop.index", [{"x": 1, "y": "two"}] * 1_000)

        assert ["EVALSHA"] * 2 == [command.split()[0] for command in commands]
