"""The systems that are measured: where each lives, how its workers are started, and what it promises that way."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

__all__ = ["PROJECT", "SYSTEMS", "Promise", "System"]

PROJECT: Final = Path(__file__).resolve().parents[2]
_AT_A_TIME: Final = 100  # waits that a process carries at a time, where the system can


@dataclass(frozen=True, slots=True)
class Promise:
    """
    What becomes of a task, in the settings that are measured.

    `again` tells whether a task that runs in a worker which is killed by SIGKILL runs again, and `survives` when;
    `acknowledged` when its message is given up; `results` where results are kept; `why` and `source` are the evidence.
    """

    survives: str
    acknowledged: str
    results: str
    why: str
    source: str
    again: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """
    One system in one setting.

    `worker` is the command that starts it with so many `{processes}`; with `one_each` it's started once for each of
    them. `waiting` starts one process for tasks that wait; None where `worker` does for that, too,
    and empty where another entry has it. `crowd` starts one
    for many `{queues}`; None where the system takes no part in that. `share` is how many of the tasks a slow one gets.
    """

    name: str
    app: str  # module of benchmarks.peers.apps
    home: str = ""  # environment below .venv-peers; empty for the one that measures
    worker: str
    one_each: bool = False
    waiting: str | None = None
    crowd: str | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    share: float = 1.0
    settings: str
    promise: Promise

    @property
    def programs(self) -> Path:
        """The folder of its interpreter and its commands."""
        return PROJECT / ".venv-peers" / self.home / "bin" if self.home else Path(sys.executable).parent

    @property
    def module(self) -> str:
        """The module that describes its task."""
        return f"benchmarks.peers.apps.{self.app}"

    @property
    def sender(self) -> str:
        """What submits: systems that differ in their workers alone share it."""
        return " ".join([self.app, *(value for name, value in self.variables.items() if name != "PEERS_POOL")])

    def described(self) -> dict[str, Any]:
        """Return what is told of it beside its figures."""
        return {"settings": self.settings, "promise": asdict(self.promise)}

    def commands(self, processes: int) -> list[list[str]]:
        """Return what starts workers with so many processes together."""
        times = processes if self.one_each else 1
        return [self.command(self.worker, processes=processes, number=number) for number in range(times)]

    def command(self, template: str, **parts: object) -> list[str]:
        """Fill one command in."""
        program, *words = template.format(module=self.module, at_a_time=_AT_A_TIME, **parts).split()
        return [str(self.programs / program), *words]


_CELERY: Final = "celery -A {module}:app --quiet worker --hostname w{number}@%h --loglevel WARNING"
_THREADS: Final = f"{_CELERY.replace('{number}', '0')} --pool threads --concurrency {{at_a_time}}"

_CELERY_PROMISE: Final = Promise(
    "after the visibility timeout, 1 h; a message between BRPOP and its note is lost",
    "after the task",
    "Redis, before the acknowledgement",
    "`task_acks_late` and `task_reject_on_worker_lost`; an unacknowledged message goes by age",
    "https://docs.celeryq.dev/en/stable/getting-started/backends-and-brokers/redis.html#visibility-timeout",
    again=True,
)
_OUR_PROMISE: Final = Promise(
    "within about 10 s",
    "after the task",
    "Redis, in one step with the record",
    "one step pops and leases, and a lease goes by its holder's life",
    "delivery.md",
    again=True,
)
_TASKIQ_SETTINGS: Final = "100 tasks at a time (default), uvloop, ORJSON"
_SOLO: Final = "Celery's solo pool, a worker for each process"


def _celery(name: str, pool: str, settings: str, *, one_each: bool = False) -> System:
    return System(
        name=name,
        app="stock",
        worker=f"{_CELERY.replace('{number}', '0') if not one_each else _CELERY} {pool}",
        one_each=one_each,
        waiting="" if one_each else _THREADS,
        crowd=f"{_CELERY.replace('{number}', '0')} {pool} -Q {{queues}}" if one_each else None,
        settings=f"{settings}; acknowledged late, prefetch 64 a process, JSON",
        promise=_CELERY_PROMISE,
    )


def _ours(
    name: str, pool: str, settings: str, *, one_each: bool = False, variables: Mapping[str, str] | None = None
) -> System:
    return System(
        name=name,
        app="ours",
        worker=f"{_CELERY.replace('{number}', '0') if not one_each else _CELERY} {pool}",
        one_each=one_each,
        waiting="" if one_each else _THREADS,
        crowd=f"{_CELERY.replace('{number}', '0')} {pool} --capabilities {{queues}}" if one_each else None,
        variables=variables or {},
        settings=f"{settings}; all else as it ships",
        promise=_OUR_PROMISE,
    )


SYSTEMS: Final[Sequence[System]] = (
    _ours(
        "ours, inline",
        "",
        "inline pool, a worker for each process",
        one_each=True,
        variables={"PEERS_POOL": "orchestra.pools:InlinePool"},
    ),
    _ours("ours, solo", "--pool solo", _SOLO, one_each=True),
    _ours("ours, prefork", "--pool prefork --concurrency {processes}", "Celery's prefork pool"),
    _celery("Celery, solo", "--pool solo", _SOLO, one_each=True),
    _celery("Celery, prefork", "--pool prefork --concurrency {processes}", "prefork pool"),
    System(
        name="dramatiq",
        app="dramatiq",
        home="dramatiq",
        worker="dramatiq --processes {processes} --threads 8 --skip-logging {module}:broker",
        waiting="dramatiq --processes 1 --threads {at_a_time} --skip-logging {module}:broker",
        settings="8 threads a process (default), results on, JSON",
        promise=Promise(
            "after 60 s",
            "after the task",
            "Redis, before the acknowledgement",
            "who sends no heartbeat for `heartbeat_timeout` loses its messages to others",
            "https://dramatiq.io/reference.html#dramatiq.brokers.redis.RedisBroker",
            again=True,
        ),
    ),
    System(
        name="huey",
        app="huey",
        home="huey",
        worker="huey_consumer {module}.huey --worker-type process --workers {processes} --quiet",
        waiting="huey_consumer {module}.huey --worker-type thread --workers {at_a_time} --quiet",
        settings="processes, results on with `notify_result`, pickle (default)",
        promise=Promise(
            "no: lost",
            "before the task",
            "Redis",
            "a worker pops the message, and nothing else knows of it then",
            "https://github.com/coleifer/huey/blob/master/huey/storage.py",
            again=False,
        ),
    ),
    System(
        name="RQ",
        app="rq",
        home="rq",
        worker="rq worker --quiet --disable-job-desc-logging --worker-class rq.SimpleWorker --url {{url}} peers",
        one_each=True,
        settings="`SimpleWorker`, which doesn't fork, a worker for each process; pickle (default)",
        promise=Promise(
            "no: marked as failed, and run again only where the job has `retry`",
            "by its record",
            "Redis",
            "a registry of started jobs is looked through for those without a heartbeat",
            "https://python-rq.org/docs/workers/",
            again=False,
        ),
    ),
    System(
        name="RQ, forking",
        app="rq",
        home="rq",
        worker="rq worker --quiet --disable-job-desc-logging --url {{url}} peers",
        one_each=True,
        share=0.1,
        settings="`Worker` (default), which forks for each job; pickle (default)",
        promise=Promise(
            "no: marked as failed, and run again only where the job has `retry`",
            "by its record",
            "Redis",
            "as above; the worker outlives a killed job",
            "https://python-rq.org/docs/workers/",
            again=False,
        ),
    ),
    System(
        name="taskiq, stream",
        app="taskiq",
        home="taskiq",
        worker="taskiq worker {module}:broker --workers {processes} --log-level WARNING",
        settings=_TASKIQ_SETTINGS,
        promise=Promise(
            "after 10 min",
            "after the result is kept",
            "Redis, before the acknowledgement",
            "what is idle for `idle_timeout` is claimed by others, if its task is long, too",
            "https://github.com/taskiq-python/taskiq-redis#redisstreambroker-configuration",
            again=True,
        ),
    ),
    System(
        name="taskiq, list",
        app="taskiq",
        home="taskiq",
        worker="taskiq worker {module}:broker --workers {processes} --log-level WARNING",
        variables={"PEERS_TASKIQ": "list"},
        settings=_TASKIQ_SETTINGS,
        promise=Promise(
            "no: lost",
            "before the task",
            "Redis",
            "`ListQueueBroker` pops the message and has no acknowledgements",
            "https://github.com/taskiq-python/taskiq-redis#readme",
            again=False,
        ),
    ),
    System(
        name="arq",
        app="arq",
        home="arq",
        worker="arq {module}.WorkerSettings",
        one_each=True,
        settings="`max_jobs` 100 (default 10), `poll_delay` 5 ms (default 500 ms), pickle (default)",
        promise=Promise(
            "after `job_timeout`, 5 min, and 10 s",
            "after the result is kept",
            "Redis",
            "a job stays in its queue until it's done; a key that expires says that somebody runs it",
            "https://arq-docs.helpmanual.io/#retrying-jobs-and-cancellation",
            again=True,
        ),
    ),
    System(
        name="SAQ",
        app="saq",
        home="saq",
        worker="saq {module}.settings --workers {processes} --quiet",
        settings="`concurrency` 100 (default 10), JSON (default)",
        promise=Promise(
            "by default no: swept up as aborted; with `retries` after `timeout`, 10 s",
            "with the result",
            "Redis",
            "a list of active jobs is swept for those that are stuck",
            "https://saq-py.readthedocs.io/en/latest/",
            again=False,
        ),
    ),
    System(
        name="streaQ",
        app="streaq",
        home="streaq",
        worker="streaq run {module}:worker --workers {processes}",
        settings="`concurrency` 100 (default 16), uvloop, pickle (default)",
        promise=Promise(
            "after 60 s",
            "with the result",
            "Redis",
            "workers renew what they run; what is idle for `idle_timeout` is claimed by others",
            "https://streaq.readthedocs.io/en/latest/worker.html",
            again=True,
        ),
    ),
)
