"""Celery's set-up of logging, and what our pipeline makes of it."""
# ruff: noqa: T201  # what becomes of prints is asked here

import json
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
import structlog
from celery import signals
from celery.utils.log import get_task_logger
from structlog.contextvars import bind_contextvars, bound_contextvars, get_contextvars

from orchestra.logging_utils import get_logger, setup_logging
from tests.fleets import agent_of, app_at, quick
from tests.logs import Output, Terminal, celery_logging_left_alone

ID = "8b5bd6f2-1a1f-4b3a-9d3f-3a4a5b6c7d8e"

Reader = Callable[[], list[dict[str, Any]]]
Maker = Callable[..., Any]


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Put back what Celery changes for the whole process when it sets logging up."""
    with celery_logging_left_alone():
        yield


@pytest.fixture
def log_file(tmp_path: Path) -> Path:
    """Give the path of a log."""
    return tmp_path / "agent.log"


@pytest.fixture
def lines(log_file: Path) -> Reader:
    """Give a function that reads the log as JSON."""
    return lambda: [json.loads(line) for line in log_file.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def make() -> Iterator[Maker]:
    """Give a function that makes apps with settings of ours and of Celery's."""
    with ExitStack() as made:

        def make_app(log_format: str = "json", log_level: str = "INFO", **conf: Any) -> Any:
            app = made.enter_context(app_at("memory://", settings=quick(log_format=log_format, log_level=log_level)))
            app.conf.update(conf)
            return app

        yield make_app


class TestLines:
    @pytest.mark.parametrize(
        "log",
        [
            logging.getLogger("shop").warning,
            get_task_logger("shop.tasks").warning,
            logging.getLogger("celery.worker").warning,
            lambda event: get_logger("shop").warning(event),
            lambda event: structlog.get_logger("shop").warning(event),
        ],
        ids=["stdlib", "task logger", "celery", "ours", "structlog"],
    )
    def test_pass_the_pipeline(self, make: Maker, log_file: Path, lines: Reader, log: Callable[[str], None]) -> None:
        """Whoever logs in a worker writes our format, with the agent's name on every line."""
        make().log.setup("INFO", str(log_file), hostname="text@a")

        log("sold")

        (line,) = lines()
        assert ("sold", "warning", "text@a") == (line["event"], line["level"], line["agent"])

    def test_outside_of_agents_name_none(self, make: Maker, log_file: Path, lines: Reader) -> None:
        """`celery beat` and others aren't agents."""
        make().log.setup("INFO", str(log_file))
        logging.getLogger("shop").info("sold")

        assert "agent" not in lines()[0]

    def test_for_people_in_a_file_have_dates(self, make: Maker, log_file: Path) -> None:
        """A file is kept for longer than a day."""
        make("console").log.setup("INFO", str(log_file), hostname="text@a")
        logging.getLogger("shop").info("sold")

        _, _, rest = log_file.read_text(encoding="utf-8").partition(" ")
        assert log_file.read_text(encoding="utf-8")[:2] == "20"
        assert rest.endswith(" info     sold [shop]\n")

    def test_go_to_standard_error(self, make: Maker) -> None:
        """That is where Celery logs without a file."""
        make("console").log.setup("INFO")

        assert [sys.__stderr__] == [handler.stream for handler in logging.getLogger().handlers]  # type: ignore[attr-defined]

    @pytest.mark.parametrize(("no_color", "expected"), [("", True), ("1", False)])
    def test_have_colours_on_a_terminal(
        self, make: Maker, monkeypatch: pytest.MonkeyPatch, no_color: str, expected: bool
    ) -> None:
        """Unless there's a file, the project has said no, or NO_COLOR does."""
        monkeypatch.setattr(sys, "stderr", Terminal())
        monkeypatch.setenv("NO_COLOR", no_color)
        log = make("console").log

        assert [expected, False, False] == [
            log.supports_color(),
            log.supports_color(logfile="agent.log"),
            log.supports_color(colorize=False),
        ]

    def test_tell_celerys_tasks_as_ours(self, make: Maker, log_file: Path, lines: Reader) -> None:
        """What Celery says of a task names it in fields, without its arguments and its result."""
        make().log.setup("INFO", str(log_file), hostname="text@a")
        about = {"id": ID, "name": "shop.index", "runtime": 0.01234567, "args": "('hunter2',)", "kwargs": "{}"}

        logging.getLogger("celery.app.trace").info("Task %(name)s[%(id)s] succeeded", about, extra={"data": about})

        (line,) = lines()
        assert f"Task shop.index[{ID}] succeeded" == line["event"]
        assert ("shop.index", ID, 0.01234567) == (line["task"], line["task_id"], line["duration_seconds"])
        assert not {"data", "args", "kwargs"} & line.keys()

    def test_leave_others_data_alone(self, make: Maker, log_file: Path, lines: Reader) -> None:
        """A field that is called as Celery's is the project's own."""
        make().log.setup("INFO", str(log_file))
        logging.getLogger("shop").info("sold", extra={"data": {"id": 1, "name": "tea"}})
        logging.getLogger("celery.shop").info("sold", extra={"data": "tea"})

        assert [{"id": 1, "name": "tea"}, "tea"] == [line["data"] for line in lines()]


def command(arguments: list[str]) -> click.Context:
    """Return what Celery's command line has read."""
    options = [click.Option(["-l", "--loglevel"], default="WARNING")]
    return click.Command("worker", params=list(options)).make_context("worker", arguments)


class TestLevel:
    @pytest.mark.parametrize(
        ("arguments", "expected"), [([], logging.ERROR), (["-l", "DEBUG"], logging.DEBUG), (["-l", "WARNING"], 30)]
    )
    def test_of_the_command_line_wins(self, make: Maker, log_file: Path, arguments: list[str], expected: int) -> None:
        """Where it names none, ORCHESTRA_LOG_LEVEL says, and not Celery's default."""
        with command(arguments) as context:
            make(log_level="ERROR").log.setup(context.params["loglevel"], str(log_file))

        assert [expected, expected] == [logging.getLogger(name).level for name in (None, "celery.task")]

    @pytest.mark.parametrize(("given", "expected"), [("DEBUG", logging.DEBUG), (None, logging.ERROR)])
    def test_of_a_program_is_what_it_says(self, make: Maker, log_file: Path, given: str | None, expected: int) -> None:
        """Without a command line, the level that is passed counts."""
        make(log_level="ERROR").log.setup(given, str(log_file))

        assert expected == logging.getLogger().level


class TestProjectsOwn:
    @pytest.mark.parametrize(
        ("setting", "value", "expected"),
        [
            ("worker_log_format", "mine: %(message)s", "mine: sold\n"),
            ("worker_task_log_format", "mine: %(message)s", ": INFO/MainProcess] sold\n"),
            ("worker_log_datefmt", "%Y", ": INFO/MainProcess] sold\n"),
            ("worker_task_log_datefmt", "%Y", ": INFO/MainProcess] sold\n"),
        ],
    )
    def test_formats_are_respected(self, make: Maker, log_file: Path, setting: str, value: str, expected: str) -> None:
        """A project that sets one of Celery's formats has Celery's formatters, for every line."""
        app = make(**{setting: value})
        app.log.setup("INFO", str(log_file), redirect_stdouts=True)
        logging.getLogger("shop").info("sold")

        assert log_file.read_text(encoding="utf-8").endswith(expected)
        assert "celery.utils.log" == type(sys.stdout).__module__
        assert not structlog.is_configured()

    def test_colours_dont_count_as_a_format(self, make: Maker, log_file: Path, lines: Reader) -> None:
        """A project may want no colours, and our format."""
        make(worker_log_color=False).log.setup("INFO", str(log_file))
        logging.getLogger("shop").info("sold")

        assert "sold" == lines()[0]["event"]

    def test_formatter_is_respected(self, make: Maker, log_file: Path) -> None:
        """A formatter that is passed by name isn't one of Celery's two."""
        logger = logging.getLogger("celery.redirected")
        make().log.setup_handlers(
            logger, str(log_file), "%(message)s", False, formatter=lambda text, **_: logging.Formatter(f"mine: {text}")
        )
        logger.warning("sold")

        assert "mine: sold\n" == log_file.read_text(encoding="utf-8")

    def test_set_up_by_the_signal(self, make: Maker, log_file: Path) -> None:
        """A project that takes logging over, as Celery tells how, is left alone."""
        before, seen = list(logging.getLogger().handlers), []

        def take_over(**given: Any) -> None:
            seen.append(given["logfile"])

        signals.setup_logging.connect(take_over)
        make().log.setup("INFO", str(log_file), redirect_stdouts=True)

        assert [str(log_file)] == seen
        assert before == logging.getLogger().handlers
        assert not structlog.is_configured()
        assert not worker_says("celeryd_after_setup").quiet

    def test_set_up_by_the_signal_with_our_pipeline(self, make: Maker) -> None:
        """The pipeline may be set up there, with a stream of the project's own."""
        output = Output()

        def take_over(**_: Any) -> None:
            setup_logging("INFO", "json", stream=output)

        signals.setup_logging.connect(take_over)
        make("console").log.setup("ERROR")
        logging.getLogger("shop").info("sold")

        assert "sold" == output.line["event"]

    def test_root_logger_is_left(self, make: Maker, log_file: Path) -> None:
        """With `worker_hijack_root_logger=False`, handlers of the project stay, and none is added to them."""
        logging.getLogger().handlers = [own := logging.StreamHandler(Output())]
        make(worker_hijack_root_logger=False).log.setup("INFO", str(log_file))
        logging.getLogger("shop").info("sold")

        assert [own] == logging.getLogger().handlers
        assert "sold\n" == own.stream.getvalue()

    def test_root_logger_is_taken(self, make: Maker, log_file: Path, lines: Reader) -> None:
        """Otherwise the handlers that `basicConfig` and others have set give way, as they do in Celery."""
        logging.getLogger().handlers = [logging.StreamHandler(Output())]
        make().log.setup("INFO", str(log_file))
        logging.getLogger("shop").info("sold")

        assert ["sold"] == [line["event"] for line in lines()]

    def test_structlog_is_left(self, make: Maker, log_file: Path) -> None:
        """A project that has configured structlog keeps its configuration."""
        structlog.configure(context_class=dict)
        make().log.setup("INFO", str(log_file))

        assert structlog.stdlib.BoundLogger is not structlog.get_config()["wrapper_class"]


def worker_says(name: str, **fields: Any) -> Any:
    """Send a signal as a worker does; return the worker."""
    worker = SimpleNamespace(quiet=False)
    getattr(signals, name).send(sender="text@a", instance=worker, **fields)
    return worker


class TestPrinted:
    @pytest.fixture
    def redirect(self, make: Maker, log_file: Path) -> Callable[[], None]:
        """Give a function that redirects what is printed, as workers do; pytest redirects it before each test."""
        return lambda: make().log.setup("INFO", str(log_file), redirect_stdouts=True)

    def test_is_one_record_a_call(self, redirect: Callable[[], None], lines: Reader) -> None:
        """Arguments are one record together, lines of one text too, on either stream; nothing printed is none."""
        redirect()

        print("sold", 3, "teas")
        print("two\nlines", file=sys.stderr)
        print()

        assert [("sold 3 teas", "warning"), ("two\nlines", "warning")] == [
            (line["event"], line["level"]) for line in lines()
        ]

    def test_waits_for_the_end_of_the_line(self, redirect: Callable[[], None], lines: Reader) -> None:
        """What is printed piece by piece is one record, and a flush ends it."""
        redirect()

        print("one", end=" ")
        print("line")
        print("two", end="", flush=True)

        assert ["one line", "two"] == [line["event"] for line in lines()]

    def test_of_threads_isnt_mixed(self, redirect: Callable[[], None], lines: Reader) -> None:
        """Each thread has lines of its own."""
        redirect()

        print("one", end=" ")
        thread = threading.Thread(target=lambda: print("another"))
        thread.start()
        thread.join()
        print("line")

        assert ["another", "one line"] == [line["event"] for line in lines()]

    def test_past_the_redirection(self, redirect: Callable[[], None], lines: Reader) -> None:
        """What Celery prints to the true standard output becomes a record; when the worker stops, that's back."""
        redirect()

        print("Erased", file=sys.__stdout__)
        assert not hasattr(sys.__stdout__, "fileno")
        worker_says("worker_shutdown")

        assert ["Erased"] == [line["event"] for line in lines()]
        assert hasattr(sys.__stdout__, "fileno")


class TestWorkersWords:
    def test_banner_is_left_out(self, make: Maker, log_file: Path) -> None:
        """It's no JSON."""
        make().log.setup("INFO", str(log_file))

        assert worker_says("celeryd_after_setup").quiet

    def test_stop_is_told(self, make: Maker, log_file: Path, lines: Reader) -> None:
        """What Celery says for people when it's asked to stop is told as an event."""
        make().log.setup("INFO", str(log_file))
        worker_says("worker_shutting_down", sig="SIGTERM", how="Warm", exitcode=0)

        (line,) = lines()
        assert ("agent stops", "warm", "SIGTERM") == (line["event"], line["how"], line["signal"])

    def test_people_get_both(self, make: Maker, log_file: Path) -> None:
        """The console has Celery's banner and Celery's own words."""
        make("console").log.setup("INFO", str(log_file), redirect_stdouts=True)
        worker_says("worker_shutting_down", sig="SIGTERM", how="Warm", exitcode=0)

        assert hasattr(sys.__stdout__, "fileno")
        assert not worker_says("celeryd_after_setup").quiet
        assert "" == log_file.read_text(encoding="utf-8")


class TestTaskContext:
    def test_is_bound_while_a_task_runs(self, redis_url: str) -> None:
        """In an agent, id, name and attempt are bound; what a task binds itself doesn't reach the next one."""
        with app_at(redis_url) as app:

            @app.task(name="t.bound", shared=False)
            def bound(shelf: int | None = None) -> dict[str, Any]:
                found = get_contextvars()
                if shelf is not None:
                    bind_contextvars(shelf=shelf)
                return found

            with agent_of(app):
                results = [bound.delay(3), bound.delay()]
                found = [result.get(timeout=20) for result in results]

        assert all("agent" in context for context in found)
        assert [(result.id, "t.bound", 1, None) for result in results] == [
            (context["task_id"], context["task"], context["attempt"], context.get("shelf")) for context in found
        ]

    def test_of_a_task_within_a_task(self, make: Maker) -> None:
        """A task that another one runs takes over until it's done, and then the outer one is bound as before."""
        app = make()
        app.log.setup("ERROR")
        seen: list[Any] = []

        @app.task(name="t.inner", shared=False)
        def inner() -> None:
            bind_contextvars(shelf=3)
            seen.append(get_contextvars())

        @app.task(name="t.outer", shared=False)
        def outer() -> None:
            inner.apply(task_id="inner").get()
            seen.append(get_contextvars())

        with bound_contextvars(agent="text@a"):
            outer.apply(task_id="outer").get()

            assert {"agent": "text@a"} == get_contextvars()
        assert [
            {"agent": "text@a", "task_id": "inner", "task": "t.inner", "attempt": 1, "shelf": 3},
            {"agent": "text@a", "task_id": "outer", "task": "t.outer", "attempt": 1},
        ] == seen

    def test_has_a_line_that_wasnt_ended(self, make: Maker, log_file: Path, lines: Reader) -> None:
        """What a task prints last, without the end of a line, is its own."""
        app = make()
        app.log.setup("WARNING", str(log_file), redirect_stdouts=True)

        @app.task(name="t.print", shared=False)
        def printing() -> None:
            print("half", end="")

        printing.apply(task_id="first").get()
        printing.apply(task_id="second").get()

        assert [("half", "first"), ("half", "second")] == [(line["event"], line["task_id"]) for line in lines()]
