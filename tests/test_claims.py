"""Claims: one task for one idempotency key, one for one set of arguments, and when a claim ends."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
from celery import chain, chord, group
from celery.exceptions import TaskRevokedError
from redis import Redis

from orchestra.claims import Claim, claim_of
from orchestra.exceptions import ConfigurationError, IdempotencyError, ValidationError
from orchestra.leases import Lease
from orchestra.orchestra import Orchestra
from orchestra.publishing import PublishId
from orchestra.registry import CatalogueEntry
from orchestra.store import Keys, load_script, text_of
from orchestra.submission import Declared
from orchestra.types import TaskState, Unique
from tests.fleets import agent_of, app_at, commands_at, quick
from tests.proxies import proxy_to
from tests.stores import manager_of, publish
from tests.transit import QUEUE, Transit, holder_named, transit_at

KEYS = Keys("orchestra", "shop")
LOCK = "orchestra:{shop}:lock:shop.index:x"


@pytest.fixture
def app(redis_url: str) -> Iterator[Any]:
    """Give an app with tasks."""
    with app_at(redis_url) as app:
        _declare(app)
        yield app


@pytest.fixture
def orchestra(app: Any) -> Any:  # Orchestra, over an app whose tasks' options Celery's types don't know
    """Give the engine over it."""
    return Orchestra(app)


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:
    """Give a client of the test's own."""
    with Redis.from_url(redis_url) as client:
        yield client


def _declare(app: Any) -> None:
    @app.task(name="shop.plain", shared=False)
    def plain(x: int = 0, y: int = 0, *rest: int, **more: int) -> int:
        return x + y

    @app.task(name="shop.alone", unique="until_done", shared=False)
    def alone(x: int, on: datetime | None = None) -> int:
        return x

    @app.task(name="shop.fresh", unique="until_started", bind=True, shared=False)
    def fresh(self: Any, x: int) -> str:
        return str(self.app.tasks["shop.fresh"].delay(x).id)


def waiting(client: Any) -> int:
    """Count the messages of the default queue."""
    return int(client.llen("celery\x06\x166"))


class TestIdempotency:
    def test_one_task_for_one_key(self, orchestra: Any, client: Any) -> None:
        """A second submission with a key is the first one's task, whoever makes it and however it's written."""
        first = orchestra.submit("shop.plain", {"x": 1, "y": 2}, idempotency_key="doc 42")
        again = orchestra.submit("shop.plain", {"y": 2, "x": 1}, idempotency_key="doc 42")
        plain = orchestra.app.tasks["shop.plain"]
        by_task = plain.apply_async((1, 2), idempotency_key="doc 42")
        by_name = orchestra.app.send_task("shop.plain", (1,), {"y": 2}, idempotency_key="doc 42")
        signed = plain.s(1, 2).set(idempotency_key="doc 42").delay()

        assert [first.id] * 4 == [again.id, by_task.id, by_name.id, signed.id]
        assert (first, False, True) == (again, first.deduplicated, again.deduplicated)
        assert 1 == waiting(client)

    def test_other_keys_and_tasks(self, orchestra: Any, client: Any) -> None:
        """A key counts for one task's name, and other keys for other tasks."""
        handles = [orchestra.submit("shop.plain", {}, idempotency_key=key) for key in ("a", "b")]
        handles.append(orchestra.submit("shop.alone", {"x": 1}, idempotency_key="a"))

        assert 3 == len({handle.id for handle in handles}) == waiting(client)

    def test_other_arguments(self, orchestra: Any, client: Any) -> None:
        """A key that stands for other arguments is refused, with the id of the task that has it."""
        first = orchestra.submit("shop.plain", {"x": 1}, idempotency_key="a")

        with pytest.raises(IdempotencyError, match=r"shop.plain was not submitted: task .* other arguments") as caught:
            orchestra.submit("shop.plain", {"x": 2}, idempotency_key="a")

        assert first.id == caught.value.task_id
        assert 1 == waiting(client)

    def test_holds_beyond_the_end(self, orchestra: Any) -> None:
        """The key stands for its task also when that has come to its end, with its result."""
        first = orchestra.submit("shop.plain", {"x": 1, "y": 2}, idempotency_key="a")
        with agent_of(orchestra.app):
            first.get(timeout=10)

            assert 3 == orchestra.submit("shop.plain", {"x": 1, "y": 2}, idempotency_key="a").get(timeout=10)

    @pytest.mark.parametrize(("delay", "ttl"), [(None, 100), (1000, 1100)])
    def test_holds_for_a_time(self, redis_url: str, client: Any, delay: float | None, ttl: int) -> None:
        """The retention time counts from when the task may start; then the key is free."""
        with app_at(redis_url, settings=quick(idempotency_seconds=100)) as app:
            _declare(app)
            orchestra = Orchestra(app)
            first = orchestra.submit("shop.plain", {}, idempotency_key="a", countdown=delay)

            assert ttl - 10 < client.ttl(KEYS.idempotency("shop.plain", "a")) <= ttl
            client.delete(KEYS.idempotency("shop.plain", "a"))
            assert first.id != orchestra.submit("shop.plain", {}, idempotency_key="a").id

    @pytest.mark.parametrize("key", ["", "x" * 256, "two\nlines", 7, b"bytes"])
    def test_what_is_no_key(self, orchestra: Any, key: Any, client: Any) -> None:
        """A key is a text that can be read; anything else is refused before Redis is touched."""
        with pytest.raises(
            ValidationError, match=r"shop.plain was not submitted: .* is no idempotency key; give a text"
        ):
            orchestra.submit("shop.plain", {}, idempotency_key=key)

        assert not client.keys("*")

    def test_batches(self, orchestra: Any, client: Any) -> None:
        """A batch can be sent again: each payload has a key, or None, and doubles within it are one task."""
        payloads = [{"x": number} for number in (1, 2, 1, 3)]
        keys = ["one", "two", "one", None]

        first = orchestra.submit_many("shop.plain", payloads, idempotency_keys=keys)
        second = orchestra.submit_many("shop.plain", payloads, idempotency_keys=keys)

        assert first[:3] == second[:3]
        assert first[0] == first[2]
        assert [False, False, True, False] == [handle.deduplicated for handle in first]
        assert [True, True, True, False] == [handle.deduplicated for handle in second]
        assert 4 == waiting(client)

    def test_bad_batches(self, orchestra: Any, client: Any) -> None:
        """There is a key for each payload; one for other arguments is told of, and the rest is submitted."""
        with pytest.raises(ValidationError, match="1 idempotency keys came with 2 payloads"):
            orchestra.submit_many("shop.plain", [{}, {}], idempotency_keys=["a"])
        assert 0 == waiting(client)

        with pytest.raises(IdempotencyError):
            orchestra.submit_many("shop.plain", [{"x": 1}, {"x": 2}, {"x": 3}], idempotency_keys=["a", "a", None])
        assert 2 == waiting(client)

    def test_a_lost_reply(self, redis_url: str, redis_server: Any, client: Any) -> None:
        """When the answer to a submission is lost, it's repeated, and is the task that it was."""
        with proxy_to(redis_server.port) as proxy:
            settings = quick(connect_timeout_seconds=1.0)
            with app_at(proxy.through(redis_url), settings=settings) as app:
                _declare(app)
                orchestra = Orchestra(app)
                orchestra.submit("shop.plain", {})
                proxy.lose_reply(load_script("publish").sha.encode(), times=2)
                first = orchestra.submit("shop.plain", {"x": 1}, idempotency_key="a")
                proxy.lose_reply(load_script("publish").sha.encode())
                again = orchestra.submit("shop.plain", {"x": 1}, idempotency_key="a")

        assert (first.id, True, False) == (again.id, again.deduplicated, first.deduplicated)
        assert 2 == waiting(client)

    def test_costs_nothing_more(self, orchestra: Any, redis_url: str) -> None:
        """A submission with a key, a repeated one too, is the one command that every submission is."""
        orchestra.submit("shop.plain", {})
        with commands_at(redis_url) as commands:
            for _ in range(2):
                orchestra.submit("shop.plain", {}, idempotency_key="a")

        assert ["EVALSHA"] * 2 == [command.split()[0] for command in commands]

    def test_eager(self, redis_url: str) -> None:
        """Where tasks run at once, a key and uniqueness mean nothing, and are no error."""
        with app_at(redis_url, changes={"task_always_eager": True}) as app:
            _declare(app)

            assert 1 == Orchestra(app).submit("shop.alone", {"x": 1}, idempotency_key="a").get()


class TestUnique:
    def test_one_task_for_one_set_of_arguments(self, orchestra: Any, client: Any) -> None:
        """While a task waits, a call with the same arguments, however they're given, is that task."""
        alone, moment = orchestra.app.tasks["shop.alone"], datetime(2030, 1, 2)  # noqa: DTZ001  # as users write them
        first = alone.delay(1, moment)

        assert {first.id} == {alone.delay(1, on=moment).id, alone.delay(on=moment, x=1).id}
        assert first.id not in {alone.delay(2, moment).id, alone.delay(1).id}
        assert 3 == waiting(client)

    def test_without_the_code(self, orchestra: Any, redis_url: str) -> None:
        """A sender that knows the task by the catalogue alone is deduplicated as well."""
        entry = CatalogueEntry(
            unique="until_done", arguments=orchestra.app.tasks["shop.alone"].arguments.to_catalogue()
        )
        orchestra.app.registry.register("a@h", "1", about={}, tasks={"shop.alone": entry}, queues=[])
        with app_at(redis_url) as stranger:
            first = Orchestra(stranger).submit("shop.alone", {"x": 1})

            assert first.id == orchestra.app.tasks["shop.alone"].delay(1).id

    def test_until_done(self, orchestra: Any, client: Any) -> None:
        """The end of the task frees its arguments, whatever end it is; what is under way keeps them."""
        for end in (TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED, TaskState.EXPIRED):
            first = orchestra.submit("shop.alone", {"x": 1})
            for state in (TaskState.RUNNING, TaskState.RETRYING, TaskState.RUNNING):
                orchestra.app.state.advance(first.id, state)
                assert first == orchestra.submit("shop.alone", {"x": 1})

            orchestra.app.state.advance(first.id, end)

            assert [] == client.keys("*:lock:*")
            assert first != orchestra.submit("shop.alone", {"x": 1}), end
            orchestra.app.store.command("FLUSHALL")

    def test_cancelled(self, orchestra: Any) -> None:
        """A cancellation frees the arguments at once, not only when the message is dropped."""
        first = orchestra.submit("shop.alone", {"x": 1}, countdown=60)
        assert first == orchestra.submit("shop.alone", {"x": 1})
        first.cancel()

        assert first != orchestra.submit("shop.alone", {"x": 1})

    def test_until_started(self, orchestra: Any, client: Any) -> None:
        """From its start on, a task may be submitted again, from within itself as well; until then it may not."""
        first = orchestra.submit("shop.fresh", {"x": 1})
        assert first == orchestra.submit("shop.fresh", {"x": 1})
        with agent_of(orchestra.app, queues=["celery"]):
            second = orchestra.handle(first.get(timeout=10))

        assert first != second
        assert second.record() is not None

    def test_for_one_call(self, orchestra: Any, client: Any) -> None:
        """A call can be unique that isn't so by declaration, and the other way round."""
        first = orchestra.submit("shop.plain", {"x": 1}, unique="until_started")
        second = orchestra.submit("shop.alone", {"x": 1})

        assert first == orchestra.submit("shop.plain", {"x": 1}, unique="until_done")
        assert second != orchestra.submit("shop.alone", {"x": 1}, unique=False)
        assert second.id == orchestra.app.tasks["shop.alone"].s(1).delay().id
        assert 3 == waiting(client)

    def test_what_makes_no_sense(self, app: Any, orchestra: Any) -> None:
        """What is said of uniqueness is checked where it's said, with what is allowed."""
        with pytest.raises(
            ConfigurationError, match=r"Task shop.odd: unique='always' makes no sense; give one of: until"
        ):
            app.task(name="shop.odd", unique="always", shared=False)(lambda: None)
        with pytest.raises(ValidationError, match="unique='always'"):
            orchestra.submit("shop.plain", {}, unique="always")

    def test_batches(self, orchestra: Any, client: Any) -> None:
        """Doubles within a batch are one task."""
        handles = orchestra.submit_many("shop.alone", [{"x": 1}, {"x": 2}, {"x": 1}])

        assert handles[0] == handles[2] != handles[1]
        assert 2 == waiting(client)

    def test_the_same_id_again(self, app: Any, client: Any) -> None:
        """Who sends a unique task a second time by its own id doesn't double it either."""
        results = [app.tasks["shop.alone"].apply_async((1,), task_id="7") for _ in range(2)]

        assert ["7", "7"] == [result.id for result in results]
        assert 1 == waiting(client)


class TestWhoWaits:
    def test_for_an_id_of_their_own(self, app: Any) -> None:
        """Whoever gave a call its id hears, under that id, of which task it's a duplicate."""
        first = app.tasks["shop.alone"].delay(1)
        second = app.tasks["shop.alone"].apply_async((1,), task_id="7")

        assert first.id == second.id
        with pytest.raises(TaskRevokedError, match=f"a duplicate of {first.id}"):
            app.AsyncResult("7").get(timeout=5)

    @pytest.mark.filterwarnings("ignore:Call to deprecated setex")  # Celery's own, for a group's result
    def test_for_a_canvas(self, app: Any) -> None:
        """A chain or group with a duplicate in it doesn't let its waiter wait for ever."""
        alone, plain = app.tasks["shop.alone"], app.tasks["shop.plain"]
        alone.delay(1)

        for canvas in (chain(alone.s(1), plain.s()), group(alone.s(1), plain.s())):
            with pytest.raises(TaskRevokedError, match="a duplicate of"):
                canvas.apply_async().get(timeout=5)

    def test_for_a_chord(self, app: Any, client: Any) -> None:
        """A chord can't count a part that is another call's task, so that is refused, with what to do."""
        alone, plain = app.tasks["shop.alone"], app.tasks["shop.plain"]

        with pytest.raises(ValidationError, match="a chord would wait for ever"):
            chord([alone.s(1), plain.s()], plain.s()).apply_async()
        chord([alone.s(1).set(unique=False), plain.s()], plain.si()).apply_async()

        assert not client.keys("*:lock:*")


class TestOwner:
    """What a unique task's lock goes by: its owner's record, and the owner's life where that tells more."""

    @pytest.fixture
    def transit(self, redis_url: str) -> Iterator[Transit]:
        """Give the shop's messages."""
        with transit_at(redis_url) as transit:
            yield transit

    def submit(self, transit: Transit, task_id: str, until: str = "until_done", **options: Any) -> str:
        """Submit a task that claims the lock; return the id of the task that has it."""
        claim = Claim(key="", digest="x", key_ms=1, lock=LOCK, until=until)
        reply = publish(transit.store, task_id, message=task_id, queue=QUEUE, claim=claim, **options)
        return text_of(reply[0]) if isinstance(reply, list) else task_id

    def run(self, transit: Transit, name: str = "a", task_id: str = "1", *, once: bool = False) -> Lease:
        """Fetch the next message, and begin it."""
        fetched = transit.fetch(holder_named(name), limit=1)
        assert fetched is not None
        lease = Lease(name, fetched.deliveries[0].number, QUEUE)
        transit.start(lease, task_id, once=once)
        return lease

    def test_a_lost_agent(self, transit: Transit) -> None:
        """A task whose agent dies is run again, and keeps its lock, before, meanwhile and after."""
        self.submit(transit, "1")
        self.run(transit)
        assert "1" == self.submit(transit, "2")
        transit.silence(holder_named("a"))
        assert (1, 0) == transit.beat()
        assert "1" == self.submit(transit, "2")

        self.run(transit, "b")

        assert "1" == self.submit(transit, "2")

    def test_a_lost_agent_of_a_task_that_runs_once(self, transit: Transit) -> None:
        """A task that runs at most once is gone with its agent, and its lock is free as soon as that is lost."""
        self.submit(transit, "1")
        self.run(transit, once=True)
        assert "1" == self.submit(transit, "2")
        transit.silence(holder_named("a"))
        transit.beat()

        assert "2" == self.submit(transit, "2")
        assert "2" == self.submit(transit, "3")

    def test_an_end_without_news(self, transit: Transit) -> None:
        """A task that was settled and told of no end, as with Celery's Ignore, no longer has its lock."""
        self.submit(transit, "1")
        lease = self.run(transit)
        transit.say(holder_named("a"), "settle", lease)

        assert "2" == self.submit(transit, "2")

    def test_a_lost_record(self, transit: Transit) -> None:
        """A lock whose owner has no record any more is free."""
        self.submit(transit, "1")
        transit.client.delete(transit.keys.task("1"))

        assert "2" == self.submit(transit, "2")

    def test_late_news_of_a_former_owner(self, transit: Transit) -> None:
        """An owner frees its own lock only."""
        self.submit(transit, "1")
        transit.client.hset(transit.keys.task("1"), "started", "1")
        assert "2" == self.submit(transit, "2", "until_started")

        manager_of(transit.store).advance("1", TaskState.SUCCEEDED)

        assert b"2" == transit.client.get(LOCK)

    def test_is_kept_as_long_as_the_record(self, transit: Transit) -> None:
        """A delay, a start and a retry each renew the lock with the record, so that neither outlives the other."""
        keys = (LOCK, transit.keys.task("1"))
        self.submit(transit, "1", due=f"{transit.now() + 1000:.6f}", ttl_ms=60_000)
        assert all(1050 < transit.client.ttl(key) <= 1060 for key in keys)

        manager_of(transit.store).advance("1", TaskState.RUNNING)
        assert all(50 < transit.client.ttl(key) <= 60 for key in keys)
        publish(transit.store, "1", attempt=2, due=f"{transit.now() + 500:.6f}", ttl_ms=60_000)
        assert all(550 < transit.client.ttl(key) <= 560 for key in keys)

        assert "1" == self.submit(transit, "2")

    def test_owners_of_different_kinds(self, transit: Transit) -> None:
        """Whether a started task still has its lock is for the one to say that wants it."""
        self.submit(transit, "1", "until_done")
        self.run(transit)

        assert ["1", "2"] == [self.submit(transit, "2", until) for until in ("until_done", "until_started")]


class TestClaimOf:
    def claim(self, declared: Declared, *args: Any, **kwargs: Any) -> Claim | None:
        """Make the claim of a call of a task that is unique by its declaration."""
        return claim_of("shop.index", args, kwargs, declared, keys=KEYS, key_seconds=60)

    def test_nothing(self) -> None:
        """A call that asks for nothing claims nothing, and its arguments aren't even looked at."""
        assert claim_of("t", [object()], {}, Declared(), keys=KEYS, key_seconds=60) is None
        unique = Declared(unique=Unique.UNTIL_DONE)
        assert claim_of("t", [object()], {}, unique, unique=False, keys=KEYS, key_seconds=60) is None

    def test_arguments_by_name(self, app: Any) -> None:
        """Positional arguments count by their names, those beyond by their order."""
        declared = Declared(unique=Unique.UNTIL_DONE, arguments=app.tasks["shop.plain"].arguments)

        assert self.claim(declared, 1, 2) == self.claim(declared, 1, y=2) == self.claim(declared, y=2, x=1)
        others = [self.claim(declared, 1, 2, 3), self.claim(declared, 1, 2, z=3), self.claim(declared, 2, 1)]
        assert 4 == len({self.claim(declared, 1, 2), *others})

    def test_arguments_without_names(self) -> None:
        """Where the names aren't known, the same arguments in the same form are the same."""
        declared = Declared(unique=Unique.UNTIL_DONE)

        assert self.claim(declared, 1, a={"x": 1, "y": [2]}) == self.claim(declared, 1, a={"y": [2], "x": 1})
        assert self.claim(declared, 1) != self.claim(declared, "1")


class TestPublishId:
    def test_learns_once_it_is_known(self) -> None:
        """A handle that was given out before the answer came is set right then."""

        class Result:
            id = "new"

        late, early = PublishId.new(), PublishId.new()
        results = [Result(), Result()]
        late.hand_over(results[0])
        late.learn([b"old", 1])
        early.learn([b"old", 1])
        early.hand_over(results[1])

        assert ["old", "old"] == [result.id for result in results]
