import json
import re
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from celery import states

from orchestra.orchestra import Orchestra
from orchestra.types import TaskState
from tests.command_line import Shop, invoke, shop_at
from tests.processes import until
from tests.stores import publish


@pytest.fixture
def shop(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    """Give a project whose agents run nowhere, unless the test starts one."""
    with shop_at(redis_url, tmp_path, monkeypatch) as shop:
        yield shop


def submitted(shop: Shop, **options: Any) -> str:
    """Submit a task that nobody runs, and return its id."""
    return Orchestra(shop.app).submit("shop.index", {"text": "a b"}, **options).id


def cancel_the_first(app: Any) -> None:
    """Cancel the first task that is submitted."""
    Orchestra(app).handle(the_first(app)).cancel()


def expire_the_first(app: Any) -> None:
    """Do what an agent does with the first task that is submitted, if it has expired."""
    task_id = the_first(app)
    app.state.advance(task_id, TaskState.EXPIRED)
    app.backend.mark_as_revoked(task_id, "expired")


def the_first(app: Any) -> str:
    """Wait for a task to be submitted, and return its id."""
    until(lambda: app.store.command("KEYS", app.store.keys.task("*")))
    (key,) = app.store.command("KEYS", app.store.keys.task("*"))
    task_id: str = key.decode().rpartition(":")[2]
    return task_id


class TestSubmit:
    def test_prints_the_id(self, shop: Shop) -> None:
        """The id alone is on stdout, and the task waits in its queue."""
        result = invoke("submit", "shop.index", "--json", '{"text": "a b", "limit": 1}')

        record = Orchestra(shop.app).handle(result.stdout.strip()).record()
        assert 0 == result.exit_code
        assert record is not None
        assert ("shop.index", "shop:nlp", TaskState.SUBMITTED) == (record.name, record.queue, record.state)

    def test_options(self, shop: Shop) -> None:
        """What is said of requirement, urgency, timeout and countdown goes with the task."""
        options = ("--requires", "gpu,mem_gb>=16", "--urgency", "LOW", "--timeout", "5")

        result = invoke("submit", "shop.index", "--json", '{"text": ""}', *options)

        (raw,) = shop.app.store.command("LRANGE", "shop:gpu+mem_gb~ge~16\x06\x169", 0, -1)
        message = json.loads(raw)
        assert 0 == result.exit_code
        assert (9, 5.0) == (message["properties"]["priority"], message["headers"]["timelimit"][1])

    def test_countdown(self, shop: Shop) -> None:
        """With --countdown the task may not start before its time."""
        invoke("submit", "shop.index", "--json", '{"text": ""}', "--countdown", "600")

        (key,) = shop.app.store.command("KEYS", shop.app.store.keys.task("*"))
        record = shop.app.state.read(key.decode().rpartition(":")[2])
        assert timedelta(seconds=500) < record.not_before - datetime.now(UTC) <= timedelta(seconds=600)

    def test_payload_from_stdin(self, shop: Shop) -> None:
        """A payload that others mustn't see, or that is long, comes from stdin."""
        result = invoke("submit", "shop.index", "--json", "-", input='{"text": "ä"}')

        assert 0 == result.exit_code
        assert result.stdout.strip() in str(shop.app.store.command("LRANGE", "shop:nlp\x06\x163", 0, -1))

    @pytest.mark.parametrize(
        ("payload", "said"),
        [
            ("{text: 1}", "isn't one: Expecting property name"),
            ('["a"]', "this is of type list"),
            ('{"text": 5}', "shop.index was not submitted: text: Input should be a valid string (got 5)"),
            ("{}", "text: Missing required argument"),
        ],
    )
    def test_bad_payload(self, shop: Shop, payload: str, said: str) -> None:
        """What can't be the task's arguments is refused in one line, before anything is sent."""
        result = invoke("submit", "shop.index", "--json", payload)

        assert 2 == result.exit_code
        assert said in result.stderr
        assert 1 == result.stderr.count("\n")
        assert [] == shop.app.store.command("KEYS", "*task:*")

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (("--requires", "gpu >"), "'gpu >' is no requirement"),
            (("--timeout", "-1"), "-1.0 is no timeout"),
            (("--urgency", "soon"), "'soon' is not one of 'critical', 'high', 'normal', 'low'"),
            (("--on-unroutable", "drop"), "on_unroutable='drop' is no policy"),
            (("--on-unroutable", "raise"), "no agent that knows it satisfies nlp"),
            (("--wait=soon",), "'soon' is not a valid float"),
        ],
    )
    def test_bad_option(self, shop: Shop, options: tuple[str, ...], said: str) -> None:
        """A wrong option is told like any other error."""
        result = invoke("submit", "shop.index", "--json", '{"text": ""}', *options)

        assert 2 == result.exit_code
        assert said in result.stderr
        assert 1 == result.stderr.count("\n")

    def test_unknown_task(self, shop: Shop) -> None:
        """A task that neither code nor agent knows is refused, with the nearest name."""
        result = invoke("submit", "shop.indx")

        assert 2 == result.exit_code
        assert "No task named shop.indx is known: did you mean shop.index" in result.stderr

    def test_task_of_a_module_that_the_app_includes(self, shop: Shop) -> None:
        """The app's own task modules are looked into when no agent has told of the task yet."""
        shop.write(
            "shop_more.py", "from shop import app\n\n@app.task(name='shop.more', shared=False)\ndef more(): ...\n"
        )
        shop.app.conf.include = ["shop_more"]

        result = invoke("submit", "shop.more")
        sys.modules.pop("shop_more")

        assert 0 == result.exit_code, result.stderr

    def test_module_that_cannot_be_imported(self, shop: Shop) -> None:
        """An error in one of them is told with its cause and place."""
        shop.write("shop_bad.py", "\n\nimport nowhere\n")
        shop.app.conf.include = ["shop_bad"]

        result = invoke("submit", "shop.more")

        assert 2 == result.exit_code
        assert "ModuleNotFoundError: No module named 'nowhere' (shop_bad.py, line 3)" in result.stderr


class TestSubmitAndWait:
    def test_prints_the_result(self, shop: Shop) -> None:
        """What the task returned is on stdout as JSON; the id is on stderr, for who gives up waiting."""
        with shop.running():
            result = invoke("submit", "shop.index", "--json", '{"text": "a ü"}', "--wait")

        assert 0 == result.exit_code
        assert '["a", "ü"]\n' == result.stdout
        assert 36 == len(result.stderr.strip())

    def test_failed_task(self, shop: Shop) -> None:
        """A task that fails is exit code 1, and its error one line."""
        with shop.running():
            result = invoke("submit", "--wait", "shop.fail", "--json", '{"why": "out of stock\\nof tea"}')

        assert 1 == result.exit_code
        assert "" == result.stdout
        assert "error: shop.fail failed: PermanentError: out of stock" == result.stderr.splitlines()[-1]

    def test_task_without_a_result(self, shop: Shop) -> None:
        """A task whose result isn't kept is waited for all the same."""
        with shop.running():
            result = invoke("submit", "shop.quiet", "--wait", "20")

        assert (0, "null\n") == (result.exit_code, result.stdout)

    def test_not_in_time(self, shop: Shop) -> None:
        """When the time is up, the error says where the task stands and how to wait on."""
        result = invoke("submit", "shop.index", "--json", '{"text": ""}', "--wait=0")

        task_id = result.stderr.splitlines()[0]
        assert 2 == result.exit_code
        assert (
            f"error: shop.index isn't done after 0 s, it is submitted in shop:nlp. Wait on with: "
            f"orchestra result {task_id} --wait" == result.stderr.splitlines()[1]
        )

    def test_delayed_task_not_in_time(self, shop: Shop) -> None:
        """When a delayed task is waited for too shortly, the error says when it's due."""
        options = ("--json", '{"text": ""}', "--countdown", "600", "--wait=0")

        result = invoke("submit", "shop.index", *options)

        record = Orchestra(shop.app).handle(result.stderr.splitlines()[0]).record()
        assert record is not None
        assert record.not_before is not None
        due = record.not_before.strftime("%Y-%m-%d %H:%M:%S")
        assert f"shop.index isn't done after 0 s, it waits until {due}" in result.stderr

    @pytest.mark.parametrize(
        ("end", "said"), [(cancel_the_first, "was cancelled"), (expire_the_first, "expired before it started")]
    )
    def test_task_that_never_starts(self, shop: Shop, end: Callable[[Any], None], said: str) -> None:
        """A task that somebody cancels meanwhile, or that expires, is exit code 1."""
        other = Thread(target=end, args=(shop.app,))
        other.start()

        result = invoke("submit", "shop.index", "--json", '{"text": ""}', "--wait")
        other.join()

        assert 1 == result.exit_code
        assert f"error: shop.index {said}." == result.stderr.splitlines()[-1]


class TestResult:
    def test_of_a_cancelled_task(self, shop: Shop) -> None:
        """The exit code is 1 when the task was cancelled."""
        task_id = submitted(shop)
        Orchestra(shop.app).handle(task_id).cancel()

        result = invoke("result", "--wait", task_id)

        assert 1 == result.exit_code
        assert "state     cancelled" in result.stdout

    def test_of_an_expired_task(self, shop: Shop) -> None:
        """The exit code is 1 when the task expired, which is no cancellation."""
        publish(shop.app.store, "1")
        shop.app.state.advance("1", TaskState.EXPIRED)

        result = invoke("result", "1", "--wait")

        assert 1 == result.exit_code
        assert "state     expired" in result.stdout

    def test_of_a_delayed_task(self, shop: Shop) -> None:
        """It says until when the task waits; once that is past, the task waits for an agent like any other."""
        due = datetime.now(UTC) + timedelta(hours=1)
        for task_id, moment in (("1", due), ("2", due - timedelta(hours=2))):
            publish(shop.app.store, task_id, note=f"not before {moment.isoformat()}")

        delayed, overdue = (invoke("result", task_id).stdout for task_id in "12")

        assert f"waits     until {due.isoformat(' ', 'milliseconds').removesuffix('+00:00')} UTC" in delayed
        assert "waits " not in overdue
        told = json.loads(invoke("result", "1", "--json").stdout)["not_before"]
        assert due == datetime.fromisoformat(told)

    def test_of_a_waiting_task(self, shop: Shop) -> None:
        """It says what is known, with a line for each state that the task went through."""
        task_id = submitted(shop)

        result = invoke("result", task_id)

        head, history = result.stdout.split("\n\n")
        assert 0 == result.exit_code
        assert [
            ["id", task_id],
            ["task", "shop.index"],
            ["state", "submitted"],
            ["requires", "nlp"],
            ["queue", "shop:nlp"],
        ] == [line.split(maxsplit=1) for line in head.splitlines()]
        assert ["when", "(UTC)", "state", "attempt", "agent", "note"] == history.splitlines()[0].split()
        assert ["submitted", "1", "-"] == history.splitlines()[1].split()[2:]

    def test_of_a_finished_task(self, shop: Shop) -> None:
        """The result is shown, and who did what when."""
        with shop.running():
            task_id = submitted(shop)
            result = invoke("result", task_id, "--wait")

        assert 0 == result.exit_code
        assert 'result    ["a", "b"]' in result.stdout
        assert [
            ["submitted", "1"],
            ["running", "1"],
            ["succeeded", "1"],
        ] == [line.split()[2:4] for line in result.stdout.splitlines()[-3:]]

    def test_of_a_failed_task(self, shop: Shop) -> None:
        """The exit code is 1 when the task failed."""
        with shop.running():
            task_id = Orchestra(shop.app).submit("shop.fail", {"why": "no tea"}).id
            result = invoke("result", task_id, "--wait")

        assert 1 == result.exit_code
        assert "error     PermanentError: no tea" in result.stdout

    def test_that_is_not_kept(self, shop: Shop) -> None:
        """A task that ignores its result has none, which isn't the same as None."""
        publish(shop.app.store, "1")
        shop.app.state.advance("1", TaskState.SUCCEEDED)

        assert "result    none is kept" in invoke("result", "1").stdout

    def test_of_a_task_that_a_stock_worker_ran(self, shop: Shop) -> None:
        """Where only Celery's result tells that the task is done, it's done."""
        error = {"exc_type": "KeyError", "exc_message": ["tea"], "exc_module": "builtins"}
        expiry = {"exc_type": "TaskRevokedError", "exc_message": ["expired"], "exc_module": "celery.exceptions"}
        ends = ("1", states.SUCCESS, [1]), ("2", states.FAILURE, error), ("3", states.REVOKED, expiry)
        for task_id, state, value in ends:
            publish(shop.app.store, task_id)
            meta = json.dumps({"status": state, "result": value, "traceback": None, "children": []})
            shop.app.store.command("SET", shop.app.backend.get_key_for_task(task_id), meta)

        good, bad, late = (json.loads(invoke("result", task_id, "--json", "--wait").stdout) for task_id in "123")

        assert ("succeeded", [1], None) == (good["state"], good["result"], good["error"])
        assert ("failed", None, "KeyError: 'tea'") == (bad["state"], bad["result"], bad["error"])
        assert ("expired", None) == (late["state"], late["result"])

    def test_json(self, shop: Shop) -> None:
        """With --json there's one document: the record, its history, and the result."""
        task_id = submitted(shop)
        at = Orchestra(shop.app).handle(task_id).history()[0].at.isoformat().replace("+00:00", "Z")

        assert {
            "task_id": task_id,
            "name": "shop.index",
            "requires": "nlp",
            "queue": "shop:nlp",
            "state": "submitted",
            "attempt": 1,
            "agent": None,
            "submitted_at": at,
            "not_before": None,
            "started_at": None,
            "finished_at": None,
            "error": None,
            "history": [{"state": "submitted", "at": at, "agent": None, "attempt": 1, "note": None}],
            "result": None,
        } == json.loads(invoke("result", task_id, "--json").stdout)

    @pytest.mark.parametrize("options", [[], ["--wait"], ["--json"]])
    @pytest.mark.parametrize("task_id", ["nope", ""])
    def test_unknown_id(self, shop: Shop, task_id: str, options: list[str]) -> None:
        """An id that nothing is known of is an error, also for who would wait."""
        result = invoke("result", task_id, *options)

        assert 2 == result.exit_code
        assert "" == result.stdout
        assert f"error: Nothing is known of a task {task_id}: " in result.stderr

    def test_results_that_cannot_be_reached(self, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
        """A result backend that is away is named, without its password."""
        monkeypatch.setenv("ORCHESTRA_RESULT_BACKEND", "redis://:hidden@127.0.0.1:1/0")
        publish(shop.app.store, "1")

        result = invoke("result", "1")

        assert 2 == result.exit_code
        assert "127.0.0.1:1" in result.stderr
        assert "hidden" not in result.output


class TestTasks:
    def test_a_line_for_each(self, shop: Shop) -> None:
        """A task's line says what it requires, how urgent it is, and what its arguments are."""
        with shop.running():
            result = invoke("tasks")

        assert 0 == result.exit_code
        assert [
            ["shop.fail", "nlp", "normal", "why: str"],
            ["shop.index", "nlp", "high", "text: str, limit: int = …"],
            ["shop.quiet", "nlp", "normal", "-"],
            ["shop.train", "gpu, mem_gb>=16", "normal", "-"],
        ] == [re.split("  +", line) for line in result.stdout.splitlines() if line.startswith("shop.")]

    def test_without_an_agent(self, shop: Shop) -> None:
        """What agents published stays known when they are gone; before, the way to start one is shown."""
        assert "No task is known yet" in invoke("tasks").stdout

        shop.agent()

        assert "shop.index" in invoke("tasks").stdout

    def test_json(self, shop: Shop) -> None:
        """With --json there's one document, a list of tasks with the schemas of their arguments."""
        shop.agent()

        assert [
            {
                "name": "shop.index",
                "requires": "nlp",
                "urgency": "high",
                "on_unroutable": None,
                "unique": None,
                "max_queue_depth": None,
                "enforced": True,
                "arguments": {"parameters": []},
                "breaker": None,
            }
        ] == json.loads(invoke("tasks", "--json").stdout)
