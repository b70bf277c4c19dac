"""Calls that nobody can run: what their policy says is done, by every way of sending, and stays with them."""

from base64 import b64decode
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import chain, chord, group
from kombu.utils.json import loads
from redis import Redis

from orchestra.exceptions import ConfigurationError, NoCapableAgentError, ValidationError
from orchestra.orchestra import Orchestra
from orchestra.registry import CatalogueEntry
from orchestra.task import OrchestraTask
from orchestra.types import TaskState
from orchestra.unroutable import Raise
from tests.fleets import agent_of, app_at, commands_at, quick
from tests.processes import until
from tests.sample_tasks import AT_ONCE
from tests.stores import register

NOWHERE = "redis://:secret@127.0.0.1:1/0"


@pytest.fixture
def app(redis_url: str) -> Iterator[Any]:
    """Give an app with a task for agents with a gpu, one that declares a policy, and one for any agent."""
    with app_at(redis_url) as app:
        _declare(app)
        yield app


@pytest.fixture
def client(redis_url: str) -> Iterator[Redis]:
    """Give a client of the test's own."""
    with Redis.from_url(redis_url) as client:
        yield client


def _declare(app: Any) -> None:
    @app.task(name="shop.train", requires={"gpu"}, shared=False)
    def train(number: int = 0) -> int:
        return number

    @app.task(name="shop.score", requires={"gpu"}, on_unroutable="fallback:cpu", shared=False)
    def score(number: int = 0) -> int:
        return number

    @app.task(name="shop.plain", shared=False)
    def plain(number: Any = 0, *_more: Any) -> Any:
        return number


def _join(app: Any, capabilities: str, *tasks: str, name: str = "a@h") -> None:
    about = {"capabilities": capabilities}
    register(app.registry, name, about=about, tasks={task: CatalogueEntry() for task in tasks}, queues=[])


def _nothing() -> None: ...


def _message(client: Redis, queue: str, step: str = "\x06\x166") -> dict[str, Any]:
    """Return the newest message of a queue, with its body decoded."""
    raw: Any = client.lindex(f"{queue}{step}", 0)
    message: dict[str, Any] = loads(raw)
    return {**message, "body": loads(b64decode(message["body"]))}


class TestDeclared:
    @pytest.mark.parametrize("policy", ["drop", "fallback:GPU", "dead_letter_after:soon", 3])
    def test_nonsense_is_refused(self, policy: Any) -> None:
        """A policy that makes no sense is refused where the task is declared, with task, option and what is allowed."""
        with (
            app_at(NOWHERE) as app,
            pytest.raises(ConfigurationError, match=r"Task shop\.bad: on_unroutable=") as caught,
        ):
            app.task(name="shop.bad", on_unroutable=policy, shared=False)(print)

        assert "'dead_letter_after:' and a number of seconds" in str(caught.value)

    def test_in_a_class(self) -> None:
        """A class may declare it, and it's one text from then on."""
        with app_at(NOWHERE) as app:

            class Demanding(OrchestraTask):
                abstract = True
                on_unroutable = "fallback:mem_gb>=016,cpu"

            task = app.task(name="shop.heavy", base=Demanding, shared=False)(_nothing)

            assert "fallback:cpu,mem_gb>=16" == task.on_unroutable
            assert task.enforced

    def test_in_a_setting(self) -> None:
        """A setting that makes no sense stops the start with its name."""
        with pytest.raises(ConfigurationError, match=r"ORCHESTRA_ON_UNROUTABLE is 'drop'.*one of: 'wait', 'raise'"):
            quick(on_unroutable="drop")
        assert "dead_letter_after:60" == quick(on_unroutable="dead_letter_after:60.0").on_unroutable

    def test_published(self, app: Any) -> None:
        """A sender without the task's code has its policy from what agents published."""
        entry = CatalogueEntry(requires="gpu", on_unroutable="raise")
        app.registry.register("a@h", "1", about={}, tasks={"shop.far": entry}, queues=[])

        assert Raise() == app.declared("shop.far").on_unroutable

    def test_agents_publish_it(self, app: Any) -> None:
        """What the code declares stands in the catalogue."""
        with agent_of(app):
            assert "fallback:cpu" == app.registry.catalogue()["shop.score"].on_unroutable


WAYS: list[Callable[[Any, Any], Any]] = [
    lambda app, policy: app.tasks["shop.train"].apply_async(on_unroutable=policy),
    lambda app, policy: app.tasks["shop.plain"].apply_async(requires="gpu", on_unroutable=policy),
    lambda app, policy: app.send_task("shop.train", on_unroutable=policy),
    lambda app, policy: app.tasks["shop.train"].s().set(on_unroutable=policy).apply_async(),
    lambda app, policy: app.tasks["shop.train"].map([1]).apply_async(on_unroutable=policy),
    lambda app, policy: chain(
        app.tasks["shop.train"].si().set(on_unroutable=policy), app.tasks["shop.plain"].si()
    ).apply_async(),
    lambda app, policy: group([app.tasks["shop.train"].s().set(on_unroutable=policy)]).apply_async(),
    lambda app, policy: Orchestra(app).submit("shop.train", {}, on_unroutable=policy),
    lambda app, policy: Orchestra(app).submit_many("shop.train", [{}] * 3, on_unroutable=policy),
]


class TestRaise:
    @pytest.mark.parametrize("send", WAYS)
    def test_by_every_way(self, app: Any, client: Redis, send: Callable[[Any, Any], Any]) -> None:
        """Nobody can run it: the submitter gets an error with the evidence, and Redis holds nothing of the task."""
        _join(app, "nlp", "shop.train", "celery.map")
        before = sorted(client.keys("*"))

        with pytest.raises(
            NoCapableAgentError, match=r"was not submitted: .*gpu; 1 agent is known: a@h lacks gpu"
        ) as caught:
            send(app, "raise")

        assert {"a@h": ("gpu",)} == caught.value.missing
        assert before == sorted(client.keys("*"))

    @pytest.mark.parametrize("send", WAYS)
    def test_somebody_can(self, app: Any, send: Callable[[Any, Any], Any]) -> None:
        """With an agent that can run it, it's submitted as ever."""
        _join(app, "gpu", "shop.train", "shop.plain", "celery.map")

        send(app, "raise")

        assert sum(app.registry.depths(["shop:gpu"], steps=app.priority_steps)) in {1, 3}

    def test_what_a_project_routes_itself_is_left_alone(self, redis_url: str) -> None:
        """Where a task goes to a queue that isn't one of requirements, nobody is looked for."""
        with app_at(redis_url, changes={"task_routes": {"shop.plain": {"queue": "mine"}}}) as app:
            _declare(app)

            assert app.tasks["shop.plain"].apply_async(on_unroutable="raise").id
            assert app.tasks["shop.train"].apply_async(queue="theirs", on_unroutable="raise").id

    def test_a_broker_that_is_no_redis(self) -> None:
        """Where there is no registry, a task is sent, and waits."""
        with app_at("memory://") as app:
            _declare(app)

            assert app.tasks["shop.train"].apply_async(requires="gpu", on_unroutable="raise").id

    def test_eagerly(self, app: Any) -> None:
        """A task that runs here and now needs no agent; nonsense is refused all the same."""
        assert 7 == app.tasks["shop.train"].apply((7,), on_unroutable="raise").get()
        with pytest.raises(ValidationError, match=r"shop\.train was not submitted: on_unroutable='drop'"):
            app.tasks["shop.train"].apply((7,), on_unroutable="drop")

    def test_from_a_setting(self, redis_url: str) -> None:
        """The setting holds where neither task nor call says anything; Celery's own tasks wait."""
        with app_at(redis_url, settings=quick(on_unroutable="raise")) as app:
            _declare(app)
            with pytest.raises(NoCapableAgentError):
                app.tasks["shop.plain"].delay()

            assert app.tasks["shop.plain"].apply_async(on_unroutable="wait").id
            assert app.tasks["shop.score"].delay().id
            assert app.send_task("celery.backend_cleanup").id

    def test_redis_away(self) -> None:
        """An unreachable Redis is told as for any submission."""
        with app_at(NOWHERE, settings=quick(connect_timeout_seconds=0.3)) as app:
            _declare(app)
            with pytest.raises(Exception, match=r"shop\.train was not submitted: Redis at 127\.0\.0\.1:1"):
                app.tasks["shop.train"].apply_async(on_unroutable="raise")


class TestFallback:
    def test_goes_to_the_other_queue(self, app: Any) -> None:
        """While nobody can run it, it waits where the fallback's tasks do, and its record tells why."""
        handle = Orchestra(app).submit("shop.score", {"number": 1})

        record = handle.record()
        assert record is not None
        assert ("cpu", "shop:cpu") == (record.requires, record.queue)
        assert "fallback, as nobody could run gpu" == record.history[0].note
        assert {"cpu"} == set(app.registry.queues())

    def test_a_delayed_one(self, app: Any) -> None:
        """A delay and a fallback are both told, and the delay is read back."""
        record = Orchestra(app).submit("shop.score", {}, countdown=60).record()

        assert record is not None
        assert record.not_before is not None
        assert str(record.history[0].note).endswith("; fallback, as nobody could run gpu")

    def test_stays_where_somebody_can(self, app: Any, client: Redis) -> None:
        """With an agent for the first requirement, nothing is said of a fallback."""
        _join(app, "gpu", "shop.score")

        app.tasks["shop.score"].delay(1)

        assert "fallback_from" not in _message(client, "shop:gpu")["headers"]

    def test_the_calls_requirement_is_kept(self, app: Any, client: Redis) -> None:
        """What the call asked for travels along, for the next attempt."""
        app.tasks["shop.plain"].apply_async(requires={"gpu"}, on_unroutable="fallback:cpu")

        headers = _message(client, "shop:cpu")["headers"]
        assert ("gpu", "gpu", "fallback:cpu") == tuple(
            headers[name] for name in ("requires", "fallback_from", "on_unroutable")
        )

    def test_a_retry_is_decided_afresh(self, app: Any) -> None:
        """The next attempt goes where the task belongs if an agent for that has come meanwhile, else not."""
        seen: list[tuple[Any, ...]] = []

        @app.task(
            name="shop.again",
            bind=True,
            requires={"gpu"},
            max_attempts=3,
            retry_on=(OSError,),
            backoff=AT_ONCE,
            shared=False,
        )
        def again(self: Any) -> str:
            seen.append((self.request.delivery_info["routing_key"], (self.request.headers or {}).get("fallback_from")))
            if len(seen) == 2:
                _join(app, "gpu", "shop.again", name="late@h")
                app.routability._readings.clear()
            if len(seen) < 3:
                message = "Once more."
                raise OSError(message)
            return "done"

        with agent_of(app, "cpu", concurrency=1):
            result = again.apply_async(on_unroutable="fallback:cpu")
            until(lambda: app.state.read(result.id).queue == "shop:gpu")
        assert [("shop:cpu", "gpu"), ("shop:cpu", "gpu")] == seen
        record = app.state.read(result.id)
        assert (TaskState.RETRYING, 3, "gpu") == (record.state, record.attempt, record.requires)


class TestDeadLetterAfter:
    def test_waits_with_its_policy(self, app: Any, client: Redis) -> None:
        """The message waits where it belongs, and says how long it may."""
        app.tasks["shop.train"].apply_async(on_unroutable="dead_letter_after:30.0")

        assert "dead_letter_after:30" == _message(client, "shop:gpu")["headers"]["on_unroutable"]


class TestCanvas:
    @pytest.mark.parametrize("policy", ["fallback:mem_gb>=016,cpu", "Fallback: cpu, mem_gb>=16"])
    def test_policies_inside_become_text(self, app: Any, client: Redis, policy: Any) -> None:
        """A policy of what follows is one text before anything is sent."""
        plain = app.tasks["shop.plain"]
        follower = plain.si().set(on_unroutable=policy)

        chord([plain.si()], follower.clone()).apply_async()
        plain.apply_async(link=follower.clone())

        assert (
            "fallback:cpu,mem_gb>=16"
            == _message(client, "celery")["body"][2]["callbacks"][0]["options"]["on_unroutable"]
        )

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"urgency": "asap"}, "'asap' is no urgency"),
            ({"priority": "high"}, "'high' is no priority"),
            ({"priority": True}, "True is no priority"),
            ({"on_unroutable": "drop"}, "on_unroutable='drop'"),
        ],
    )
    def test_nonsense_inside_is_refused_at_once(self, app: Any, client: Redis, options: Any, words: str) -> None:
        """What would be refused where nobody sees it, after a part has run, is refused before anything is sent."""
        plain = app.tasks["shop.plain"]

        for canvas in (
            chain(plain.si(), plain.si().set(**options)),
            chord([plain.si()], plain.si().set(**options)),
            plain.si().on_error(plain.si().set(**options)),
        ):
            with pytest.raises(ValidationError, match=rf"shop\.plain was not submitted.*{words}"):
                canvas.apply_async()

        assert [] == [key for key in client.keys("*") if b"-taskset-" not in key]  # Celery counts a chord's parts first

    def test_what_follows_waits_rather_than_raises(self, redis_url: str) -> None:
        """An agent sends what follows; nobody could answer an error there."""
        with app_at(redis_url) as app:
            _declare(app)
            with agent_of(app):
                follower = app.tasks["shop.train"].si().set(on_unroutable="raise")
                result: Any = chain(app.tasks["shop.plain"].si(1), follower).apply_async()

                assert 1 == result.parent.get(timeout=20)
            assert ("shop:gpu", TaskState.SUBMITTED) == (
                app.state.read(result.id).queue,
                app.state.read(result.id).state,
            )


class TestRoundTrips:
    def test_a_policy_costs_none(self, redis_url: str) -> None:
        """While the view of the fleet is fresh, a submission with a policy is one command, as any other."""
        with app_at(redis_url, settings=quick(catalogue_ttl_seconds=60)) as app:
            _declare(app)
            _join(app, "gpu", "shop.train")

            def submit() -> None:
                app.tasks["shop.train"].apply_async(on_unroutable="raise")
                app.tasks["shop.train"].apply_async(requires="tpu", on_unroutable="fallback:cpu")
                app.tasks["shop.train"].apply_async(on_unroutable="dead_letter_after:60")

            submit()  # which connects, and looks at the fleet
            with commands_at(redis_url) as seen:
                for _ in range(20):
                    submit()

            assert {"EVALSHA"} == {command.split()[0] for command in seen}
            assert 60 == len(seen)
