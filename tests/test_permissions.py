"""Permissions, what limits them, and the roles that grant them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestra.exceptions import ValidationError
from orchestra.permissions import DEFAULT_ROLES, Grant, Permission, Roles

CREATE = Permission.CREATE_TASKS


class TestGrant:
    def test_allows_its_permission_for_everything(self) -> None:
        """A grant without limits holds, whether or not a task is named."""
        grant = Grant(CREATE)

        assert grant.allows(CREATE)
        assert grant.allows(CREATE, task_type="invoice.read", requires="gpu")
        assert not grant.limited

    @pytest.mark.parametrize("other", set(Permission) - {CREATE})
    def test_allows_no_other_permission(self, other: Permission) -> None:
        """No permission implies another one."""
        assert not Grant(CREATE).allows(other, task_type="invoice.read")

    @pytest.mark.parametrize(
        ("pattern", "task_type", "allowed"),
        [
            ("invoice.*", "invoice.read", True),
            ("invoice.*", "invoice.eu.read", True),
            ("invoice.*", "invoice", False),
            ("invoice.*", "invoices.read", False),
            ("invoice.*", "Invoice.read", False),
            ("invoice.*", "shop.invoice.read", False),
            ("*.read", "invoice.read", True),
            ("invoice.read", "invoice.read", True),
            ("invoice.read", "invoice.read\n", False),
            ("invoice.read", "invoice-read", False),
            ("*", "anything", True),
            ("*", None, False),
            ("invoice.*", None, False),
        ],
    )
    def test_a_pattern_limits_to_tasks(self, pattern: str, task_type: str | None, allowed: bool) -> None:
        """The pattern has to fit the whole name of the task, and a task has to be named."""
        grant = Grant(CREATE, pattern)

        assert allowed == grant.allows(CREATE, task_type=task_type)
        assert grant.limited

    @pytest.mark.parametrize(
        ("requires", "allowed"),
        [
            ("pdf", True),
            ("pdf,gpu", True),
            ({"pdf", "mem_gb>=16"}, True),
            ("gpu", False),
            ("!pdf", False),
            ("pdf=2", False),
            (None, False),
        ],
    )
    def test_a_requirement_confines_to_agents(self, requires: object, allowed: bool) -> None:
        """Tasks have to require what the grant does, so that no agent without it runs one."""
        grant = Grant(CREATE, requires="pdf")

        assert allowed == grant.allows(CREATE, task_type="a", requires=requires)  # type: ignore[arg-type]

    def test_terms_are_compared_as_written(self) -> None:
        """A requirement that only implies the grant's isn't enough; other ways to write the same one are."""
        grant = Grant(CREATE, requires="mem_gb>=16")

        assert grant.allows(CREATE, requires="gpu,mem_gb>=16.0")
        assert not grant.allows(CREATE, requires="mem_gb>=32")

    def test_both_limits_hold(self) -> None:
        """`billing` may submit `invoice.*` that requires `pdf`."""
        grant = Grant(CREATE, "invoice.*", requires={"pdf"})

        assert grant.allows(CREATE, task_type="invoice.read", requires="pdf")
        assert not grant.allows(CREATE, task_type="invoice.read")
        assert not grant.allows(CREATE, task_type="report.read", requires="pdf")

    @given(st.text(max_size=20), st.sampled_from(["*", "invoice.*"]))
    def test_no_name_of_a_task_breaks_it(self, task_type: str, pattern: str) -> None:
        """Whatever a stranger calls a task, the answer is yes or no."""
        expected = pattern == "*" or task_type.startswith("invoice.")

        assert expected == Grant(CREATE, pattern).allows(CREATE, task_type=task_type)

    @pytest.mark.parametrize("pattern", ["", "invoice[.]*", "invoice.?", "a b", "a\n", "x" * 256])
    def test_other_patterns_are_refused(self, pattern: str) -> None:
        """A pattern is a task's name with `*` in it, and nothing that could be read in two ways."""
        with pytest.raises(ValidationError, match="is no pattern for tasks") as caught:
            Grant(CREATE, pattern)

        assert "task_type" == caught.value.errors[0].field

    def test_wrong_requirements_are_refused(self) -> None:
        """A grant's requirement is one as tasks have it."""
        with pytest.raises(ValidationError, match="requirement"):
            Grant(CREATE, requires="GPU!")

    def test_equal_ones_are_one(self) -> None:
        """Two ways to write a grant are the same grant."""
        assert 1 == len({Grant(CREATE, requires="pdf,gpu"), Grant(CREATE, requires={"gpu", "pdf"})})


class TestRoles:
    def test_roles_are_added_to_the_defaults(self) -> None:
        """Own roles stand beside the default ones, and mix permissions with grants."""
        invoices = Grant(CREATE, "invoice.*", requires="pdf")

        roles = Roles({**DEFAULT_ROLES, "billing": [invoices, Permission.READ_TASKS]})

        assert {invoices, Grant(Permission.READ_TASKS)} == roles["billing"]
        assert [*DEFAULT_ROLES, "billing"] == list(roles)

    def test_roles_add_up(self) -> None:
        """Who has several roles has what each of them grants."""
        granted = DEFAULT_ROLES.granted(["viewer", "submitter"])

        assert DEFAULT_ROLES["viewer"] | DEFAULT_ROLES["submitter"] == granted

    def test_unknown_roles_grant_nothing(self) -> None:
        """A role that was taken away leaves those who had it with the others they have."""
        assert DEFAULT_ROLES["viewer"] == DEFAULT_ROLES.granted(["viewer", "gone"])
        assert frozenset() == DEFAULT_ROLES.granted([])

    def test_check_passes_known_roles(self) -> None:
        """Roles that are there are returned as a set."""
        assert {"viewer", "admin"} == DEFAULT_ROLES.check(["viewer", "admin", "viewer"])

    @pytest.mark.parametrize(
        ("names", "problem"),
        [
            (["viewer", "adnin"], "'adnin' is no role; there are: admin, operator, submitter, viewer"),
            ([], "names no role"),
            ("admin", "'admin' is one text: give a set or list"),
        ],
    )
    def test_check_refuses_others(self, names: object, problem: str) -> None:
        """A typing error is found when a role is given, not when it is missed."""
        with pytest.raises(ValidationError, match=problem):
            DEFAULT_ROLES.check(names)  # type: ignore[arg-type]

    @pytest.mark.parametrize("name", ["", "Admin", "a b", "a\n", "x" * 65])
    def test_names_are_plain(self, name: str) -> None:
        """A role's name is safe in logs and in the records of keys."""
        with pytest.raises(ValidationError, match="is no name for a role"):
            Roles({name: []})


class TestDefaultRoles:
    @pytest.mark.parametrize(
        ("role", "expected"),
        [
            ("viewer", {Permission.READ_TASKS, Permission.READ_FLEET}),
            ("submitter", {Permission.CREATE_TASKS, Permission.READ_TASKS}),
            (
                "operator",
                {
                    Permission.READ_TASKS,
                    Permission.READ_FLEET,
                    Permission.CANCEL_TASKS,
                    Permission.REPLAY_TASKS,
                    Permission.CONTROL_AGENTS,
                    Permission.CONTROL_BREAKERS,
                },
            ),
            ("admin", set(Permission)),
        ],
    )
    def test_grant_what_their_names_say(self, role: str, expected: set[Permission]) -> None:
        """Nobody but the admin manages keys, and none of the permissions is limited."""
        assert {Grant(permission) for permission in expected} == DEFAULT_ROLES[role]
