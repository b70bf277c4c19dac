"""Settings: where they come from, what they may be, and what they never show."""

import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestra.config import OrchestraSettings, RedisUrl, load_settings, mask_url, settings_from
from orchestra.exceptions import ConfigurationError

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Stand in an empty folder, without any of our variables."""
    for name in OrchestraSettings.model_fields:
        monkeypatch.delenv(f"ORCHESTRA_{name.upper()}", raising=False)
    monkeypatch.chdir(tmp_path)


class TestLoadSettings:
    def test_defaults_are_those_of_the_design(self) -> None:
        """Without variables and files every setting has its default."""
        settings = load_settings()

        assert "redis://localhost:6379/0" == settings.broker_url.get_secret_value()
        assert (None, None, None) == (settings.result_backend, settings.namespace, settings.capabilities)
        assert (1_048_576, 64, 604_800) == (
            settings.max_payload_bytes,
            settings.max_payload_depth,
            settings.max_timeout_seconds,
        )
        assert (5.0, 1.0, 5) == (settings.connect_timeout_seconds, settings.beat_seconds, settings.lost_after_beats)

    def test_the_nearest_source_wins(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """An override wins over the environment, which wins over `.env`, which wins over the default."""
        (tmp_path / ".env").write_text(
            "ORCHESTRA_NAMESPACE=file\nORCHESTRA_KEY_PREFIX=file\nORCHESTRA_LOG_FORMAT=json\nOTHER=1\n",
            encoding="utf-8",
        )
        monkeypatch.setenv("ORCHESTRA_NAMESPACE", "environment")
        monkeypatch.setenv("ORCHESTRA_KEY_PREFIX", "environment")

        settings = load_settings(namespace="override")

        assert ("override", "environment", "json") == (settings.namespace, settings.key_prefix, settings.log_format)

    def test_an_empty_variable_is_not_set(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """An empty variable leaves the default, as a compose file writes it."""
        monkeypatch.setenv("ORCHESTRA_BEAT_SECONDS", "")

        assert 1.0 == load_settings().beat_seconds

    def test_case_does_not_matter_where_it_means_nothing(self) -> None:
        """Log level and format are read in upper and lower case."""
        settings = load_settings(log_level="debug", log_format="JSON")

        assert ("DEBUG", "json") == (settings.log_level, settings.log_format)

    def test_capabilities_are_canonical(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Capabilities are checked here, and read in their canonical form."""
        monkeypatch.setenv("ORCHESTRA_CAPABILITIES", "nlp, mem_gb=064")

        assert "mem_gb=64,nlp" == load_settings().capabilities

    @pytest.mark.parametrize(
        ("name", "value", "allowed"),
        [
            ("BEAT_SECONDS", "abc", "a number from 0.1 to 60"),
            ("BEAT_SECONDS", "nan", "a number from 0.1 to 60"),
            ("LOST_AFTER_BEATS", "1", "a whole number from 2 to 1,000"),
            ("MAX_PAYLOAD_BYTES", "-1", "a whole number from 1 to 536,870,912"),
            ("LOG_LEVEL", "LOUD", "one of: DEBUG, INFO, WARNING, ERROR, CRITICAL"),
            ("LOG_FORMAT", "xml", "one of: console, json"),
            ("NAMESPACE", "a b", "letters, digits"),
            ("KEY_PREFIX", "{a}", "letters, digits"),
            ("CAPABILITIES", "GPU", "'GPU' is no capability"),
            ("BROKER_URL", "localhost:6379", "redis://:password@host:6379/0"),
        ],
    )
    def test_a_wrong_value_is_named(self, monkeypatch: pytest.MonkeyPatch, name: str, value: str, allowed: str) -> None:
        """The error names the variable, its value, and what is allowed."""
        monkeypatch.setenv(f"ORCHESTRA_{name}", value)

        with pytest.raises(ConfigurationError, match=f"ORCHESTRA_{name} is '{value}'") as caught:
            load_settings()

        assert allowed in str(caught.value)
        assert f"ORCHESTRA_{name}" == caught.value.variable
        assert caught.value.allowed in str(caught.value)

    def test_every_wrong_value_is_named(self) -> None:
        """One error tells of everything that is wrong."""
        with pytest.raises(ConfigurationError) as caught:
            load_settings(beat_seconds=-1, log_level="LOUD", broker_url="http://h")

        assert {"ORCHESTRA_BEAT_SECONDS", "ORCHESTRA_LOG_LEVEL", "ORCHESTRA_BROKER_URL"} == {
            problem.field for problem in caught.value.errors
        }

    def test_an_unknown_variable_is_warned_of(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """A variable that is no setting is warned of with the nearest name, wherever it stands."""
        monkeypatch.setenv("ORCHESTRA_BROKER_ULR", "redis://h")
        (tmp_path / ".env").write_text("ORCHESTRA_BEET_SECONDS=1\n", encoding="utf-8")

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            load_settings()

        texts = [str(warning.message) for warning in caught]
        assert [
            "ORCHESTRA_BEET_SECONDS is no setting of Orchestra; did you mean ORCHESTRA_BEAT_SECONDS?",
            "ORCHESTRA_BROKER_ULR is no setting of Orchestra; did you mean ORCHESTRA_BROKER_URL?",
        ] == texts

    def test_an_unknown_override_is_refused(self) -> None:
        """An override that is no setting is a mistake of the caller."""
        with pytest.raises(ConfigurationError, match="did you mean broker_url"):
            load_settings(broker_ulr="redis://h")

    def test_a_file_that_cannot_be_read_is_named(self, tmp_path: Path) -> None:
        """A `.env` that is no text is refused with its path."""
        (tmp_path / ".env").write_bytes(b"ORCHESTRA_NAMESPACE=\xff\xfe\n")

        with pytest.raises(ConfigurationError, match=r"can't be read from .*\.env"):
            load_settings()


class TestUrls:
    @pytest.mark.parametrize(
        "url",
        [
            "redis://localhost",
            "redis://:p%40ss@h:6379/1?ssl_cert_reqs=none",
            "rediss://user:pass@h:6380/0",
            "redis+socket:///tmp/redis.sock?virtual_host=1",
            "sentinel://:pass@a:26379;sentinel://:pass@b:26379",
            "redis://[::1]:6379/0",
            "redis://:a@b@h:1/0",
        ],
    )
    def test_redis_urls_pass(self, url: str) -> None:
        """Every address of a Redis is taken as it is, lists for failover too."""
        assert url == settings_from({"broker_url": url}).broker_url.get_secret_value()

    @pytest.mark.parametrize(
        ("url", "problem"),
        [
            ("amqp://:hunter2@h", "scheme"),
            ("hunter2", "scheme"),
            ("redis://:hunt/er2@h:6379", "%2F"),
            ("redis://:hunter2@h:port", "port"),
            ("redis://:hunter2@h:99999", "port"),
            ("redis://:hunter2@h:6379/first", "database"),
            ("redis://:hunter2@h/0;amqp://:hunter2@h", "scheme"),
            ("redis://:hunter2@h\n", "spaces"),
        ],
    )
    def test_other_urls_are_refused_without_their_password(self, url: str, problem: str) -> None:
        """A URL that can't be used is refused with the reason, and the password isn't shown, nor in the cause."""
        with pytest.raises(ConfigurationError, match=problem) as caught:
            settings_from({"broker_url": url})

        assert "hunt" not in f"{caught.value} {vars(caught.value)} {caught.value.__cause__}"

    @given(
        st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), min_size=4).filter(
            lambda word: word not in "redis://:***@host:6379/0"
        )
    )
    def test_no_password_is_shown(self, password: str) -> None:
        """Whatever the password is, the masked URL doesn't hold it."""
        assert "redis://:***@host:6379/0" == mask_url(f"redis://:{password}@host:6379/0")

    @pytest.mark.parametrize(
        ("url", "expected"),
        [
            ("localhost:6379", "localhost:6379"),
            (":hunter2@h", "***@h"),
            ("hunter2", "***"),
            ("redis:/:hunter2@h:1", "***@h:1"),
        ],
    )
    def test_what_is_no_url_is_masked_too(self, url: str, expected: str) -> None:
        """Text without a scheme shows an address at most."""
        assert expected == mask_url(url)


class TestSecrets:
    def test_settings_never_show_them(self) -> None:
        """No way of printing settings shows a password."""
        settings = settings_from(
            {
                "broker_url": "redis://:hunter2@host:6379/0",
                "result_backend": RedisUrl("redis://:hunter2@other"),
                "flower_password": "hunter2",
            }
        )

        shown = f"{settings} {settings!r} {settings.model_dump()} {settings.model_dump_json()} {settings.broker_url}"

        assert "hunter2" not in shown
        assert "redis://:***@host:6379/0" in shown

    def test_a_wrong_secret_is_masked(self) -> None:
        """An error about a secret doesn't hold its value."""
        with pytest.raises(ConfigurationError, match=r"ORCHESTRA_FLOWER_PASSWORD is \*\*\*") as caught:
            settings_from({"flower_password": ["hunter2"]})

        assert "hunter2" not in str(vars(caught.value))


class TestSettingsFrom:
    def test_the_environment_is_not_asked(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """Settings made of values alone know neither variables nor files."""
        monkeypatch.setenv("ORCHESTRA_NAMESPACE", "environment")
        (tmp_path / ".env").write_text("ORCHESTRA_KEY_PREFIX=file\n", encoding="utf-8")

        settings = settings_from({"beat_seconds": 2})

        assert (None, "orchestra", 2.0) == (settings.namespace, settings.key_prefix, settings.beat_seconds)
        assert isinstance(settings, OrchestraSettings)

    def test_settings_cannot_be_changed(self) -> None:
        """Settings are a value."""
        with pytest.raises(Exception, match="frozen"):
            settings_from({}).namespace = "other"


class TestDocumentation:
    def test_every_setting_is_described(self) -> None:
        """Every setting says what it is for, since the documentation is made of it."""
        assert all(field.description for field in OrchestraSettings.model_fields.values())

    def test_the_example_file_names_every_setting(self) -> None:
        """`.env.example` has a line for each setting, and no other."""
        lines = (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
        named = {line.removeprefix("#").partition("=")[0] for line in lines if line.startswith("#ORCHESTRA_")}

        assert {f"ORCHESTRA_{name.upper()}" for name in OrchestraSettings.model_fields} == named
