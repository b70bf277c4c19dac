"""The guide on security, and on testing utilities."""

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from orchestra.api_keys import ApiKeys
from orchestra.config import settings_from
from orchestra.exceptions import ConfigurationError, SecurityError, ValidationError
from orchestra.security_utils import ApiKeyContextBuilder
from orchestra.testing_utils import MockTask, TaskWaitsError
from tests.fleets import app_at
from tests.guide.quoting import arun, quotes, run


class TestSecurity:
    """Security Practices."""

    SNIPPET = """\
        from orchestra.security_utils import SecurityMiddleware, Permission

        # Setup security
        middleware = SecurityMiddleware(context_builder, auditor)

        # Process requests
        context = middleware.process_request(headers, source_ip)

        # Check permissions
        middleware.require_permission(context, Permission.CREATE_TASKS, 'tasks')
        """

    @quotes(SNIPPET)
    @pytest.mark.parametrize(("role", "granted"), [("submitter", True), ("viewer", False)])
    def test_requests(self, quoted: str, role: str, granted: bool, guarded: Any) -> None:
        """A key's role decides, and the audit has both the sender and the decision."""
        key = guarded.keys.create("web", [role], expires=None)
        given = {
            "context_builder": guarded.builder,
            "auditor": guarded.auditor,
            "headers": {"Authorization": f"Bearer {key.text}"},
            "source_ip": "192.0.2.7",
        }

        if granted:
            assert "web" == run(quoted, **given)["context"].principal
        else:
            with pytest.raises(SecurityError, match="web"):
                run(quoted, **given)

        assert [("authentication", True), ("authorization", granted)] == guarded.auditor.decisions

    @quotes(
        """\
        from orchestra.validation import validate_task_type, validate_timeout
        from orchestra.security_utils import InputSanitizer

        # Validate and sanitize inputs
        task_type = validate_task_type(user_input['type'])
        timeout = validate_timeout(user_input.get('timeout'))
        clean_data = InputSanitizer.validate_user_input(user_input)
        """
    )
    def test_input(self, quoted: str) -> None:
        """Good input passes unchanged; bad input is refused with its place."""
        good = {"type": "text.keywords", "timeout": 30, "text": "naïve café"}

        names = run(quoted, user_input=good)

        assert ("text.keywords", 30.0, good) == (names["task_type"], names["timeout"], names["clean_data"])
        for bad in ({"type": "no type!"}, {"type": "t", "timeout": -1}, {"type": "t", "text": "\x00"}):
            with pytest.raises(ValidationError):
                run(quoted, user_input=bad)


class Recording:
    """An auditor that remembers what was decided."""

    def __init__(self) -> None:
        self.decisions: list[tuple[str, bool]] = []

    def log_authentication(self, principal: str | None, granted: bool, **_: Any) -> None:
        """Remember who somebody was found to be."""
        self.decisions.append(("authentication", granted))

    def log_authorization(self, principal: str, resource: str, action: str, granted: bool, **_: Any) -> None:
        """Remember what somebody was allowed to do."""
        self.decisions.append(("authorization", granted))


@pytest.fixture
def guarded(redis_url: str) -> Iterator[Any]:
    """Give API keys on a real Redis, a context builder over them, and an auditor that remembers."""
    with app_at(redis_url) as app:
        keys = ApiKeys(app.store)
        yield SimpleNamespace(keys=keys, builder=ApiKeyContextBuilder(keys), auditor=Recording())


class TestTestingUtilities:
    """Testing Utilities."""

    @quotes(
        """\
        from orchestra.testing_utils import MockAgent

        # Create mock agent with specific behavior
        agent = MockAgent(
            capabilities=['cpu_intensive', 'general'],
            failure_rate=0.1,
            processing_delay=0.5
        )

        # Use in tests
        result = await agent.execute_task(task)
        """
    )
    @pytest.mark.parametrize("requires", ["cpu_intensive", "gpu"])
    def test_mock_agent(self, quoted: str, requires: str) -> None:
        """The agent runs what it satisfies, and leaves the rest waiting, as the real router has it."""
        task = MockTask("shop.total", args=([1, 2, 4],), run=sum, requires=requires)

        if requires == "gpu":
            with pytest.raises(TaskWaitsError, match="it lacks gpu"):
                asyncio.run(arun(quoted, task=task))
        else:
            assert 7 == asyncio.run(arun(quoted, task=task))["result"]

    @quotes(
        """\
        from orchestra.testing_utils import create_test_scenario

        # Create pre-configured test scenario
        harness = create_test_scenario(
            scenario_name="load_test",
            num_agents=5,
            num_tasks=20,
            agent_failure_rate=0.05
        )

        # Access components
        agents = harness.mock_agents
        tasks = harness.submitted_tasks
        """
    )
    def test_scenario(self, quoted: str) -> None:
        """The scenario has what was asked for, and every task ends on an agent that satisfies it."""
        names = run(quoted)

        report = names["harness"].run_sync()

        assert (5, 20) == (len(names["agents"]), len(names["tasks"]))
        assert 20 == len(report.runs)
        able = {agent.name: agent for agent in names["agents"]}
        assert all(() == able[name].missing(one.task) for one in report.runs for name in one.agents)

    @quotes(
        """\
        from orchestra.testing_utils import ConfigurationTestHelper

        # Test with various configurations
        config_helper = ConfigurationTestHelper()

        # Invalid configuration
        invalid_config = config_helper.create_invalid_config()

        # Minimal valid configuration
        minimal_config = config_helper.create_minimal_config()
        """
    )
    def test_configurations(self, quoted: str) -> None:
        """The minimal one loads; the invalid one is refused, and the error names every variable."""
        names = run(quoted)

        assert "redis://localhost:6379/0" == settings_from(names["minimal_config"]).broker_url.get_secret_value()
        with pytest.raises(ConfigurationError) as refused:
            settings_from(names["invalid_config"])
        assert set(names["invalid_config"]) <= {
            error.field.lower().removeprefix("orchestra_") for error in refused.value.errors
        }
