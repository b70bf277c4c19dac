"""Who serves what: agents that live and are lost, and the catalogue of their tasks."""

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from orchestra.exceptions import AgentNameTakenError, PermanentError
from orchestra.registry import AGENT_TTL_SECONDS, AgentEntry, AgentRegistry, CachedCatalogue, CatalogueEntry
from orchestra.store import Store
from tests.processes import until
from tests.stores import ABOUT, INDEX, beat_of, publish, register, store_at


@pytest.fixture
def store(redis_url: str) -> Iterator[Store]:
    """Give the shop's store over an empty Redis."""
    with store_at(redis_url) as store:
        yield store


@pytest.fixture
def registry(store: Store) -> AgentRegistry:
    """Give the shop's registry, which is patient enough for a slow machine."""
    return AgentRegistry(store, lost_after_seconds=60)


@pytest.fixture
def hasty(store: Store) -> AgentRegistry:
    """Give the same registry to somebody who takes an agent for lost after a moment."""
    return AgentRegistry(store, lost_after_seconds=0.05)


def only(registry: AgentRegistry) -> AgentEntry:
    """Return the one agent that there is."""
    (agent,) = registry.agents()
    return agent


class TestRegister:
    def test_agent_is_known_with_what_it_said(self, registry: AgentRegistry) -> None:
        """A registered agent is alive, with what it said of itself, and serves nothing before its first beat."""
        register(registry)

        agent = only(registry)

        assert agent == AgentEntry(
            name="text@a",
            about=ABOUT,
            queues=(),
            tasks=frozenset({"shop.index"}),
            running=0,
            draining=False,
            started_at=agent.started_at,
            last_beat_at=agent.last_beat_at,
            alive=True,
            instance="1",
        )

    def test_times_are_the_servers(self, store: Store, registry: AgentRegistry) -> None:
        """Start and beat are by Redis's clock, in UTC."""
        before = store.command("TIME")[0]
        register(registry)

        agent = only(registry)

        assert agent.started_at == agent.last_beat_at >= datetime.fromtimestamp(int(before), UTC)

    def test_live_twin_is_refused(self, registry: AgentRegistry) -> None:
        """A name that a live agent holds is refused, saying who has it and what to do."""
        register(registry)

        with pytest.raises(AgentNameTakenError) as caught:
            register(registry, instance="2", about={"host": "other", "pid": 1})

        assert "text@a is alive on box (pid 4711, last beat" in str(caught.value)
        assert "-n text@a-2" in str(caught.value)
        assert isinstance(caught.value, PermanentError)
        assert ABOUT == only(registry).about

    def test_refused_twin_leaves_nothing(self, registry: AgentRegistry) -> None:
        """A refused registration adds no task and no queue."""
        register(registry)

        with pytest.raises(AgentNameTakenError):
            register(registry, instance="2", tasks={"shop.mail": CatalogueEntry()}, queues=["smtp"])

        assert {"shop.index"} == set(registry.catalogue())
        assert {"nlp"} == set(registry.queues())

    def test_same_instance_may_register_again(self, registry: AgentRegistry) -> None:
        """An agent that comes back through a new connection keeps its name."""
        register(registry)

        register(registry, about={"host": "box", "pid": 4711, "capabilities": "nlp,gpu"})

        assert "nlp,gpu" == only(registry).about["capabilities"]

    def test_name_of_a_silent_agent_is_free(self, registry: AgentRegistry, hasty: AgentRegistry) -> None:
        """An agent that has been silent for long enough gives its name to its successor."""
        register(registry)

        def taken_over() -> bool:
            try:
                register(hasty, instance="2", about={"host": "other", "pid": 1})
            except AgentNameTakenError:
                return False
            return True

        until(taken_over)

        assert {"host": "other", "pid": 1} == only(registry).about

    def test_publishes_its_tasks(self, registry: AgentRegistry) -> None:
        """The fleet's catalogue holds the tasks of all agents; what an entry leaves open stays open."""
        register(registry)
        register(registry, "mail@a", tasks={"shop.mail": CatalogueEntry()}, queues=[])

        assert {"shop.index": INDEX, "shop.mail": CatalogueEntry()} == registry.catalogue()

    def test_newer_code_replaces_an_entry(self, registry: AgentRegistry) -> None:
        """An agent that registers with new code publishes what that asks for."""
        register(registry)

        register(registry, "text@b", tasks={"shop.index": CatalogueEntry(requires="gpu")})

        assert {"shop.index": CatalogueEntry(requires="gpu")} == registry.catalogue()

    def test_agent_without_tasks_and_queues_is_fine(self, registry: AgentRegistry) -> None:
        """An agent may know nothing yet."""
        assert "0" == register(registry, tasks={}, queues=[])

        assert {} == registry.catalogue()
        assert {} == registry.queues()

    def test_large_catalogue_is_fine(self, registry: AgentRegistry) -> None:
        """A big project's thousands of tasks register in one step."""
        tasks = {f"shop.task{number}": INDEX for number in range(5_000)}

        register(registry, tasks=tasks, queues=[f"label{number}" for number in range(300)])

        assert set(tasks) == set(registry.catalogue())
        assert 300 == len(registry.queues())

    def test_known_queues_keep_the_version(self, registry: AgentRegistry) -> None:
        """The table's version grows with new queues alone."""
        versions = [
            register(registry),
            register(registry, "text@b"),
            register(registry, "gpu@a", queues=["gpu", "nlp", "cpu", "gpu"]),
        ]

        assert ["1", "1", "2"] == versions

    def test_agents_lost_long_ago_are_forgotten(self, store: Store, registry: AgentRegistry) -> None:
        """A fleet whose agents get a new name at every start doesn't grow a list for ever."""
        register(registry, "old@a")
        store.command("ZADD", store.keys.agents, 1, "old@a")

        register(registry)

        assert [b"text@a"] == store.command("ZRANGE", store.keys.agents, 0, -1)

    def test_description_expires_a_day_after_the_last_beat(self, store: Store, registry: AgentRegistry) -> None:
        """An agent that fell silent stays readable for a day."""
        register(registry)
        assert 0 < store.command("TTL", store.keys.agent("text@a")) <= AGENT_TTL_SECONDS

        store.command("EXPIRE", store.keys.agent("text@a"), 100)
        beat_of(registry)
        assert 100 < store.command("TTL", store.keys.agent("text@a"))


class TestBeat:
    def test_first_beat_brings_the_queues(self, registry: AgentRegistry) -> None:
        """An agent that knows no version learns the whole table."""
        register(registry, queues=["nlp", "gpu"])

        assert (True, False, "1", ("gpu", "nlp")) == self.sorted(beat_of(registry))

    def test_unchanged_table_is_not_sent_again(self, registry: AgentRegistry) -> None:
        """An agent that is up to date gets no queues."""
        version = register(registry)

        assert (True, False, version, None) == beat_of(registry, version=version)

    def test_new_queue_is_told(self, store: Store, registry: AgentRegistry) -> None:
        """A queue that a publish put on the table reaches the agents with their next beat."""
        version = register(registry)
        publish(store, "1", suffix="gpu", queue="shop:gpu")

        assert (True, False, "2", ("gpu", "nlp")) == self.sorted(beat_of(registry, version=version))

    def test_tells_how_long_tasks_take(self, registry: AgentRegistry) -> None:
        """The mean run time is known once a task has ended, and stays while no beat tells another."""
        register(registry)
        assert only(registry).mean_seconds is None

        for told in (0.125, None):
            registry.beat("text@a", "1", version="", queues=[], running=0, mean_seconds=told)
            assert 0.125 == only(registry).mean_seconds

    def test_says_what_the_agent_does(self, registry: AgentRegistry) -> None:
        """The registry knows what an agent serves and how much it has in its hands."""
        register(registry)
        first = only(registry).last_beat_at

        beat_of(registry, running=3)

        agent = only(registry)
        assert (("shop:nlp",), 3) == (agent.queues, agent.running)
        assert first < agent.last_beat_at
        assert agent.started_at == first

    def test_unknown_agent_is_told(self, store: Store, registry: AgentRegistry) -> None:
        """An agent whose registration was flushed learns it, and isn't half registered by its beat."""
        register(registry)
        store.command("FLUSHALL")

        assert (False, False, "", None) == beat_of(registry, version="1")

        assert [] == registry.agents()

    def test_agent_whose_name_was_taken_is_told(self, registry: AgentRegistry, hasty: AgentRegistry) -> None:
        """An agent that was silent for too long learns that a successor has its name."""
        register(registry)
        until(lambda: not hasty.agents()[0].alive)
        register(hasty, instance="2")
        before = only(registry)

        assert (False, True, "", None) == beat_of(registry, instance="1", running=5)

        assert before == only(registry)

    def test_empty_table_is_known(self, registry: AgentRegistry) -> None:
        """A table without queues is a table too."""
        register(registry, queues=[])

        assert (True, False, "0", ()) == beat_of(registry)

    @staticmethod
    def sorted(
        answer: tuple[bool, bool, str, tuple[str, ...] | None],
    ) -> tuple[bool, bool, str, tuple[str, ...]]:
        """Put the queues of an answer in order."""
        known, taken, version, queues = answer
        assert queues is not None
        return known, taken, version, tuple(sorted(queues))


class TestRetire:
    def test_agent_leaves(self, store: Store, registry: AgentRegistry) -> None:
        """An agent that stops is off the list at once, and what it published stays."""
        register(registry)

        registry.retire("text@a", "1")

        assert [] == registry.agents()
        assert 0 == store.command("EXISTS", store.keys.agents)
        assert {"shop.index"} == set(registry.catalogue())

    def test_agent_that_left_is_remembered(self, store: Store, registry: AgentRegistry) -> None:
        """What an agent could do is known for a day after it stopped, and when that was."""
        register(registry)
        before = only(registry).last_beat_at

        registry.retire("text@a", "1")

        (former,) = registry.former()
        assert ("text@a", ABOUT, frozenset({"shop.index"}), False) == (
            former.name,
            former.about,
            former.tasks,
            former.alive,
        )
        assert before < former.last_beat_at
        assert 0 < store.command("TTL", store.keys.agent("text@a")) <= AGENT_TTL_SECONDS

    def test_agent_that_returns_is_former_no_more(self, registry: AgentRegistry) -> None:
        """An agent that is started again, as in a rolling restart, is on one list only."""
        register(registry)
        registry.retire("text@a", "1")

        register(registry, instance="2")

        assert [] == registry.former()
        assert only(registry).alive

    def test_agents_that_left_long_ago_are_forgotten(self, store: Store, registry: AgentRegistry) -> None:
        """Agents with a new name at every start don't grow this list either."""
        register(registry)
        registry.retire("text@a", "1")
        store.command("ZADD", store.keys.former_agents, 1, "text@a")

        register(registry, "io@a")

        assert [] == registry.former()

    def test_successor_stays(self, registry: AgentRegistry) -> None:
        """An agent that stops doesn't take its successor of the same name off the list."""
        register(registry, instance="2")

        registry.retire("text@a", "1")

        assert "text@a" == only(registry).name

    def test_unknown_agent_may_leave(self, registry: AgentRegistry) -> None:
        """An agent that isn't on the list leaves nothing."""
        registry.retire("text@a", "1")

        assert [] == registry.agents()


class TestRoster:
    def test_everybody(self, store: Store, registry: AgentRegistry, hasty: AgentRegistry) -> None:
        """Those that live, were lost or stopped, at one time, as the other questions have them."""
        for name in ("text@b", "text@a", "io@a"):
            register(registry, name)
        registry.retire("io@a", "1")

        roster = registry.roster()

        assert (registry.agents(), registry.former()) == (roster.agents, roster.former)
        assert ["text@a", "text@b"] == [agent.name for agent in roster.agents]
        until(lambda: not any(agent.alive for agent in hasty.roster().agents))
        assert roster.now < hasty.roster().now

    def test_a_hash_that_is_gone(self, store: Store, registry: AgentRegistry) -> None:
        """An agent of which nothing is known any more is left out."""
        register(registry)
        store.command("DEL", store.keys.agent("text@a"))

        assert ([], []) == (registry.roster().agents, registry.roster().former)


class TestAgents:
    def test_are_in_the_order_of_their_names(self, registry: AgentRegistry) -> None:
        """The list reads the same, whoever beat last."""
        for name in ("text@b", "io@a", "text@a"):
            register(registry, name)

        assert ["io@a", "text@a", "text@b"] == [agent.name for agent in registry.agents()]

    def test_silent_agent_is_known_and_not_alive(self, registry: AgentRegistry, hasty: AgentRegistry) -> None:
        """A lost agent stays readable, and isn't alive until it beats again."""
        register(registry)

        until(lambda: not only(hasty).alive)

        assert only(registry).alive
        assert ABOUT == only(hasty).about

    def test_expired_agent_is_left_out(self, store: Store, registry: AgentRegistry) -> None:
        """An agent of which nothing is known but the time of its last beat isn't listed."""
        register(registry)
        store.command("DEL", store.keys.agent("text@a"))

        assert [] == registry.agents()

    def test_fleets_do_not_share_agents(self, registry: AgentRegistry, redis_url: str) -> None:
        """Two apps on one Redis may have agents of one name."""
        register(registry)

        with store_at(redis_url, fleet="bank") as store:
            other = AgentRegistry(store, lost_after_seconds=60)
            register(other, instance="2", tasks={})

            assert (frozenset(), {}) == (only(other).tasks, other.catalogue())
        assert frozenset({"shop.index"}) == only(registry).tasks


class TestCatalogue:
    def test_fields_of_newer_agents_are_left_aside(self, store: Store, registry: AgentRegistry) -> None:
        """In a rolling deploy an older sender reads what it understands."""
        store.command("HSET", store.keys.catalogue, "shop.index", '{"requires": "nlp", "since": "2.0"}')

        assert {"shop.index": CatalogueEntry(requires="nlp")} == registry.catalogue()


class TestCachedCatalogue:
    def test_converts_once_per_reading(self, registry: AgentRegistry) -> None:
        """What a sender works with is made once, however often it is asked for."""
        register(registry)
        catalogue = CachedCatalogue(registry, lambda entry: [entry.requires], ttl_seconds=3600)

        found = catalogue.find("shop.index")

        assert ["nlp"] == found
        assert found is catalogue.find("shop.index")

    def test_unknown_task_is_none(self, registry: AgentRegistry) -> None:
        """Nothing is known of a task that no agent has published."""
        assert CachedCatalogue(registry, lambda entry: entry, ttl_seconds=3600).find("shop.index") is None

    def test_names_are_sorted(self, registry: AgentRegistry) -> None:
        """Who looks for a name gets all that there are, in order."""
        register(registry, tasks={"shop.mail": CatalogueEntry(), "shop.index": INDEX})

        assert ["shop.index", "shop.mail"] == CachedCatalogue(registry, bool, ttl_seconds=3600).names()

    def test_is_not_read_again_while_it_is_fresh(self, registry: AgentRegistry) -> None:
        """Within its time the catalogue costs no round trip: not for a name that's missing either."""
        catalogue = CachedCatalogue(registry, lambda entry: entry, ttl_seconds=3600)
        assert [] == catalogue.names()

        register(registry)

        assert catalogue.find("shop.index") is None

    def test_is_read_again_when_it_is_old(self, store: Store, registry: AgentRegistry) -> None:
        """A task that an agent publishes is found after the catalogue's time, and so is a change of it."""
        catalogue = CachedCatalogue(registry, lambda entry: entry.requires, ttl_seconds=0.05)
        assert catalogue.find("shop.index") is None

        register(registry)
        until(lambda: catalogue.find("shop.index") == "nlp")
        register(registry, "text@b", tasks={"shop.index": CatalogueEntry(requires="gpu")})
        until(lambda: catalogue.find("shop.index") == "gpu")
        store.command("FLUSHALL")
        until(lambda: catalogue.find("shop.index") is None)

    def test_is_read_each_time_without_a_ttl(self, registry: AgentRegistry) -> None:
        """A time of 0 stands for no cache."""
        catalogue = CachedCatalogue(registry, lambda entry: entry, ttl_seconds=0)
        assert catalogue.find("shop.index") is None

        register(registry)

        assert INDEX == catalogue.find("shop.index")
