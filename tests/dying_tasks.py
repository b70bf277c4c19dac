"""Tasks that come to a bad end, and the fleet that runs them."""

import ctypes
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from celery.exceptions import Reject

from orchestra import Backoff, Orchestra, OrchestraCelery, PermanentError, RetryableError
from orchestra.letters import DeadLetter
from tests.fleets import app_at
from tests.integration.agents import AgentProcess, Agents, agents, wait_until

__all__ = ["ENDS_OF_PROCESSES", "FAILURES", "DyingFleet", "dying_fleet", "make_app"]

_PROJECT: Final = Path(__file__).parents[1]
_APP: Final = "from tests.dying_tasks import make_app\n\napp = make_app()\n"
_ROOM_BYTES: Final = 400_000_000  # for what a process may take beyond what it has


# ── within the agents ──


class UnreadableError(Exception):
    """Raises another error when it's asked for its words."""

    def __str__(self) -> str:
        """Fail."""
        message = "no words"
        raise ValueError(message)

    __repr__ = __str__


class UnpicklableError(Exception):
    """Can't be taken from one process to another."""

    def __reduce__(self) -> str | tuple[Any, ...]:
        """Fail."""
        message = "not to be pickled"
        raise TypeError(message)


class UnmadeError(Exception):
    """Can be pickled, and not be made again of that."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")


def _raise(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


def _recurse(depth: int = 0) -> int:
    return _recurse(depth + 1)


def _take_all_memory() -> None:
    """Take memory until the system refuses more, as it does where a limit is set."""
    taken, before = list[bytearray](), resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + _ROOM_BYTES, before[1]))
    try:
        while True:
            taken.append(bytearray(20_000_000))
    finally:
        taken.clear()
        resource.setrlimit(resource.RLIMIT_AS, before)


def _result_that_is_no_json() -> object:
    return object()


FAILURES: Final[Mapping[str, Callable[[], object]]] = {
    "MemoryError": _raise(MemoryError("x")),
    "all memory": _take_all_memory,
    "RecursionError": _recurse,
    "sys.exit": lambda: sys.exit(3),
    "SystemExit": _raise(SystemExit("bye")),
    "KeyboardInterrupt": _raise(KeyboardInterrupt()),
    "unreadable": _raise(UnreadableError()),
    "unpicklable": _raise(UnpicklableError("x")),
    "unmade": _raise(UnmadeError("a", "b")),
    "no result": _result_that_is_no_json,
}

ENDS_OF_PROCESSES: Final[Mapping[str, Callable[[], object]]] = {
    "os._exit": lambda: os._exit(3),
    "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "segfault": lambda: ctypes.string_at(0),
}


def _ran(task: Any, number: object) -> None:  # Celery's task
    with Path(os.environ["RAN"]).open("a", encoding="utf-8") as ran:
        ran.write(f"{number} {task.request.hostname} {os.getpid()}\n")


def _end(self: Any, how: str) -> object:
    """Come to the end that is named."""
    _ran(self, how)
    return {**FAILURES, **ENDS_OF_PROCESSES}[how]()


def _ok(self: Any, number: int) -> int:
    """Return what was given."""
    _ran(self, number)
    return number


def _unless_mended(self: Any, number: int, error: str = "permanent") -> int:
    """Fail in the way that is named until a file says that all is well."""
    _ran(self, number)
    if not Path(os.environ["MENDED"]).exists():
        raise {
            "permanent": PermanentError("not mended"),
            "retryable": RetryableError("not yet"),
            "key": KeyError("not mended"),
            "rejected": Reject("don't want it", requeue=False),
        }[error]
    if error == "retryable" and self.request.retries == int(os.environ.get("RETRIES_BEFORE", "0")):
        raise RetryableError("once more")
    return number


def _sleep(self: Any, number: int, seconds: float) -> int:
    """Take so long."""
    _ran(self, number)
    time.sleep(seconds)
    return number


def make_app() -> Any:  # OrchestraCelery, whose tasks' options Celery's types don't know
    """Make the agents' app."""
    app: Any = OrchestraCelery("fleet", set_as_current=False)
    app.task(name="fleet.end", bind=True, shared=False, requires="risk")(_end)
    app.task(name="fleet.end_once", bind=True, shared=False, max_lost_processes=0, max_lost_agents=0)(_end)
    app.task(name="fleet.end_twice", bind=True, shared=False, max_lost_processes=1, max_lost_agents=1)(_end)
    app.task(name="fleet.ok", bind=True, shared=False)(_ok)
    app.task(name="fleet.fail", bind=True, shared=False)(_unless_mended)
    app.task(name="fleet.expected", bind=True, shared=False, throws=(KeyError,))(_unless_mended)
    app.task(name="fleet.unkept", bind=True, shared=False, dead_letters=False)(_unless_mended)
    app.task(name="fleet.flaky", bind=True, shared=False, max_attempts=2, backoff=Backoff(base_seconds=0.1))(
        _unless_mended
    )
    app.task(name="fleet.sleep", bind=True, shared=False)(_sleep)
    return app


# ── for the tests ──


class DyingFleet:
    """Agents that run the tasks above."""

    def __init__(self, app: Any, started: Agents, folder: Path) -> None:
        self.app = app
        self.engine = Orchestra(app)
        self._started = started
        self._folder = folder

    def start(self, name: str, *options: str, pool: str = "prefork", **environment: str) -> AgentProcess:
        """Start an agent with two processes or threads, which is lost after a second of silence."""
        variables: dict[str, Any] = {
            "RAN": str(self._folder / "ran"),
            "MENDED": str(self._folder / "mended"),
            "ORCHESTRA_BEAT_SECONDS": "0.25",
            "ORCHESTRA_LOST_AFTER_BEATS": "4",
            "PYTHONPATH": f"{self._folder}:{_PROJECT}",
            **environment,
        }
        can = ("--capabilities", "risk,general", "-c", "2")
        return self._started.start(*can, *options, name=name, pool=pool, **variables)

    def send(self, task: str, *args: object, **options: Any) -> Any:
        """Send a task."""
        return self.app.send_task(f"fleet.{task}", args, **options)

    def mend(self) -> None:
        """Have those succeed that fail until then."""
        (self._folder / "mended").touch()

    def runs(self, number: object) -> list[list[str]]:
        """Return the runs of a task, in their order: agent and process."""
        ran = self._folder / "ran"
        lines = ran.read_text(encoding="utf-8").splitlines() if ran.exists() else []
        return [line.rsplit(" ", 2)[1:] for line in lines if line.rsplit(" ", 2)[0] == str(number)]

    def letter(self, task_id: str) -> DeadLetter:
        """Wait for a task's dead letter."""
        letters = self.engine.dead_letters
        wait_until(
            lambda: task_id in {one.id for one in letters.list(limit=1000).letters}, seconds=60, what="a dead letter"
        )
        return letters.show(task_id)

    def is_empty(self) -> bool:
        """Tell whether no message waits, is delayed, or is in an agent's hands."""
        return not any(one.depth or one.delayed or one.leased for one in self.engine.queues())


@contextmanager
def dying_fleet(folder: Path, url: str) -> Iterator[DyingFleet]:
    """Give a fleet without agents; those that it starts are stopped at the end."""
    with agents(folder, url) as started, app_at(url, main="fleet") as app:
        started.write_app(_APP)
        yield DyingFleet(app, started, folder)
