"""Queue names say what a queue asks for, and can be read back."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestra.capabilities import GENERAL, Requirement
from orchestra.exceptions import ConfigurationError, ValidationError
from orchestra.queues import CapabilityQueue, QueueNames

SHOP = QueueNames("shop", "celery")

labels = st.from_regex(r"[a-z0-9][a-z0-9_.-]{0,8}", fullmatch=True)
conditions = st.one_of(
    st.sampled_from(["{}", "!{}", "{}=fr", "{}!=fr", "{}=v12.4"]),
    st.integers(-99, 99).map(lambda number: f"{{}}>={number}"),
    st.integers(-99, 99).map(lambda number: f"{{}}<{number}"),
    st.integers(1, 99).map(lambda number: f"{{}}>=v{number}.1,<v{number}.2"),
)
requirements = st.dictionaries(labels, conditions, min_size=1, max_size=5).map(
    lambda found: Requirement.parse({condition.format(label) for label, condition in found.items()})
)
task_names = st.text(string.ascii_letters + string.digits + "_.:/-@", min_size=1, max_size=40)
capability_queues = st.builds(CapabilityQueue, requirements, st.none() | task_names)
fleets = st.text(string.ascii_letters + string.digits + "_.-", min_size=1, max_size=20)


class TestCapabilityQueue:
    @given(capability_queues)
    def test_suffix_reads_back(self, queue: CapabilityQueue) -> None:
        """A suffix says all that there is to say of a queue."""
        assert queue == CapabilityQueue.from_suffix(queue.suffix)

    def test_handed_on_tasks_have_a_queue_of_their_own(self) -> None:
        """The messages of one task that agents handed on stand apart from their requirement's queue."""
        queue = CapabilityQueue(Requirement.parse("nlp"), "shop.index")

        assert "nlp@shop.index" == queue.suffix

    @pytest.mark.parametrize("suffix", ["", "@shop.index", "GPU", "gpu+", "b+a", "mem_gb~ge~016", "a b"])
    def test_foreign_suffixes_are_refused(self, suffix: str) -> None:
        """A text that no requirement gives is no suffix of ours."""
        with pytest.raises(ValidationError):
            CapabilityQueue.from_suffix(suffix)


class TestQueueNames:
    @given(fleets, capability_queues)
    def test_names_read_back(self, fleet: str, queue: CapabilityQueue) -> None:
        """A queue's name leads back to the queue, whatever the fleet is called, so no two queues share one."""
        names = QueueNames(fleet, "celery")

        suffix = names.suffix(names.name(queue))

        assert suffix is not None
        assert queue == CapabilityQueue.from_suffix(suffix)

    @given(fleets, fleets, requirements)
    def test_fleets_do_not_share_queues(self, one: str, other: str, requirement: Requirement) -> None:
        """A queue belongs to exactly one fleet."""
        name = QueueNames(one, "celery").name_for(requirement)

        assert (one == other) == (QueueNames(other, "celery").suffix(name) is not None)

    def test_requirement_is_readable_in_the_name(self) -> None:
        """A person reads fleet and requirement off a queue's name."""
        assert "shop:gpu+mem_gb~ge~16" == SHOP.name_for(Requirement.parse("mem_gb>=16,gpu"))

    def test_general_work_goes_to_the_default_queue(self) -> None:
        """Stock producers and stock workers share the app's default queue with ours."""
        assert "celery" == SHOP.name_for(GENERAL)
        assert GENERAL.suffix == SHOP.suffix("celery")

    def test_handed_on_general_work_leaves_the_default_queue(self) -> None:
        """A general task that was handed on doesn't come back to the agents that don't know it."""
        assert "shop:general@shop.index" == SHOP.name(CapabilityQueue(GENERAL, "shop.index"))

    @pytest.mark.parametrize("name", ["", "shop", "shop:", "other:gpu", "shop.eu:gpu", ":gpu"])
    def test_other_queues_have_no_suffix(self, name: str) -> None:
        """A queue that isn't this fleet's isn't in its table."""
        assert SHOP.suffix(name) is None

    @pytest.mark.parametrize(
        ("name", "requires"),
        [
            ("shop:gpu+mem_gb~ge~16", "gpu,mem_gb>=16"),
            ("celery", "general"),
            ("shop:nlp@shop.index", "nlp"),
            ("other:gpu", ""),
            ("shop:Not Ours", ""),
        ],
    )
    def test_requires_reads_the_requirement_off_a_name(self, name: str, requires: str) -> None:
        """A name tells the requirement in its canonical text; a name that isn't ours tells nothing."""
        assert requires == SHOP.requires(name)

    @pytest.mark.parametrize("fleet", ["", "my shop", "shop:eu", "shop{1}", "läden"])
    def test_unsafe_fleet_names_are_refused(self, fleet: str) -> None:
        """A fleet's name that can't be part of a queue's name is refused with what to do."""
        with pytest.raises(ConfigurationError) as caught:
            QueueNames(fleet, "celery")

        assert repr(fleet) in str(caught.value)
        assert "ORCHESTRA_NAMESPACE" in str(caught.value)


class TestDefaultQueue:
    def test_a_requirements_name_is_refused(self) -> None:
        """General work and a requirement's work in one queue would reach agents that satisfy only one of them."""
        assert "shop:general" == QueueNames("shop", "shop:general").default
        with pytest.raises(ConfigurationError, match="task_default_queue"):
            QueueNames("shop", "shop:nlp")
