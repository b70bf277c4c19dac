"""Who asks, and whether they may: a request becomes a context, and a context is asked for permissions."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol
from uuid import uuid4

from orchestra.api_keys import ANONYMOUS, ApiKeys
from orchestra.capabilities import Requirement
from orchestra.credentials import Credentials, source_address
from orchestra.exceptions import SecurityError
from orchestra.logging_utils import get_logger
from orchestra.permissions import Grant, Permission, Requires
from orchestra.sanitizer import InputLimits, InputSanitizer
from orchestra.utils import shorten

__all__ = [
    "ApiKeyContextBuilder",
    "Auditor",
    "ContextBuilder",
    "InputLimits",
    "InputSanitizer",
    "Permission",
    "SecurityContext",
    "SecurityMiddleware",
]

log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SecurityContext:
    """
    Who asks, and what they may.

    `source_ip` is None where it isn't known; `key_id` is None where no API key was shown. Nothing in it is secret.
    """

    principal: str
    roles: frozenset[str]
    grants: frozenset[Grant]
    authenticated: bool
    request_id: str
    source_ip: str | None = None
    key_id: str | None = None

    @property
    def permissions(self) -> frozenset[Permission]:
        """What they may without limits; permissions for some tasks only are left to `may`."""
        return frozenset(grant.permission for grant in self.grants if not grant.limited)

    def may(self, permission: Permission, *, task_type: str | None = None, requires: Requires = None) -> bool:
        """
        Whether they have a permission, for the task that is named; `requires` is what that task requires, if anything.

        Where no task is named, a permission for some tasks only isn't one.
        """
        return any(grant.allows(permission, task_type=task_type, requires=requires) for grant in self.grants)


class Auditor(Protocol):
    """Who writes down what was decided; `create_specialized_loggers(logger)["audit"]` is one."""

    def log_authentication(
        self,
        principal: str | None,
        granted: bool,  # noqa: FBT001  # as `log_authorization`
        *,
        source_ip: str | None = None,
        reason: str | None = None,
        **fields: Any,
    ) -> object:
        """Write down that somebody showed who they are, or failed to and why; None stands for nobody known."""

    def log_authorization(
        self,
        principal: str,
        resource: str,
        action: str,
        granted: bool,  # noqa: FBT001  # the signature that the development guide gives
        **fields: Any,
    ) -> object:
        """Write down that somebody was allowed to do something, or not."""


class ContextBuilder(Protocol):
    """What finds out who asks."""

    def __call__(self, headers: Mapping[str, str], source_ip: str | None) -> SecurityContext:
        """
        Return who asks.

        Raises:
            SecurityError: they aren't who they claim to be, or don't say. Its attributes `reason`, `principal` and
                `key_id`, where it has them, go into the audit and nowhere else.

        """
        ...


class ApiKeyContextBuilder:
    """
    Finds out who asks by the API key that they send, as `Authorization: Bearer …` or as `X-API-Key: …`.

    Without `anonymous_roles`, a request that shows no key is refused; with it, such a request goes on as `anonymous`
    with these roles. A key that isn't accepted is always refused. `X-Request-ID` becomes the request's id if it has
    the form of one; else `new_id` gives it.
    """

    def __init__(
        self,
        keys: ApiKeys,
        *,
        anonymous_roles: Iterable[str] | None = None,
        new_id: Callable[[], str] = lambda: uuid4().hex,
    ) -> None:
        self._keys = keys
        self._anonymous_roles = None if anonymous_roles is None else keys.roles.check(anonymous_roles)
        self._new_id = new_id

    def __call__(self, headers: Mapping[str, str], source_ip: str | None) -> SecurityContext:
        """
        Return who asks.

        Raises:
            SecurityError: the headers can't be read, show no key and nobody may be anonymous, or one that isn't valid.

        """
        shown = Credentials.from_headers(headers)
        request_id = shown.request_id or self._new_id()
        if shown.token is None:
            return self._anonymous(source_ip, request_id)
        key = self._keys.verify(shown.token)
        return SecurityContext(
            principal=key.principal,
            roles=key.roles,
            grants=self._keys.roles.granted(key.roles),
            authenticated=True,
            request_id=request_id,
            source_ip=source_ip,
            key_id=key.key_id,
        )

    def _anonymous(self, source_ip: str | None, request_id: str) -> SecurityContext:
        if self._anonymous_roles is None:
            message = "The request shows no credential, and nobody may be anonymous here."
            raise SecurityError(message, reason="no credential")
        return SecurityContext(
            principal=ANONYMOUS,
            roles=self._anonymous_roles,
            grants=self._keys.roles.granted(self._anonymous_roles),
            authenticated=False,
            request_id=request_id,
            source_ip=source_ip,
        )


class SecurityMiddleware:
    """
    The door of a service in front of the fleet: finds out who asks, asks for permissions, and has both written down.

    What the auditor can't write down isn't granted: its error goes on to the caller. Where something is refused, it
    stays refused whatever the auditor does.
    """

    def __init__(self, context_builder: ContextBuilder, auditor: Auditor) -> None:
        self._context_builder = context_builder
        self._auditor = auditor

    def process_request(self, headers: Mapping[str, str], source_ip: str | None = None) -> SecurityContext:
        """
        Return who sends a request with these headers, from this address; None where it isn't known.

        An IPv6 address that stands for an IPv4 one becomes that one, and a zone is dropped.

        Raises:
            SecurityError: they aren't known. The message and the attributes are always the same ones, the reason is in
                the audit alone.
            ValidationError: `source_ip` is no IP address.

        """
        address = None if source_ip is None else source_address(source_ip)
        found = self._who_asks(headers, address)
        if isinstance(found, SecurityError):  # it tells why, so it isn't even the cause of what the client gets
            self._write_unknown(found, address)
            raise SecurityError(_NOT_AUTHENTICATED)
        fields = _known(key_id=found.key_id, request_id=found.request_id)
        self._auditor.log_authentication(found.principal, granted=True, source_ip=address, **fields)
        return found

    def _who_asks(self, headers: Mapping[str, str], address: str | None) -> SecurityContext | SecurityError:
        try:
            return self._context_builder(headers, address)
        except SecurityError as error:
            return error

    def _write_unknown(self, error: SecurityError, address: str | None) -> None:
        reason = str(getattr(error, "reason", "")) or type(error).__name__
        principal, key_id = getattr(error, "principal", None), getattr(error, "key_id", None)
        fields = _known(key_id=key_id)
        self._write_refusal(
            lambda: self._auditor.log_authentication(
                principal, granted=False, source_ip=address, reason=reason, **fields
            )
        )

    def require_permission(
        self,
        context: SecurityContext,
        permission: Permission,
        resource: str,
        *,
        task_type: str | None = None,
        requires: Requires = None,
    ) -> None:
        """
        Return if whoever asks has the permission; `resource` says on what, for the audit and the error.

        `task_type` and `requires` name the task that it's about, as `SecurityContext.may` takes them.

        Raises:
            SecurityError: they haven't; `principal`, `permission` and `resource` are its attributes.
            ValidationError: `requires` can't be read.

        """
        granted = context.may(permission, task_type=task_type, requires=requires)
        fields = _known(
            source_ip=context.source_ip,
            request_id=context.request_id,
            task_type=task_type,
            requires=None if requires is None else Requirement.parse(requires).text,
        )

        def write() -> None:
            self._auditor.log_authorization(context.principal, resource, permission.value, granted, **fields)

        if granted:
            write()
            return
        self._write_refusal(write)
        raise _forbidden(context, permission, resource, task_type)

    @staticmethod
    def _write_refusal(write: Callable[[], object]) -> None:
        try:
            write()
        except Exception:  # whatever an auditor does, a refusal has to reach the caller as one
            log.exception("refusal not audited")


_NOT_AUTHENTICATED: Final = "The request isn't authenticated: send a valid API key as 'Authorization: Bearer …'."


def _known(**fields: str | None) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _forbidden(context: SecurityContext, permission: Permission, resource: str, task_type: str | None) -> SecurityError:
    task = "" if task_type is None else f" for {shorten(task_type, 100)}"
    message = (
        f"{context.principal} isn't allowed to do this on {shorten(resource, 100)}: it takes the permission "
        f"{permission.value}{task}, which none of their roles grants ({', '.join(sorted(context.roles))})."
    )
    return SecurityError(message, principal=context.principal, permission=permission, resource=resource)
