"""What tests of projects that use Orchestra need: mock agents, scenarios, a clock, configurations, local agents."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final
from unittest.mock import patch

from pydantic import Secret, SecretStr

from orchestra.config import PREFIX, OrchestraSettings, settings_from
from orchestra.exceptions import ConfigurationError
from orchestra.frozen_clock import FrozenClock
from orchestra.local_agents import LocalAgent
from orchestra.mock_agents import Attempt, MockAgent, TaskWaitsError
from orchestra.mock_tasks import MockTask, SubmittedTask
from orchestra.private_app import PrivateApp
from orchestra.scenario_report import ScenarioReport, TaskRun
from orchestra.scenarios import ScenarioHarness, create_test_scenario

__all__ = [
    "Attempt",
    "ConfigurationTestHelper",
    "FrozenClock",
    "LocalAgent",
    "MockAgent",
    "MockTask",
    "PrivateApp",
    "ScenarioHarness",
    "ScenarioReport",
    "SubmittedTask",
    "TaskRun",
    "TaskWaitsError",
    "create_test_scenario",
]

_WRONG: Final = "neither: right"  # no name, number, URL or choice


class ConfigurationTestHelper:
    """Configurations to test with: values by the names of the settings, as `settings_from` takes them."""

    def create_minimal_config(self, broker_url: str = "redis://localhost:6379/0") -> dict[str, Any]:
        """Return the least that a deployment sets, which is where Redis is; it loads."""
        return {"broker_url": broker_url}

    def create_invalid_config(self, *names: str) -> dict[str, Any]:
        """
        Return a configuration that doesn't load; the error names the variable of each setting in it.

        `names` are the settings to get wrong; all that can be wrong where none is given.

        Raises:
            ConfigurationError: there is no such setting, or whatever it's set to is right.

        """
        wrong = {name: _wrong_value(name) for name in names or OrchestraSettings.model_fields}
        refused = {name: value for name, value in wrong.items() if not _loads(name, value)}
        right = [name for name in names if name not in refused]
        if right:
            message = f"{right[0]} can't be wrong: any text will do. Leave it out."
            raise ConfigurationError(message, variable=right[0])
        return refused

    @contextmanager
    def environment(self, values: Mapping[str, Any]) -> Iterator[None]:
        """
        Let `ORCHESTRA_*` variables say these values, and nothing else, within the block; None stands for not set.

        A `.env` file in the working directory is still read, for what the variables leave open.
        """
        said = {
            f"{PREFIX}{name.upper()}": str(value.get_secret_value() if isinstance(value, Secret | SecretStr) else value)
            for name, value in values.items()
            if value is not None
        }
        with patch.dict(os.environ):
            for name in [name for name in os.environ if name.upper().startswith(PREFIX)]:
                del os.environ[name]
            os.environ.update(said)
            yield


def _wrong_value(name: str) -> Any:
    """Return what a setting can't be: below its minimum, or text that fits nothing which has a form."""
    schema = OrchestraSettings.model_json_schema()["properties"].get(name, {})
    return schema["minimum"] - 1 if "minimum" in schema else _WRONG


def _loads(name: str, value: Any) -> bool:
    """Tell whether a setting takes a value; a ConfigurationError where there is no such setting."""
    try:
        settings_from({name: value})
    except ConfigurationError as error:
        if not error.errors:
            raise
        return False
    return True
