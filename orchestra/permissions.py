"""What somebody may do, and the roles that say so."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Final, TypeAlias

from orchestra.capabilities import Requirement
from orchestra.exceptions import FieldError, ValidationError
from orchestra.utils import shorten

__all__ = ["DEFAULT_ROLES", "Grant", "Permission", "Requires", "Roles"]

Requires: TypeAlias = str | Iterable[str] | Requirement | None

_PATTERN = re.compile(r"[\w.:/*-]{1,255}")
_ROLE = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")


class Permission(StrEnum):
    """
    One kind of act.

    There is none that implies all others, so that a new one is given to nobody by accident. MANAGE_KEYS comes close:
    who may create keys may create one with any role.
    """

    CREATE_TASKS = "create_tasks"
    READ_TASKS = "read_tasks"
    CANCEL_TASKS = "cancel_tasks"
    REPLAY_TASKS = "replay_tasks"
    READ_FLEET = "read_fleet"
    CONTROL_AGENTS = "control_agents"
    CONTROL_BREAKERS = "control_breakers"
    MANAGE_KEYS = "manage_keys"


@dataclass(frozen=True, slots=True)
class Grant:
    """
    A permission, for everything or for some tasks.

    `task_type` is a pattern in which `*` stands for any characters: `invoice.*`; None stands for every task.
    `requires` confines the tasks to agents that satisfy it: a task's own requirement must hold each of its terms, as
    written, and may hold more; None doesn't confine.

    A limit isn't met by an act that doesn't say what it's about: one without a task's name, or without a requirement.

    Raises:
        ValidationError: the pattern or the requirement can't be read.

    """

    permission: Permission
    task_type: str | None = None
    requires: Requires = None

    def __post_init__(self) -> None:
        if self.task_type is not None and not _PATTERN.fullmatch(self.task_type):
            rule = "give a task's name, in which * stands for any characters, such as invoice.*"
            raise _refused("task_type", f"is no pattern for tasks: {rule}", self.task_type)
        if self.requires is not None:
            object.__setattr__(self, "requires", Requirement.parse(self.requires))

    @property
    def limited(self) -> bool:
        """Whether it holds for some tasks only."""
        return self.task_type is not None or self.requires is not None

    def allows(self, permission: Permission, *, task_type: str | None = None, requires: Requires = None) -> bool:
        """
        Whether it permits an act, on the task that is named; `requires` is what that task requires, None if nothing.

        Raises:
            ValidationError: the requirement can't be read.

        """
        return self.permission is permission and self._covers(task_type) and self._confines(requires)

    def _covers(self, task_type: str | None) -> bool:
        return self.task_type is None or (task_type is not None and fnmatchcase(task_type, self.task_type))

    def _confines(self, requires: Requires) -> bool:
        if self.requires is None:
            return True
        return requires is not None and _terms(self.requires) <= _terms(requires)


def _terms(requires: str | Iterable[str] | Requirement) -> frozenset[object]:
    return frozenset(Requirement.parse(requires).terms)


class Roles(Mapping[str, frozenset[Grant]]):
    """
    Role -> what it grants; a permission that stands alone is granted for everything.

    Own roles are added by making another one: `Roles({**DEFAULT_ROLES, "billing": [Permission.READ_TASKS]})`.

    Raises:
        ValidationError: a role's name isn't made of 1 to 64 of `a-z`, `0-9`, `_`, `.` and `-`.

    """

    def __init__(self, roles: Mapping[str, Iterable[Grant | Permission]]) -> None:
        for name in roles:
            if not _ROLE.fullmatch(name):
                raise _refused("role", "is no name for a role: use 1 to 64 of a-z, 0-9, '_', '.' and '-'", name)
        self._roles = {name: frozenset(map(_grant, grants)) for name, grants in roles.items()}

    def __getitem__(self, name: str) -> frozenset[Grant]:
        """Return what a role grants."""
        return self._roles[name]

    def __iter__(self) -> Iterator[str]:
        """Yield the roles' names."""
        return iter(self._roles)

    def __len__(self) -> int:
        """Return the number of roles."""
        return len(self._roles)

    def check(self, names: Iterable[str]) -> frozenset[str]:
        """
        Return `names` when there is at least one, and a role for each.

        Raises:
            ValidationError: there isn't; it lists the roles that there are.

        """
        if isinstance(names, str):
            raise _refused("roles", "is one text: give a set or list of roles", names)
        given = frozenset(names)
        known = ", ".join(sorted(self))
        for name in sorted(given - self.keys()):
            raise _refused("roles", f"is no role; there are: {known}", name)
        if not given:
            raise _refused("roles", f"names no role; there are: {known}", "")
        return given

    def granted(self, names: Iterable[str]) -> frozenset[Grant]:
        """Return what these roles grant together; one that isn't there (any more) grants nothing."""
        return frozenset().union(*(self._roles.get(name, frozenset()) for name in names))


def _grant(value: Grant | Permission) -> Grant:
    return Grant(value) if isinstance(value, Permission) else value


def _refused(field: str, problem: str, given: str) -> ValidationError:
    shown = repr(shorten(str(given), 60))
    return ValidationError(f"{shown} {problem}.", errors=[FieldError(field, problem, shown)])


_READING: Final = (Permission.READ_TASKS, Permission.READ_FLEET)

DEFAULT_ROLES: Final = Roles(
    {
        "viewer": _READING,
        "submitter": (Permission.CREATE_TASKS, Permission.READ_TASKS),
        "operator": (
            *_READING,
            Permission.CANCEL_TASKS,
            Permission.REPLAY_TASKS,
            Permission.CONTROL_AGENTS,
            Permission.CONTROL_BREAKERS,
        ),
        "admin": tuple(Permission),
    }
)
