"""What a server keeps, and what has grown."""

from collections import Counter
from collections.abc import Iterator

import pytest
from redis import Redis

from tests.chaos.leak import grown
from tests.chaos.memory import Memory, families, without_history


@pytest.fixture
def client(redis_url: str) -> Iterator[Redis]:
    """Give a client of the test's own."""
    with Redis.from_url(redis_url) as client:
        yield client


class TestKeys:
    def test_families(self, client: Redis) -> None:
        """Keys that differ by an id alone are of one family."""
        for task_id in ("3c88c64e-ec5e-4b6f-a36c-dc9720b90fb2", "7366a197-1eb9-4990-9074-46bd387a7d01"):
            client.set(f"orchestra:{{chaos}}:task:{task_id}", 1)
            client.set(f"celery-taskset-meta-{task_id}.c", 1)
        client.set("orchestra:{chaos}:queues", 1)

        assert 2 == families(client)["orchestra:{chaos}:task:----"]
        assert 2 == families(client)["celery-taskset-meta-----.c"]
        assert 1 == families(client)["orchestra:{chaos}:queues"]

    def test_history_can_go(self, client: Redis) -> None:
        """Results and records go, which would go by themselves; the rest stays."""
        client.mset({f"celery-task-meta-{number}": 1 for number in range(2500)})
        client.mset({"orchestra:{chaos}:task:1": 1, "orchestra:{chaos}:queues": 1})

        without_history(client)

        assert Counter({"orchestra:{chaos}:queues": 1}) == families(client)


def test_growth_is_that_of_the_worst() -> None:
    """Of several agents the one counts that has grown most."""
    first = Memory(main={"one": 10, "two": 10}, all={"one": 30, "two": 30}, server=100)
    last = Memory(main={"one": 11, "two": 15}, all={"one": 38, "two": 30}, server=90)

    assert {"main": 5, "all": 8, "server": -10} == grown([first, Memory(main={}, all={}, server=0), last])
