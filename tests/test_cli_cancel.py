"""`orchestra cancel`."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestra.orchestra import Orchestra
from orchestra.types import TaskState
from tests.command_line import Shop, invoke, shop_at


@pytest.fixture
def shop(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    """Give a project whose agents run nowhere."""
    with shop_at(redis_url, tmp_path, monkeypatch) as shop:
        yield shop


class TestCancel:
    def test_tells_what_each_was_doing(self, shop: Shop) -> None:
        """Each task has its line, and the record says where the cancellation came from."""
        orchestra = Orchestra(shop.app)
        waiting = orchestra.submit("shop.index", {"text": "a"})
        delayed = orchestra.submit("shop.index", {"text": "a"}, countdown=60)

        result = invoke("cancel", waiting.id, delayed.id)

        assert 0 == result.exit_code
        assert [f"{waiting.id}  cancelled; it was waiting", f"{delayed.id}  cancelled; it was delayed"] == (
            result.stdout.splitlines()
        )
        assert (TaskState.CANCELLED, "from the command line") == (waiting.state, waiting.history()[-1].note)

    def test_what_cannot_be_cancelled(self, shop: Shop) -> None:
        """A task that is finished, or that nothing is known of, is exit code 1; the others are cancelled."""
        orchestra = Orchestra(shop.app)
        waiting, done = (orchestra.submit("shop.index", {"text": "a"}) for _ in range(2))
        shop.app.state.advance(done.id, TaskState.SUCCEEDED)

        result = invoke("cancel", done.id, waiting.id, "nobody", "--json")

        assert 1 == result.exit_code
        assert {done.id: "finished", waiting.id: "waiting", "nobody": "unknown"} == json.loads(result.stdout)

    def test_needs_an_id(self, shop: Shop) -> None:
        """Without an id it's a wrong call."""
        assert 2 == invoke("cancel").exit_code
