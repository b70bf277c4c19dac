"""OrchestraCelery: what it is made of, how it is configured, how tasks are declared and sent."""

import ssl
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import click
import pytest
from celery import Task as CeleryTask
from celery import _state as celery_state
from celery import shared_task

from orchestra.app import OrchestraCelery
from orchestra.config import load_settings
from orchestra.exceptions import ConfigurationError, ValidationError
from orchestra.invariants import told_plainly
from orchestra.task import OrchestraTask
from tests.fleets import app_at, quick

NOWHERE = "redis://:secret@127.0.0.1:1/0"


class TestConfiguration:
    def test_the_environment_names_the_broker(self) -> None:
        """Where Celery's configuration names no broker, `ORCHESTRA_BROKER_URL` does, and results go there too."""
        with app_at(None, settings=quick(broker_url="redis://127.0.0.1:1/7")) as app:
            assert "redis://127.0.0.1:1/7" == app.conf.broker_url
            assert "redis://127.0.0.1:1/7" == app.conf.result_backend

    def test_the_environment_names_the_results(self) -> None:
        """`ORCHESTRA_RESULT_BACKEND` says where results go, unless Celery's configuration does."""
        settings = quick(result_backend="redis://127.0.0.1:1/8")
        with app_at(NOWHERE, settings=settings) as app:
            assert "redis://127.0.0.1:1/8" == app.conf.result_backend
        with app_at(NOWHERE, settings=settings, backend="redis://127.0.0.1:1/9") as app:
            assert "redis://127.0.0.1:1/9" == app.conf.result_backend

    def test_results_take_the_brokers_way(self) -> None:
        """Where results go to the broker by default, its TLS and Sentinel options hold for them as well."""
        secure = {"ssl_cert_reqs": ssl.CERT_REQUIRED}
        with app_at("rediss://h:1/2", changes={"broker_use_ssl": secure}) as app:
            assert ssl.CERT_REQUIRED == app.backend.connparams["ssl_cert_reqs"]
        options = {"broker_transport_options": {"master_name": "mymaster", "visibility_timeout": 9}}
        with app_at("sentinel://one:1/0;sentinel://two:2/0", changes=options) as app:
            assert ["one", "two"] == [host["host"] for host in app.backend.connparams["hosts"]]
            assert {"master_name": "mymaster"} == app.conf.result_backend_transport_options

    def test_celerys_configuration_comes_first(self) -> None:
        """A broker and a backend that the project names are kept."""
        with app_at(NOWHERE, backend="cache+memory://", settings=quick(broker_url="redis://elsewhere")) as app:
            assert (NOWHERE, "cache+memory://") == (app.conf.broker_url, app.conf.result_backend)

    @pytest.mark.parametrize("setting", ["broker_read_url", "broker_write_url"])
    def test_a_broker_for_one_direction(self, setting: str) -> None:
        """A project that names only one of Celery's two broker URLs has named its broker."""
        with app_at(None, changes={setting: "redis://127.0.0.1:1/5"}) as app:
            assert not app.conf.value_set_for("broker_url") or app.conf.broker_url is None

    @pytest.mark.parametrize(
        ("broker", "backend"),
        [
            ("redis://h:1/2", "redis://h:1/2"),
            ("redis://one:1/0;redis://two:1/0", "redis://one:1/0"),
            ("rediss://h:1/2?ssl_cert_reqs=required", "rediss://h:1/2?ssl_cert_reqs=required"),
            ("redis+socket:///run/x.sock", "redis+socket:///run/x.sock"),
            ("amqp://h", None),
            ("memory://", None),
        ],
    )
    def test_results_go_to_the_brokers_redis(self, broker: str, backend: str | None) -> None:
        """Results go to the broker where Celery has a backend for it."""
        with app_at(broker) as app:
            assert backend == app.conf.result_backend

    def test_invariants_are_set(self) -> None:
        """What correctness rests on is set after the project's configuration."""
        with app_at(NOWHERE, changes={"task_reject_on_worker_lost": False, "accept_content": ["json", "yaml"]}) as app:
            assert app.conf.task_reject_on_worker_lost
            assert ["json"] == app.conf.accept_content
            assert "orchestra.request:OrchestraConsumer" == app.conf.worker_consumer
            app.check_invariants()

    def test_tasks_are_acknowledged_late(self) -> None:
        """By default a message is acknowledged when its task is done; what the project or a task says is kept."""
        with app_at(NOWHERE) as app:
            app.task(name="early", acks_late=False, shared=False)(_nothing)
            app.task(name="default", shared=False)(_nothing)
            assert app.conf.task_acks_late
            assert (False, True) == (app.tasks["early"].acks_late, app.tasks["default"].acks_late)

        with app_at(NOWHERE, changes={"task_acks_late": False}) as app:
            app.task(name="default", shared=False)(_nothing)
            assert not app.conf.task_acks_late
            assert not app.tasks["default"].acks_late

        with app_at(NOWHERE) as app:
            app.conf.task_acks_late = False
            assert not app.conf.task_acks_late

    def test_configuration_from_an_object(self) -> None:
        """`config_from_object` works as ever, and the invariants come after it."""

        class Deployment:
            task_default_queue = "work"
            task_serializer = "yaml"
            worker_prefetch_multiplier = 7

        with app_at(NOWHERE) as app:
            app.config_from_object(Deployment)

            assert ("work", 7, "json") == (
                app.conf.task_default_queue,
                app.conf.worker_prefetch_multiplier,
                app.conf.task_serializer,
            )
            assert "work" == app.queue_names.default

    @pytest.mark.parametrize(
        "setting", ["task_serializer", "result_serializer", "accept_content", "result_accept_content"]
    )
    def test_pickle_is_refused(self, setting: str) -> None:
        """An app that uses pickle gets an error that names the setting and says what to change."""
        value = ["json", "pickle"] if "accept_content" in setting else "pickle"
        app = OrchestraCelery("shop", set_as_current=False, changes={setting: value})

        with pytest.raises(ConfigurationError, match=f"{setting} names pickle"):
            app.conf.broker_url  # noqa: B018  # reading it configures the app
        app.close()

    def test_a_command_says_it_in_one_line(self) -> None:
        """Within a `celery` command a wrong setting is a usage error, without a trace."""
        with click.Context(click.Command("worker")), pytest.raises(click.UsageError, match="wrong"), told_plainly():
            raise ConfigurationError("wrong")
        with pytest.raises(ConfigurationError, match="wrong"), told_plainly():
            raise ConfigurationError("wrong")

    @pytest.mark.parametrize(
        ("setting", "value"), [("accept_content", ["json", "yaml"]), ("task_reject_on_worker_lost", False)]
    )
    def test_a_changed_invariant(self, setting: str, value: Any) -> None:
        """A setting that was changed after configuration stops a worker from starting, and is named."""
        with app_at(NOWHERE) as app:
            app.conf.broker_url  # noqa: B018  # reading it configures the app
            app.conf[setting] = value

            with pytest.raises(ConfigurationError, match=f"{setting} is .*remove the override"):
                app.check_invariants()

    def test_agents_need_redis(self) -> None:
        """Another broker is refused where an agent starts, with the schemes that will do."""
        with app_at("memory://") as app, pytest.raises(ConfigurationError, match="'memory'; agents need Redis: redis,"):
            app.check_invariants()

    def test_a_fleets_name(self) -> None:
        """It's the namespace, or the app's name; one that can't be part of a queue's name is refused."""
        with app_at(NOWHERE, settings=quick(namespace="bank")) as app:
            assert "bank" == app.queue_names.fleet
        with app_at(NOWHERE, main=None) as app:
            assert "orchestra" == app.queue_names.fleet
        with app_at(NOWHERE, main="my shop") as app, pytest.raises(ConfigurationError, match="my shop"):
            app.queue_names  # noqa: B018  # reading it is the act

    def test_settings_are_read_when_needed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without settings of its own the app reads the environment, and a wrong value names its variable."""
        monkeypatch.setenv("ORCHESTRA_BEAT_SECONDS", "soon")
        app = OrchestraCelery("shop", broker=NOWHERE, set_as_current=False)

        with pytest.raises(ConfigurationError, match="ORCHESTRA_BEAT_SECONDS"):
            app.settings  # noqa: B018  # reading it is the act
        monkeypatch.setenv("ORCHESTRA_BEAT_SECONDS", "3")
        assert 3 == app.settings.beat_seconds
        app.close()

    def test_priority_steps(self) -> None:
        """The lists of a queue are named as kombu names them, with the project's own steps and separator too."""
        with app_at(NOWHERE) as app:
            assert ("", "\x06\x163", "\x06\x166", "\x06\x169") == app.priority_steps
        options = {"priority_steps": [0, 5], "sep": ":"}
        with app_at(NOWHERE, changes={"broker_transport_options": options}) as app:
            assert ("", ":5") == app.priority_steps

    def test_an_app_can_be_pickled(self) -> None:
        """Celery hands apps to processes as what they were made from."""
        with app_at(NOWHERE) as app:
            made, args = app.__reduce__()[:2]
            assert callable(made)
            assert args


class TestCapabilitiesOption:
    def test_it_is_checked_at_once(self) -> None:
        """`--capabilities` is read before anything is started; what can't be read is a usage error with the term."""
        with app_at(NOWHERE) as app:
            (option,) = [one for one in app.user_options["worker"] if one.name == "capabilities"]
        command = click.Command("worker", params=[option])

        assert (
            "mem_gb=64,nlp"
            == command.make_context("worker", ["--capabilities", "nlp,mem_gb=064"]).params["capabilities"]
        )
        assert command.make_context("worker", []).params["capabilities"] is None
        with pytest.raises(click.BadParameter, match="NLP"):
            command.make_context("worker", ["--capabilities", "NLP"])


class TestDeclaring:
    def test_options_are_checked_at_once(self) -> None:
        """A wrong option is refused where the task is declared, naming it."""
        with app_at(NOWHERE) as app:
            for options in ({"requires": "gpu>=>1"}, {"urgency": "now"}, {"timeout": -1}, {"max_attempts": True}):
                with pytest.raises(ConfigurationError, match=r"shop\.bad"):
                    app.task(name="shop.bad", shared=False, **options)(print)
            with pytest.raises(ConfigurationError, match=r"Task builtins\.print"):
                app.task(requires="GPU", shared=False)(print)

    def test_plain_forms(self) -> None:
        """`@app.task` works bare, called, and with Celery's own options."""
        with app_at(NOWHERE) as app:

            @app.task(shared=False)
            def called() -> int:
                return 1

            bare = app.task(_nothing)

            assert 1 == called()
            assert isinstance(app.tasks[called.name], OrchestraTask)
            assert isinstance(app.tasks[bare.name], OrchestraTask)

    def test_shared_tasks(self) -> None:
        """`@shared_task(requires=…)` becomes one of ours in every app of ours."""
        share: Any = shared_task  # celery-types knows Celery's own options
        known: Any = celery_state
        before = set(known._on_app_finalizers)
        share(name="shop.shared", requires={"nlp", "gpu"})(_number)
        try:
            with app_at(NOWHERE) as app:
                assert "gpu,nlp" == app.tasks["shop.shared"].requires
        finally:  # or every app of the tests to come would have the task
            known._on_app_finalizers.intersection_update(before)

    def test_bases_of_the_project(self) -> None:
        """A project's own base comes first and reaches ours by super(), for one task and for all."""

        class Counted(CeleryTask):
            abstract = True
            calls = 0

            def __call__(self, *args: Any, **kwargs: Any) -> Any:
                type(self).calls += 1
                return super().__call__(*args, **kwargs)

        with app_at(NOWHERE, task_cls=Counted) as app:
            every = app.task(name="every", requires="gpu", shared=False)(_number)
            assert (7, 1) == (every(7), type(app.tasks["every"]).calls)
            assert isinstance(app.tasks["every"], (Counted, OrchestraTask))
        with app_at(NOWHERE) as app:
            one = app.task(name="one", base=Counted, shared=False)(_number)
            ours = app.task(name="ours", base=OrchestraTask, requires="gpu", shared=False)(_number)
            assert (7, 1) == (one(7), type(app.tasks["one"]).calls)
            assert isinstance(app.tasks["one"], OrchestraTask)
            assert "gpu" == app.tasks["ours"].requires
            assert 7 == ours(7)

    def test_bases_by_name(self) -> None:
        """`task_cls` may be the name of a class."""
        with app_at(NOWHERE, task_cls="celery.app.task:Task") as app:
            assert issubclass(app.Task, OrchestraTask)

    def test_class_based_tasks(self) -> None:
        """`register_task` takes classes and instances, built on Celery's Task or on ours."""

        class Index(CeleryTask):
            name = "shop.class"
            requires = ("nlp", "gpu")

            def run(self, number: int) -> int:
                return number

        class Ours(OrchestraTask):
            name = "shop.ours"
            requires = "gpu"

            def run(self, number: int) -> int:
                return number

        with app_at(NOWHERE) as app:
            made = app.register_task(Index())
            app.register_task(Ours)

            assert "gpu,nlp" == app.tasks["shop.class"].requires
            assert "gpu" == app.tasks["shop.ours"].requires
            assert isinstance(made, Index)
            assert 3 == made(3)
            with pytest.raises(ValidationError, match="number"):
                made.delay("three")
            with pytest.raises(ValidationError, match="number"):
                app.tasks["shop.ours"].delay("three")

    def test_class_based_tasks_that_declare_nonsense(self) -> None:
        """They are checked when they are registered."""

        class Bad(CeleryTask):
            name = "shop.bad"
            requires = "GPU"

            def run(self) -> None: ...

        with app_at(NOWHERE) as app, pytest.raises(ConfigurationError, match=r"shop\.bad"):
            app.register_task(Bad())

    def test_django(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Under Django, where Celery's fixup names its own task class, `delay_on_commit` stays."""
        waiting: list[Any] = []
        for name in ("django", "django.db"):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        transaction = ModuleType("django.db.transaction")
        transaction.on_commit = waiting.append  # type: ignore[attr-defined]
        sys.modules["django.db"].transaction = transaction  # type: ignore[attr-defined]
        monkeypatch.delitem(sys.modules, "celery.contrib.django.task", raising=False)

        with app_at(NOWHERE, task_cls="celery.contrib.django.task:DjangoTask") as app:
            index = app.task(name="shop.index", requires="gpu", shared=False)(_number)
            index.delay_on_commit("three")

            assert isinstance(app.tasks["shop.index"], OrchestraTask)
            with pytest.raises(ValidationError, match=r"shop\.index was not submitted"):
                waiting[0]()
        monkeypatch.delitem(sys.modules, "celery.contrib.django.task")


def _nothing() -> None: ...


def _number(number: int = 0) -> int:
    return number


def test_settings_are_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the app is given wins over the environment."""
    monkeypatch.setenv("ORCHESTRA_NAMESPACE", "bank")

    assert "bank" == load_settings().namespace
    with app_at(NOWHERE, settings=quick(namespace="shop")) as app:
        assert "shop" == app.queue_names.fleet


class TestPool:
    @pytest.mark.parametrize(
        ("named", "setting", "expected"),
        [
            (None, None, "prefork"),
            ("solo", None, "solo"),
            ("inline", None, "orchestra.pools:InlinePool"),
            ("solo", "inline", "orchestra.pools:InlinePool"),
            ("inline", "threads", "threads"),
        ],
    )
    def test_who_names_it(self, named: str | None, setting: str | None, expected: str) -> None:
        """The environment's setting wins over Celery's `worker_pool`, and either may name a pool of ours."""
        with app_at(NOWHERE, settings=quick(pool=setting), changes={"worker_pool": named} if named else {}) as app:
            assert expected == app.conf.worker_pool

    def test_the_option(self) -> None:
        """`--agent-pool` wins over both, and knows its names."""
        with app_at(NOWHERE, settings=quick(pool="solo")) as app:
            (option,) = [one for one in app.user_options["worker"] if one.name == "agent_pool"]
            command = click.Command("worker", params=[option])
            command.make_context("worker", [], obj=SimpleNamespace(app=app))
            assert "solo" == app.conf.worker_pool
            command.make_context("worker", ["--agent-pool", "inline"], obj=SimpleNamespace(app=app))

            assert "orchestra.pools:InlinePool" == app.conf.worker_pool
            with pytest.raises(click.BadParameter, match="'inline', 'prefork', 'solo', 'threads'"):
                command.make_context("worker", ["--agent-pool", "gevent"], obj=SimpleNamespace(app=app))
