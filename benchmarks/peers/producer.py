"""
Submits tasks of one system, by the interpreter of its environment, as asked on standard input.

    python -m benchmarks.peers.producer MODULE

Each line of the input is a JSON object with `do` and what that takes, each line of the output the answer to one:
`{"found": …}` or `{"error": …}`. Times are in seconds.
"""

import asyncio
import json
import os
import sys
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib import import_module
from inspect import isawaitable, iscoroutinefunction
from time import monotonic_ns, perf_counter, process_time, sleep
from typing import IO, Any, Final

__all__ = ["main"]

_POLL_SECONDS: Final = 0.002
_LIMIT_SECONDS: Final = 180.0


class _Producer:
    """What can be asked for; the handles of the tasks that were submitted last are kept for `settle`."""

    def __init__(self, app: Any) -> None:  # a module of benchmarks.peers.apps
        self._app = app
        self._last: list[Any] = []

    async def about(self) -> dict[str, Any]:
        """Tell which of the optional ways the system has."""
        return {"bulk": hasattr(self._app, "submit_many")}

    async def submit(self, kind: str, argument: Any, count: int) -> dict[str, float]:
        """Submit so many tasks one by one, each once the one before is known to have arrived."""
        send, handle = self._app.submit, None
        wall, cpu = perf_counter(), process_time()
        if iscoroutinefunction(send):
            for _ in range(count):
                handle = await send(kind, argument)
        else:
            for _ in range(count):
                handle = send(kind, argument)
        found = {"wall": perf_counter() - wall, "cpu": process_time() - cpu}
        self._last = [handle]
        return found

    async def bulk(self, kind: str, argument: Any, count: int) -> dict[str, float]:
        """Submit so many tasks the way that the system has for many, or one by one where it has none."""
        if not hasattr(self._app, "submit_many"):
            return await self.submit(kind, argument, count)
        wall, cpu = perf_counter(), process_time()
        handles = await _answer(self._app.submit_many(kind, [argument] * count))
        found = {"wall": perf_counter() - wall, "cpu": process_time() - cpu}
        self._last = handles[-1:]
        return found

    async def spread(self, kind: str, argument: Any, count: int, queues: int) -> None:
        """Submit so many tasks, by turns to so many queues."""
        self._last = [self._app.submit_to(number % queues, kind, argument) for number in range(count)][-1:]

    async def settle(self) -> float:
        """Return when the result of the task that was submitted last could be read, by the monotonic clock."""
        deadline = perf_counter() + _LIMIT_SECONDS
        while not all([await _answer(self._app.finished(handle)) for handle in self._last]):
            if perf_counter() > deadline:
                message = f"The last task's result can't be read after {_LIMIT_SECONDS:.0f} s."
                raise TimeoutError(message)
            await asyncio.sleep(_POLL_SECONDS)
        return monotonic_ns() / 1e9

    async def latency(self, kind: str, argument: Any, count: int) -> list[float]:
        """Submit so many tasks, each after the one before has answered, and return how long each answer took."""
        took = []
        for _ in range(count):
            start = perf_counter()
            handle = await _answer(self._app.submit(kind, argument))
            await _answer(self._app.wait(handle))
            took.append(perf_counter() - start)
            await asyncio.sleep(_POLL_SECONDS)  # so that the worker is at rest again
        return took

    async def pace(self, count: int, rate: float) -> float:
        """Submit so many tasks, so many a second whatever becomes of them, and return the rate that was reached."""
        start = perf_counter()
        for number in range(count):
            ahead = start + number / rate - perf_counter()
            if ahead > 0:
                sleep(ahead)  # noqa: ASYNC251  # more punctual than asyncio's, and nothing else is to run meanwhile
            self._last = [await _answer(self._app.submit("stamped", monotonic_ns()))]
        return count / (perf_counter() - start)


async def _answer(found: Any) -> Any:
    return await found if isawaitable(found) else found


@asynccontextmanager
async def _session(app: Any) -> AsyncIterator[None]:
    if not hasattr(app, "session"):
        yield
        return
    async with app.session():
        yield


async def _serve(module: str, asked: "IO[str]", answers: "IO[str]") -> None:
    app = import_module(module)
    async with _session(app):
        producer = _Producer(app)
        while line := await asyncio.get_running_loop().run_in_executor(None, asked.readline):
            wish = json.loads(line)
            act: Callable[..., Awaitable[Any]] = getattr(producer, wish.pop("do"))
            try:
                answer = {"found": await act(**wish)}
            except Exception:  # noqa: BLE001  # whatever it is, the one who asked is told
                answer = {"error": traceback.format_exc()}
            print(json.dumps(answer), file=answers, flush=True)


def main() -> None:
    """Serve until the input ends; what the system prints goes to standard error."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    asyncio.run(_serve(sys.argv[1], sys.stdin, answers))


if __name__ == "__main__":
    main()
