"""What a cancellation takes in front of queues of different lengths."""

from statistics import median
from time import perf_counter
from typing import Final

from orchestra.embedded import EmbeddedServer
from orchestra.orchestra import Orchestra
from orchestra.private_app import PrivateApp

_BACKLOGS: Final = (0, 10_000, 50_000)
_ROUNDS: Final = 500


def _nothing() -> None: ...


def main() -> None:
    """Print the median time of a cancellation for each backlog."""
    with EmbeddedServer.start() as server:
        app = PrivateApp(server.url)
        app.task(name="tests.nothing")(_nothing)
        orchestra = Orchestra(app)
        waiting = 0
        for backlog in _BACKLOGS:
            orchestra.submit_many("tests.nothing", [{}] * (backlog - waiting))
            waiting = backlog
            handles = orchestra.submit_many("tests.nothing", [{}] * _ROUNDS)
            waiting += _ROUNDS
            app.store.command("CONFIG", "RESETSTAT")
            seconds = []
            for handle in handles:
                started = perf_counter()
                handle.cancel()
                seconds.append(perf_counter() - started)
            server_us = app.store.command("INFO", "commandstats")["cmdstat_evalsha"]["usec_per_call"]
            print(  # noqa: T201
                f"{backlog:>7,} tasks wait: a cancellation takes {1000 * median(seconds):.2f} ms, "
                f"of which {server_us:.0f} us in Redis"
            )
        app.close()


if __name__ == "__main__":
    main()
