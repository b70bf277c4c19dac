"""A real agent in a thread of the test's own process: no other process, no module to import, no waiting."""

from collections.abc import Mapping
from functools import partial
from threading import Event, Thread
from time import monotonic
from types import TracebackType
from typing import Any, Final, Self

from celery import _state as celery_state
from celery import signals
from celery.app.log import Logging
from celery.app.trace import fast_trace_task, trace_task_ret
from celery.concurrency.base import apply_target
from celery.exceptions import WorkerShutdown
from celery.platforms import EX_OK
from celery.worker import state as worker_state
from kombu.asynchronous import get_event_loop, set_event_loop
from kombu.serialization import prepare_accept_content

from orchestra.exceptions import BrokerUnavailableError, ConfigurationError, PermanentError
from orchestra.pools import pool_named
from orchestra.store import text_of

__all__ = ["LocalAgent"]

_START_SECONDS: Final = 30.0
_STOP_SECONDS: Final = 30.0
_LOOK_SECONDS: Final = 0.02
_POOLS: Final = ("solo", "inline")  # which run tasks in the thread of their agent
_LOOKS: Final = frozenset({"brpop", "blpop"})  # the commands with which a worker waits for messages


class LocalAgent:
    """
    A running agent; `with LocalAgent.start(app, "nlp") as agent:` stops it at the end of the block.

    It is Celery's own worker with the solo pool: it runs one task at a time, and can't end one that takes too long. It
    leaves logging alone. Several may run side by side; the `running` that each tells of itself counts the tasks of all,
    since Celery counts those by process.
    """

    def __init__(self, app: Any, name: str, options: Mapping[str, Any]) -> None:  # OrchestraCelery; Celery's options
        self.name = name
        self._app = app
        self._ready = Event()
        self.worker = _worker(app, hostname=name, ready_callback=lambda _: self._ready.set(), **options)
        known: Any = celery_state  # celery-types leaves most of it out
        known._set_task_join_will_block(False)  # noqa: FBT003, SLF001  # who waits for results isn't in the pool
        self._thread = Thread(target=self._work, name=name, daemon=True)

    @classmethod
    def start(
        cls,
        app: Any,  # OrchestraCelery
        capabilities: str | None = None,
        *,
        name: str = "agent@local",
        **options: Any,  # Celery's own
    ) -> Self:
        """
        Start an agent and wait until it has joined its fleet.

        Args:
            app: the app whose tasks it runs.
            capabilities: what it can, such as `nlp,mem_gb=64`; `general` unless it's given.
            name: one that no other live agent of the fleet has.
            options: those of a Celery worker, such as `queues`; its pool stays the solo one.

        Raises:
            ConfigurationError: another pool is asked for, which wouldn't run any task here.
            PermanentError: it did not start.

        """
        _refuse_other_pools(options)
        agent = cls(app, name, {"capabilities": capabilities, **options})
        agent._thread.start()
        agent._wait_until_ready()
        return agent

    @property
    def running(self) -> bool:
        """Whether it has not stopped yet."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """
        Let it finish the task in hand and leave; stopping twice does no harm.

        Raises:
            PermanentError: the task in hand doesn't end.

        """
        if not self._thread.is_alive():
            return
        backends = list(self._app._backends)  # noqa: SLF001  # the agent's is gone from there with its thread
        hub = self.worker.hub
        hub.call_soon(hub.on_tick.add, partial(_leave, hub))
        deadline = monotonic() + _STOP_SECONDS
        while self._thread.is_alive() and monotonic() < deadline:
            _interrupt(self._app)  # again and again, since a look may just be about to begin
            self._thread.join(_LOOK_SECONDS)
        worker_state.should_terminate = None
        if self._thread.is_alive():
            message = f"Agent {self.name} did not stop within {_STOP_SECONDS:.0f} s: is a task of it still running?"
            raise PermanentError(message)
        for backend in backends:
            if hasattr(backend, "disconnect"):
                backend.disconnect()

    def _work(self) -> None:
        self._app.set_current()  # for this thread
        self.worker.start()

    def _wait_until_ready(self) -> None:
        deadline = monotonic() + _START_SECONDS
        while not self._ready.wait(_LOOK_SECONDS):
            if not self.running or monotonic() > deadline:
                message = f"Agent {self.name} did not start; what it logged says why."
                raise PermanentError(message)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _refuse_other_pools(options: Mapping[str, Any]) -> None:
    for option in ("pool", "pool_cls"):
        if options.get(option, _POOLS[0]) not in _POOLS:
            message = (
                f"A local agent can't have {option}={options[option]!r}: it runs tasks in its own thread, by the pools "
                f"{' and '.join(_POOLS)}. Leave the option out, or start an agent of its own process: `celery worker`."
            )
            raise ConfigurationError(message)


def _worker(app: Any, **options: Any) -> Any:  # Celery's worker
    """Make a worker with an event loop of its own; Celery would have two share one, which two threads can't."""
    app.finalize()
    _set_up_logging(app, options["hostname"])
    before = get_event_loop()
    set_event_loop(None)
    try:
        worker = app.WorkController(
            **{
                "concurrency": 1,
                "without_heartbeat": True,
                "without_mingle": True,
                "without_gossip": True,
                **options,
                "pool": pool_named(options.get("pool", _POOLS[0])),
            }
        )
    finally:
        set_event_loop(before)
    accepted = prepare_accept_content(app.conf.accept_content)
    worker.pool.on_apply = partial(_apply, [app.tasks, accepted, options["hostname"]])
    return worker


def _apply(agent: list[Any], target: Any, *args: Any, **options: Any) -> None:  # as Celery's pool calls it
    """Run a task under its agent's name, which Celery keeps once for a whole process; here it would say the host's."""
    named = partial(fast_trace_task, _loc=agent)
    apply_target(named if target is trace_task_ret else target, *args, **options)


def _set_up_logging(app: Any, name: str) -> None:  # OrchestraCelery
    """Do what a worker's logging set-up does, but for the handlers and levels, which are the test's."""
    logging: Any = Logging  # celery-types leaves out whether it was set up
    before, logging._setup = logging._setup, False  # noqa: SLF001  # Celery would do it once in a process
    signals.setup_logging.connect(_leave_logging_alone)
    try:
        app.log.setup(hostname=name)
    finally:
        signals.setup_logging.disconnect(_leave_logging_alone)
        logging._setup = before  # noqa: SLF001  # as above


def _leave_logging_alone(**_: Any) -> None:
    """Tell Celery, by being there, that somebody else sets the handlers."""


def _leave(hub: Any) -> None:  # the event loop of Celery's worker, which calls this in each turn before it waits
    """End a worker from within its own loop, once nothing is left to do for it, such as an acknowledgement."""
    if not hub._ready:  # noqa: SLF001  # what else would tell?
        raise WorkerShutdown(EX_OK)


def _interrupt(app: Any) -> None:  # OrchestraCelery
    """End the looks at queues that are under way, which a worker that leaves would wait out for a second."""
    try:
        clients = text_of(app.store.command("CLIENT", "LIST")).splitlines()
        for client in [dict(field.split("=", 1) for field in line.split()) for line in clients]:
            if client["cmd"] in _LOOKS:
                app.store.command("CLIENT", "UNBLOCK", client["id"])
    except BrokerUnavailableError:  # the worker is busy with connecting anew, and meanwhile hears of this alone
        worker_state.should_terminate = EX_OK  # type: ignore[assignment]  # an exit code
