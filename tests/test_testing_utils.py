"""Configurations to test with, and the one module that tests import from."""

import os
from typing import Any

import pytest

from orchestra import testing_utils
from orchestra.config import OrchestraSettings, RedisUrl, load_settings, settings_from
from orchestra.exceptions import ConfigurationError
from orchestra.testing_utils import ConfigurationTestHelper


@pytest.fixture
def helper() -> ConfigurationTestHelper:
    """Give the helper."""
    return ConfigurationTestHelper()


class TestNames:
    def test_are_all_there(self) -> None:
        """A test needs this module alone."""
        assert {"MockAgent", "MockTask", "create_test_scenario", "FrozenClock", "ConfigurationTestHelper"} <= {
            name for name in testing_utils.__all__ if hasattr(testing_utils, name)
        }
        assert not [name for name in testing_utils.__all__ if not hasattr(testing_utils, name)]


class TestMinimalConfig:
    def test_loads(self, helper: ConfigurationTestHelper) -> None:
        """It says where Redis is, and everything else is a default."""
        assert {"broker_url": "redis://localhost:6379/0"} == helper.create_minimal_config()
        settings = settings_from(helper.create_minimal_config("redis://redis.example/3"))
        assert "redis://redis.example/3" == settings.broker_url.get_secret_value()
        assert settings_from({}).model_dump(exclude={"broker_url"}) == settings.model_dump(exclude={"broker_url"})


class TestInvalidConfig:
    def test_does_not_load(self, helper: ConfigurationTestHelper) -> None:
        """The error names every variable in it, which are those of all settings that can be wrong."""
        wrong = helper.create_invalid_config()

        with pytest.raises(ConfigurationError) as caught:
            settings_from(wrong)

        assert {f"ORCHESTRA_{name.upper()}" for name in wrong} == {error.field for error in caught.value.errors}
        assert {"flower_password"} == OrchestraSettings.model_fields.keys() - wrong

    @pytest.mark.parametrize("name", ConfigurationTestHelper().create_invalid_config())
    def test_of_one_setting(self, helper: ConfigurationTestHelper, name: str) -> None:
        """Each value is wrong by itself, as a value and as a variable."""
        wrong = helper.create_invalid_config(name)
        assert [name] == list(wrong)

        with pytest.raises(ConfigurationError, match=f"ORCHESTRA_{name.upper()} is"):
            settings_from(wrong)
        with helper.environment(wrong), pytest.raises(ConfigurationError, match=f"ORCHESTRA_{name.upper()} is"):
            load_settings()

    @pytest.mark.parametrize(
        ("name", "problem"), [("beat_second", "did you mean beat_seconds"), ("flower_password", "any text will do")]
    )
    def test_that_there_cannot_be(self, helper: ConfigurationTestHelper, name: str, problem: str) -> None:
        """A setting that doesn't exist, or takes anything, can't be got wrong."""
        with pytest.raises(ConfigurationError, match=problem):
            helper.create_invalid_config("broker_url", name)


class TestEnvironment:
    @pytest.mark.parametrize("url", ["redis://:hunter2@redis.example/3", RedisUrl("redis://:hunter2@redis.example/3")])
    def test_says_these_values_alone(
        self, helper: ConfigurationTestHelper, monkeypatch: pytest.MonkeyPatch, url: Any
    ) -> None:
        """Within the block the variables say what was given; what a shell said before comes back after it."""
        monkeypatch.setenv("ORCHESTRA_BEAT_SECONDS", "17")
        monkeypatch.delenv("ORCHESTRA_NAMESPACE", raising=False)
        before = dict(os.environ)

        with helper.environment({"broker_url": url, "namespace": "shop", "lost_after_beats": 5, "capabilities": None}):
            settings = load_settings()

        assert "redis://:hunter2@redis.example/3" == settings.broker_url.get_secret_value()
        assert ("shop", 5, 1.0, None) == (
            settings.namespace,
            settings.lost_after_beats,
            settings.beat_seconds,
            settings.capabilities,
        )
        assert before == dict(os.environ)
