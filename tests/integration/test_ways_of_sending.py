"""Every way of sending is routed by requirement: delay, by name, canvas, retry, beat, per call."""

from typing import Any

import pytest
from celery import chain, chord, group

from orchestra import Orchestra, OrchestraCelery, TaskState
from orchestra.exceptions import ValidationError
from tests.integration.agents import Agents, wait_until

pytestmark = pytest.mark.integration

APP = """
import os
from functools import partial
from celery import Task
from orchestra import OrchestraCelery, RetryableError

app = OrchestraCelery("fleet")
task = partial(app.task, shared=False)  # the tests import several such modules into one process


@task(requires={"gpu"})
def on_gpu(value: int = 0) -> list[int]:
    return [os.getpid(), value]


@task(requires={"nlp"})
def on_nlp(value: object = None) -> list[int]:
    return [os.getpid(), 0]


@task()
def general(value=None):
    return [os.getpid(), 0]


@task(requires={"nlp"})
def add(x: int, y: int) -> int:
    return x + y


@task(requires={"gpu"})
def pids(values: list[list[int]]) -> dict[str, list[int]]:
    return {"parts": [pid for pid, _ in values], "body": [os.getpid()]}


@task(bind=True, requires={"gpu"}, max_attempts=3)
def retried(self) -> list[object]:
    if self.request.retries == 0:
        raise RetryableError("once more", retry_after=0.2)
    return [os.getpid(), self.request.id, self.request.delivery_info["routing_key"]]


@task(bind=True, requires={"gpu"})
def replaced(self) -> int:
    raise self.replace(on_nlp.s())


class Custom(Task):
    def __call__(self, *args, **kwargs):
        return ["custom", super().__call__(*args, **kwargs)]


@task(base=Custom, requires={"nlp"})
def based() -> int:
    return os.getpid()


app.conf.beat_schedule = {
    "tick": {"task": "fleet.on_gpu", "schedule": 0.3, "options": {"requires": {"gpu", "nlp"}}},
}
"""

SHARED = """
import os
from celery import shared_task
from orchestra import OrchestraCelery

app = OrchestraCelery("fleet")


@shared_task(name="shared", requires={"nlp", "gpu"})
def shared() -> int:
    return os.getpid()
"""


@pytest.fixture
def pair(fleet: Agents) -> tuple[int, int]:
    """Start one agent with a GPU and one for texts; give their process ids."""
    fleet.write_app(APP)
    gpu = fleet.start("--capabilities", "gpu,general", name="gpu", wait=False)
    nlp = fleet.start("--capabilities", "nlp", name="nlp", wait=False)
    gpu.wait_for("agent joined")
    nlp.wait_for("agent joined")
    return gpu.process.pid, nlp.process.pid


@pytest.fixture
def tasks(pair: tuple[int, int], imported: Any) -> Any:
    """Give the app's module, imported into this process."""
    return imported()


class TestSingle:
    """One task at a time."""

    def test_delay_and_apply_async(self, pair: tuple[int, int], tasks: Any) -> None:
        """A task runs where its declaration says, or where the call does."""
        gpu, nlp = pair

        assert [gpu, 7] == tasks.on_gpu.delay(7).get(timeout=20)
        assert [nlp, 0] == tasks.on_nlp.delay().get(timeout=20)
        assert [gpu, 0] == tasks.general.delay().get(timeout=20)
        assert [nlp, 0] == tasks.general.apply_async(requires={"nlp"}).get(timeout=20)
        assert [nlp, 0] == tasks.on_nlp.signature().set(requires={"nlp"}).apply_async().get(timeout=20)

    def test_by_name_from_a_process_without_the_code(self, pair: tuple[int, int], sender: OrchestraCelery) -> None:
        """The catalogue tells what a task requires, and what arguments it takes."""
        gpu, nlp = pair

        assert [nlp, 0] == sender.send_task("fleet.on_nlp").get(timeout=20)
        assert [gpu, 3] == sender.send_task("fleet.on_gpu", args=(3,)).get(timeout=20)
        assert [gpu, 3] == Orchestra(sender).submit("fleet.on_gpu", {"value": 3}).get(timeout=20)
        with pytest.raises(ValidationError, match="value"):
            sender.send_task("fleet.on_gpu", kwargs={"value": "three"})

    def test_task_bases(self, pair: tuple[int, int], tasks: Any) -> None:
        """A project's own base keeps its behaviour, on top of ours."""
        assert ["custom", pair[1]] == tasks.based.delay().get(timeout=20)

    def test_shared_tasks(self, fleet: Agents, imported: Any) -> None:
        """`@shared_task(requires=…)` is routed by the app that takes it up."""
        fleet.write_app(SHARED)
        fleet.start("--capabilities", "gpu", name="gpu")
        both = fleet.start("--capabilities", "gpu,nlp", name="both")
        module = imported()

        assert both.process.pid == module.app.tasks["shared"].delay().get(timeout=20)

    def test_a_retry_is_routed_from_its_requirement(self, pair: tuple[int, int], tasks: Any) -> None:
        """It keeps its id; the requirement of the call stays with it."""
        gpu, nlp = pair

        result = tasks.retried.delay()
        assert [gpu, result.id, "fleet:gpu"] == result.get(timeout=20)
        result = tasks.retried.apply_async(requires="nlp")
        assert [nlp, result.id, "fleet:nlp"] == result.get(timeout=20)

        record = tasks.app.state.read(result.id)
        assert (TaskState.SUCCEEDED, 2, "nlp@test") == (record.state, record.attempt, record.agent)

    def test_replace_is_routed_by_the_new_task(self, pair: tuple[int, int], tasks: Any) -> None:
        """The task that takes another's place goes where it can run."""
        assert [pair[1], 0] == tasks.replaced.delay().get(timeout=20)


class TestCanvas:
    """Several tasks, each step routed."""

    def test_chain(self, pair: tuple[int, int], tasks: Any) -> None:
        """Each link runs on its own kind of agent."""
        assert [pair[1], 0] == chain(tasks.on_gpu.si(1), tasks.general.si(), tasks.on_nlp.s()).apply_async().get(
            timeout=20
        )

    def test_group_and_chord_with_sets_inside(self, pair: tuple[int, int], tasks: Any) -> None:
        """Requirements that were set as Python sets travel in nested signatures."""
        gpu, nlp = pair
        header = group(tasks.on_gpu.s(1), tasks.on_nlp.s(), tasks.general.s().set(requires={"nlp"}))

        found = chord(header, tasks.pids.s()).apply_async().get(timeout=20)
        nested = chain(tasks.general.si(), group(tasks.general.si().set(requires={"nlp"}), tasks.on_gpu.si(2)))

        assert {"parts": [gpu, nlp, nlp], "body": [gpu]} == found
        assert [[nlp, 0], [gpu, 2]] == nested.apply_async().get(timeout=20)

    def test_callbacks_are_routed(self, pair: tuple[int, int], tasks: Any) -> None:
        """A link runs where it can."""
        result = tasks.on_gpu.apply_async((1,), link=tasks.general.si().set(requires={"nlp"}))
        result.get(timeout=20)

        wait_until(lambda: result.children)
        assert [pair[1], 0] == result.children[0].get(timeout=20)

    def test_map_starmap_and_chunks_go_by_the_inner_task(self, pair: tuple[int, int], tasks: Any) -> None:
        """`celery.starmap` itself requires nothing; what it maps does."""
        mapped = tasks.on_gpu.map([1, 2]).apply_async()
        starred = tasks.add.starmap([(1, 2), (3, 4)]).apply_async()
        chunked = tasks.add.chunks([(1, 1), (2, 2), (3, 3)], 2).apply_async()

        assert [[pair[0], 1], [pair[0], 2]] == mapped.get(timeout=20)
        assert [3, 7] == starred.get(timeout=20)
        assert [[2, 4], [6]] == chunked.get(timeout=20)
        queues = [tasks.app.state.read(result.id).queue for result in (mapped, starred)]
        assert ["fleet:gpu", "fleet:nlp"] == queues

    def test_a_follower_whose_arguments_do_not_fit_fails_on_its_agent(self, tasks: Any) -> None:
        """The chain's first task has succeeded; the second fails with every field named, and nobody hangs."""
        result: Any = chain(tasks.on_gpu.si(1), tasks.on_gpu.s()).apply_async()

        with pytest.raises(ValidationError, match="value"):
            result.get(timeout=20)
        assert result.parent.successful()


class TestBeat:
    """Scheduled work."""

    def test_beat_routes_by_the_entry(self, fleet: Agents, sender: OrchestraCelery) -> None:
        """A beat entry's `requires` chooses the agent; `-B` keeps working."""
        fleet.write_app(APP)
        agent = fleet.start("--capabilities", "gpu,nlp", "-B", "-s", "beat.db", name="both", pool="prefork", wait=True)

        agent.wait_for("succeeded in")

        wait_until(lambda: any(queue.name == "fleet:gpu+nlp" for queue in Orchestra(sender).queues()))


class TestStockSides:
    """Stock Celery beside ours."""

    def test_a_stock_producer_and_a_stock_worker_mix_with_ours(
        self, fleet: Agents, sender: OrchestraCelery, redis_url: str
    ) -> None:
        """Both use the default queue; a stock worker runs what our app sends without a requirement."""
        from celery import Celery  # noqa: PLC0415  # stock, on purpose

        fleet.write_app(
            "from celery import Celery\napp = Celery('stock')\n@app.task(name='double')\ndef double(x): return 2 * x\n",
            module="stock",
        )
        environment = {"CELERY_BROKER_URL": redis_url, "CELERY_RESULT_BACKEND": redis_url}
        fleet.start(name="stock", module="stock", wait=False, **environment).wait_for(" ready.")
        assert 6 == sender.send_task("double", (3,)).get(timeout=20)

        fleet.write_app(APP)
        fleet.start(name="ours")
        stock = Celery("stock", broker=redis_url, backend=redis_url, set_as_current=False)
        results = [stock.send_task("fleet.on_gpu", (number,), queue="fleet:gpu") for number in range(3)]
        fleet.start("--capabilities", "gpu", name="gpu")
        assert [0, 1, 2] == [result.get(timeout=20)[1] for result in results]
        stock.close()


class TestStockOptions:
    """`-Q`, `-c`, `-P` and `--autoscale` mean what they mean in Celery."""

    @pytest.mark.parametrize("pool", ["prefork", "threads"])
    def test_pools(self, fleet: Agents, sender: OrchestraCelery, pool: str) -> None:
        """A task is guarded, settled and recorded in a pool's process or thread as in the agent's own."""
        fleet.write_app(APP)
        fleet.start("--capabilities", "gpu", "-c", "2", name="pooled", pool=pool)
        orchestra = Orchestra(sender)
        wait_until(lambda: "fleet.retried" in sender.catalogue.names())

        handles = [orchestra.submit("fleet.retried", {}) for _ in range(4)]
        outcomes = [handle.get(timeout=30)[1] for handle in handles]

        assert [handle.id for handle in handles] == outcomes
        records = sender.state.read_many(outcomes)
        assert {("succeeded", 2, "pooled@test")} == {(one.state, one.attempt, one.agent) for one in records if one}
        assert [2] == [agent.concurrency for agent in orchestra.agents()]

    def test_an_agent_with_queues_serves_those_alone(self, fleet: Agents, sender: OrchestraCelery) -> None:
        """`-Q` without capabilities: no capability queue is added."""
        fleet.write_app(APP)
        fleet.start("-Q", "alpha,beta", "-c", "2", "--autoscale", "3,1", name="listed", pool="prefork")
        sender.send_task("fleet.general", requires="gpu")
        wait_until(lambda: len(Orchestra(sender).queues()) >= 3)

        agent = Orchestra(sender).agents()[0]

        assert (("alpha", "beta"), "prefork") == (agent.queues, agent.pool)
        assert sender.send_task("fleet.general", queue="alpha").get(timeout=20)
