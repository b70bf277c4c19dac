"""Who asks, whether they may, and that both are written down."""

import dataclasses
import logging
import traceback
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestra import sanitizer
from orchestra.api_keys import ApiKeys, IssuedKey
from orchestra.exceptions import BrokerUnavailableError, SecurityError, ValidationError
from orchestra.logging_utils import create_specialized_loggers, get_logger
from orchestra.permissions import DEFAULT_ROLES, Grant, Roles
from orchestra.security_utils import (
    ApiKeyContextBuilder,
    Auditor,
    InputSanitizer,
    Permission,
    SecurityContext,
    SecurityMiddleware,
)
from tests.stores import store_at

IP = "192.0.2.7"
INVOICES = Grant(Permission.CREATE_TASKS, "invoice.*", requires="pdf")
ROLES = Roles({**DEFAULT_ROLES, "invoices": [INVOICES, Permission.READ_TASKS]})


class Recorder:
    """An auditor that remembers."""

    def __init__(self) -> None:
        self.lines: list[tuple[Any, ...]] = []

    def log_authentication(
        self,
        principal: str | None,
        granted: bool,
        *,
        source_ip: str | None = None,
        reason: str | None = None,
        **fields: Any,
    ) -> None:
        """Remember who showed who they are."""
        self.lines.append((principal, granted, source_ip, reason, fields))

    def log_authorization(self, principal: str, resource: str, action: str, granted: bool, **fields: Any) -> None:
        """Remember who was allowed what."""
        self.lines.append((principal, resource, action, granted, fields))


class DeafAuditor(Recorder):
    """An auditor that can't write."""

    def log_authentication(self, *_: Any, **__: Any) -> None:
        """Fail."""
        raise BrokerUnavailableError("the audit is away")

    def log_authorization(self, *_: Any, **__: Any) -> None:
        """Fail."""
        raise BrokerUnavailableError("the audit is away")


def context_of(*roles: str, **fields: Any) -> SecurityContext:
    """Give the context of somebody with these roles."""
    given = {"principal": "ann", "authenticated": True, "request_id": "7c9e", "source_ip": IP, **fields}
    return SecurityContext(roles=frozenset(roles), grants=ROLES.granted(roles), **given)


@pytest.fixture
def keys(redis_url: str) -> Iterator[ApiKeys]:
    """Give the shop's keys; there are none yet."""
    with store_at(redis_url) as store:
        yield ApiKeys(store, roles=ROLES)


@pytest.fixture
def issued(keys: ApiKeys) -> IssuedKey:
    """Give ann's key."""
    return keys.create("ann", ["submitter"], expires=timedelta(days=1))


@pytest.fixture
def audit() -> Recorder:
    """Give an auditor that remembers."""
    return Recorder()


@pytest.fixture
def middleware(keys: ApiKeys, audit: Recorder) -> SecurityMiddleware:
    """Give the shop's door."""
    return SecurityMiddleware(ApiKeyContextBuilder(keys, new_id=lambda: "made-here"), audit)


class TestTheGuide:
    def test_authentication_and_authorization(self, keys: ApiKeys, issued: IssuedKey, audit: Recorder) -> None:
        """The development guide's lines: set up, process a request, check a permission."""
        context_builder, auditor = ApiKeyContextBuilder(keys), audit
        headers, source_ip = {"Authorization": f"Bearer {issued.text}"}, IP

        middleware = SecurityMiddleware(context_builder, auditor)
        context = middleware.process_request(headers, source_ip)
        middleware.require_permission(context, Permission.CREATE_TASKS, "tasks")

        assert "ann" == context.principal

    def test_sanitizer_is_found_here(self) -> None:
        """`InputSanitizer` is imported from where the guide imports it."""
        assert sanitizer.InputSanitizer is InputSanitizer


class TestProcessRequest:
    def test_tells_who_asks(self, middleware: SecurityMiddleware, issued: IssuedKey) -> None:
        """A valid key becomes its holder, with what their roles grant."""
        context = middleware.process_request({"Authorization": f"Bearer {issued.text}"}, IP)

        expected = context_of("submitter", request_id="made-here", key_id=issued.about.key_id)
        assert expected == context
        assert {Permission.CREATE_TASKS, Permission.READ_TASKS} == context.permissions

    @pytest.mark.parametrize(
        ("headers", "reason"),
        [
            ({}, "no credential"),
            ({"Accept": "text/html"}, "no credential"),
            ({"Authorization": "Basic YTpi"}, "no bearer token"),
            ({"X-API-Key": "ao_1", "Authorization": "Bearer ao_2"}, "several credentials"),
            ({"X-API-Key": "not-ours"}, "malformed"),
            ({"X-API-Key": f"ao_{'0' * 16}_{'0' * 64}"}, "unknown"),
        ],
        ids=str,
    )
    def test_others_are_refused_in_one_way(
        self, middleware: SecurityMiddleware, audit: Recorder, headers: dict[str, str], reason: str
    ) -> None:
        """The client gets one and the same answer, without a reason or a cause; the audit gets the reason."""
        with pytest.raises(SecurityError) as caught:
            middleware.process_request(headers, IP)

        expected = "The request isn't authenticated: send a valid API key as 'Authorization: Bearer …'."
        assert expected == str(caught.value)
        assert {} == vars(caught.value)
        assert (None, None) == (caught.value.__cause__, caught.value.__context__)
        ((principal, granted, source_ip, told, _),) = audit.lines
        assert (None, False, IP, reason) == (principal, granted, source_ip, told)

    def test_the_audit_tells_whose_key_it_was(
        self, middleware: SecurityMiddleware, audit: Recorder, keys: ApiKeys, issued: IssuedKey
    ) -> None:
        """A revoked key is written down with its holder; a guessed secret names the id alone."""
        key_id = issued.about.key_id
        keys.revoke(key_id)

        for text in (issued.text, f"{issued.text[:-64]}{'0' * 64}"):
            with pytest.raises(SecurityError):
                middleware.process_request({"X-API-Key": text}, IP)

        assert [
            ("ann", False, IP, "revoked", {"key_id": key_id}),
            (None, False, IP, "wrong secret", {"key_id": key_id}),
        ] == audit.lines

    def test_success_is_written_down(self, middleware: SecurityMiddleware, audit: Recorder, issued: IssuedKey) -> None:
        """Who came in, from where and with which key, under the request's id."""
        middleware.process_request({"X-API-Key": issued.text, "X-Request-ID": "web-1"}, IP)

        assert [("ann", True, IP, None, {"key_id": issued.about.key_id, "request_id": "web-1"})] == audit.lines

    def test_no_secret_is_written_down(
        self, middleware: SecurityMiddleware, audit: Recorder, keys: ApiKeys, issued: IssuedKey
    ) -> None:
        """Neither the audit, nor the context, nor an error holds the key."""
        secret = issued.text[-64:]
        context = middleware.process_request({"X-API-Key": issued.text}, IP)
        keys.revoke(issued.about.key_id)
        with pytest.raises(SecurityError) as caught:
            middleware.process_request({"X-API-Key": issued.text}, IP)

        assert secret not in repr((audit.lines, context, dataclasses.asdict(context)))
        assert secret not in "".join(traceback.format_exception(caught.value))

    def test_ids_are_made_up(self, keys: ApiKeys, issued: IssuedKey, audit: Recorder) -> None:
        """Without the client's id, each request gets its own."""
        middleware = SecurityMiddleware(ApiKeyContextBuilder(keys), audit)

        made = {middleware.process_request({"X-API-Key": issued.text}).request_id for _ in range(3)}

        assert 3 == len(made)

    @pytest.mark.parametrize(("given", "source_ip"), [(None, None), ("::ffff:192.0.2.7", IP)])
    def test_the_address_has_one_form(
        self,
        middleware: SecurityMiddleware,
        audit: Recorder,
        issued: IssuedKey,
        given: str | None,
        source_ip: str | None,
    ) -> None:
        """One source is one text in the context and in the audit; it may be unknown."""
        assert source_ip == middleware.process_request({"X-API-Key": issued.text}, given).source_ip
        assert source_ip == audit.lines[0][2]

    def test_other_texts_are_no_address(self, middleware: SecurityMiddleware, issued: IssuedKey) -> None:
        """Who hands over something else has to mend their own code."""
        with pytest.raises(ValidationError, match="'testclient' is no IP address"):
            middleware.process_request({"X-API-Key": issued.text}, "testclient")

    def test_a_lost_redis_is_no_refusal(self, audit: Recorder) -> None:
        """Where nobody can be recognised, the caller is told to try again, and nobody gets in."""
        with store_at("redis://127.0.0.1:1/0") as store:
            middleware = SecurityMiddleware(ApiKeyContextBuilder(ApiKeys(store)), audit)

            with pytest.raises(BrokerUnavailableError):
                middleware.process_request({"X-API-Key": f"ao_{'0' * 16}_{'0' * 64}"}, IP)

        assert [] == audit.lines

    def test_own_builders_are_asked(self, audit: Recorder) -> None:
        """Anything that finds out who asks can be the builder; its refusals are answered like all others."""

        def build(headers: Any, source_ip: str | None) -> SecurityContext:
            if "X-User" not in headers:
                raise SecurityError("the user table has no such row")
            return context_of("viewer", principal=headers["X-User"], source_ip=source_ip)

        middleware = SecurityMiddleware(build, audit)

        assert "eve" == middleware.process_request({"X-User": "eve"}, IP).principal
        with pytest.raises(SecurityError, match="isn't authenticated"):
            middleware.process_request({}, IP)
        assert (None, False, IP, "SecurityError", {}) == audit.lines[-1]


class TestAnonymous:
    def test_is_let_in_where_that_is_wanted(self, keys: ApiKeys, audit: Recorder) -> None:
        """A builder that is told so takes requests without a key, with the roles that it was told."""
        builder = ApiKeyContextBuilder(keys, anonymous_roles=["viewer"])

        context = SecurityMiddleware(builder, audit).process_request({}, IP)

        assert ("anonymous", False) == (context.principal, context.authenticated)
        assert {Permission.READ_TASKS, Permission.READ_FLEET} == context.permissions
        assert ("anonymous", True, IP) == audit.lines[0][:3]

    @pytest.mark.parametrize(
        "headers", [{"X-API-Key": f"ao_{'0' * 16}_{'0' * 64}"}, {"X-API-Key": ""}, {"Authorization": "Basic YTpi"}]
    )
    def test_is_nobody_who_shows_a_bad_key(self, keys: ApiKeys, audit: Recorder, headers: dict[str, str]) -> None:
        """A key that isn't accepted doesn't make its sender anonymous."""
        builder = ApiKeyContextBuilder(keys, anonymous_roles=["viewer"])

        with pytest.raises(SecurityError):
            SecurityMiddleware(builder, audit).process_request(headers, IP)

    def test_has_roles_that_there_are(self, keys: ApiKeys) -> None:
        """A role that nobody defined is refused when the builder is made."""
        with pytest.raises(ValidationError, match="'guest' is no role"):
            ApiKeyContextBuilder(keys, anonymous_roles=["guest"])


class TestRequirePermission:
    def test_grants_are_written_down(self, middleware: SecurityMiddleware, audit: Recorder) -> None:
        """Who may do something may go on, and the audit tells who, on what, and from where."""
        middleware.require_permission(context_of("submitter"), Permission.CREATE_TASKS, "tasks")

        assert [("ann", "tasks", "create_tasks", True, {"source_ip": IP, "request_id": "7c9e"})] == audit.lines

    def test_refusals_are_written_down(self, middleware: SecurityMiddleware, audit: Recorder) -> None:
        """Who may not gets an error that names them, what it takes and on what."""
        with pytest.raises(SecurityError) as caught:
            middleware.require_permission(context_of("viewer", "submitter"), Permission.CANCEL_TASKS, "tasks/7c9e")

        assert (
            "ann isn't allowed to do this on tasks/7c9e: it takes the permission cancel_tasks, which none of their "
            "roles grants (submitter, viewer)."
        ) == str(caught.value)
        assert {
            "principal": "ann",
            "permission": Permission.CANCEL_TASKS,
            "resource": "tasks/7c9e",
        } == vars(caught.value)
        assert [("ann", "tasks/7c9e", "cancel_tasks", False, {"source_ip": IP, "request_id": "7c9e"})] == audit.lines

    @given(st.sets(st.sampled_from(sorted(ROLES))), st.sampled_from(Permission))
    def test_decides_as_the_context_does(self, roles: set[str], permission: Permission) -> None:
        """It passes exactly when the context may, and writes one line each time."""
        audit, context = Recorder(), context_of(*roles)
        middleware = SecurityMiddleware(lambda *_: context, audit)

        try:
            middleware.require_permission(context, permission, "anything")
        except SecurityError:
            passed = False
        else:
            passed = True

        assert context.may(permission) == passed == audit.lines[0][3]
        assert 1 == len(audit.lines)

    def test_tasks_can_be_named(self, middleware: SecurityMiddleware, audit: Recorder) -> None:
        """A permission for some tasks is one for those that are named, and for no others."""
        billing = context_of("invoices", principal="billing")

        middleware.require_permission(
            billing, Permission.CREATE_TASKS, "tasks", task_type="invoice.read", requires={"pdf", "gpu"}
        )
        for task in ({}, {"task_type": "invoice.read"}, {"task_type": "report.read", "requires": "pdf"}):
            with pytest.raises(SecurityError, match="create_tasks"):
                middleware.require_permission(billing, Permission.CREATE_TASKS, "tasks", **task)

        assert [True, False, False, False] == [line[3] for line in audit.lines]
        assert {"task_type": "invoice.read", "requires": "gpu,pdf"}.items() <= audit.lines[0][4].items()

    def test_the_error_names_the_task(self, middleware: SecurityMiddleware) -> None:
        """Who may submit some tasks reads which one they may not."""
        with pytest.raises(SecurityError, match=r"the permission create_tasks for report\.read, which none"):
            middleware.require_permission(
                context_of("invoices"), Permission.CREATE_TASKS, "tasks", task_type="report.read", requires="pdf"
            )


class TestDeafAuditor:
    def test_refusals_stay_refusals(self, keys: ApiKeys, caplog: pytest.LogCaptureFixture) -> None:
        """Where the audit fails, who was refused stays refused, and the log has the audit's error."""
        middleware = SecurityMiddleware(ApiKeyContextBuilder(keys), DeafAuditor())

        with pytest.raises(SecurityError, match="isn't authenticated"):
            middleware.process_request({}, IP)
        with pytest.raises(SecurityError, match="isn't allowed"):
            middleware.require_permission(context_of("viewer"), Permission.CREATE_TASKS, "tasks")

        assert [logging.ERROR] * 2 == [record.levelno for record in caplog.records]
        assert 2 == caplog.text.count("refusal not audited")
        assert 2 == caplog.text.count("BrokerUnavailableError: the audit is away")

    def test_nothing_is_granted_unwritten(self, keys: ApiKeys, issued: IssuedKey) -> None:
        """Where the audit fails, nobody comes in and nothing is allowed; the audit's own error says why."""
        middleware = SecurityMiddleware(ApiKeyContextBuilder(keys), DeafAuditor())

        with pytest.raises(BrokerUnavailableError, match="the audit is away"):
            middleware.process_request({"X-API-Key": issued.text}, IP)
        with pytest.raises(BrokerUnavailableError, match="the audit is away"):
            middleware.require_permission(context_of("viewer"), Permission.READ_TASKS, "tasks")


class TestSecurityContext:
    def test_cannot_be_changed(self) -> None:
        """Nobody gives themselves a role."""
        with pytest.raises(dataclasses.FrozenInstanceError):
            context_of("viewer").roles = frozenset({"admin"})  # type: ignore[misc]

    def test_limited_permissions_are_left_to_may(self) -> None:
        """What holds for some tasks only isn't among the permissions that hold for all."""
        context = context_of("invoices")

        assert {Permission.READ_TASKS} == context.permissions
        assert context.may(Permission.CREATE_TASKS, task_type="invoice.read", requires="pdf")
        assert not context.may(Permission.CREATE_TASKS)
        assert not context.may(Permission.CREATE_TASKS, task_type="invoice.read")
        assert context.may(Permission.READ_TASKS, task_type="report.read")


class TestTheAuditLogger:
    def test_fits(self, keys: ApiKeys, issued: IssuedKey, caplog: pytest.LogCaptureFixture) -> None:
        """The audit logger of `logging_utils` can be the auditor, and writes what was decided, without secrets."""
        auditor: Auditor = create_specialized_loggers(get_logger("audited"))["audit"]
        caplog.set_level(logging.INFO)
        door = SecurityMiddleware(ApiKeyContextBuilder(keys), auditor)

        context = door.process_request({"X-API-Key": issued.text, "X-Request-ID": "web-1"}, IP)
        door.require_permission(context, Permission.CREATE_TASKS, "tasks")
        with pytest.raises(SecurityError):
            door.require_permission(context, Permission.CONTROL_AGENTS, "agents/text@a")
        with pytest.raises(SecurityError):
            door.process_request({}, IP)

        told = [(record.levelname, record.getMessage()) for record in caplog.records]
        assert ["INFO", "INFO", "WARNING", "WARNING"] == [level for level, _ in told]
        for (_, line), words in zip(
            told,
            [
                ["authentication granted", "principal=ann", f"source_ip={IP}", f"key_id={issued.about.key_id}"],
                ["authorization granted", "principal=ann", "action=create_tasks", "resource=tasks"],
                ["authorization denied", "resource=agents/text@a", "action=control_agents", "request_id=web-1"],
                ["authentication denied", "principal=None", 'reason="no credential"'],
            ],
            strict=True,
        ):
            assert all(word in line for word in words), line
        assert issued.text[-64:] not in caplog.text
