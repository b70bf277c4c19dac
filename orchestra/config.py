"""What a deployment sets from outside: `ORCHESTRA_*` variables and a `.env` file."""

import os
import re
import warnings
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

import pydantic
from dotenv import dotenv_values
from pydantic import AfterValidator, BeforeValidator, Field, Secret, SecretStr
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from orchestra.capabilities import CapabilitySet
from orchestra.exceptions import ConfigurationError, FieldError, ValidationError
from orchestra.unroutable import RULE, parse_policy, text_of_policy
from orchestra.utils import MASK, mask_text, shorten

__all__ = ["OrchestraSettings", "RedisUrl", "load_settings", "mask_url", "settings_from"]

PREFIX: Final = "ORCHESTRA_"
SCHEMES: Final = ("redis", "rediss", "redis+socket", "sentinel")

_URL_RULE: Final = (
    "a Redis URL such as redis://:password@host:6379/0 (also rediss://, redis+socket:///path, sentinel://), or several "
    "parted by ';'"
)
_URL_PARTING: Final = re.compile(r";(?=[a-z][a-z0-9+]*://)")
_PLAIN_ADDRESS: Final = re.compile(r"[\w.-]+:[0-9]{1,5}(?:/[0-9]*)?")
_LAST_PORT: Final = 65_535


def mask_url(url: str) -> str:
    """Return `url` without its password; scheme, host, port and database stay. Takes a list parted by ';' too."""
    if "://" in url:
        return mask_text(url)
    if _PLAIN_ADDRESS.fullmatch(url):
        return url
    return f"{MASK}@{url.rpartition('@')[2]}" if "@" in url else MASK


class RedisUrl(Secret[str]):
    """A URL that shows itself without its password; `get_secret_value()` gives it whole."""

    def _display(self) -> str:
        return mask_url(self.get_secret_value())


def _redis_url(url: RedisUrl) -> RedisUrl:
    for part in _URL_PARTING.split(url.get_secret_value()):
        _check_url(part)
    return url


def _check_url(url: str) -> None:
    """Raise a ValueError that holds nothing of the URL, which may be misread and then shows its password."""
    scheme, parted, rest = url.partition("://")
    if not parted or scheme not in SCHEMES:
        message = f"the scheme must be one of: {', '.join(SCHEMES)}"
        raise ValueError(message)
    if any(character.isspace() for character in url):
        message = "a URL holds no spaces"
        raise ValueError(message)
    if scheme == "redis+socket":
        return
    user, _, address = rest.rpartition("@")
    if any(character in user for character in "/?#"):
        message = "write '/', '?' and '#' in a password as %2F, %3F and %23"
        raise ValueError(message)
    _check_address(address.partition("?")[0], named_database=scheme == "sentinel")


def _check_address(address: str, *, named_database: bool) -> None:
    host, _, database = address.partition("/")
    try:
        port = urlsplit(f"//{host}").port
    except ValueError:
        port = 0
    if port is not None and not 0 < port <= _LAST_PORT:
        message = "the port must be a number from 1 to 65535"
        raise ValueError(message)
    if not named_database and not re.fullmatch(r"[0-9]*", database):
        message = "the database, behind the host's '/', must be a number"
        raise ValueError(message)


def _capabilities(text: str) -> str:
    try:
        return str(CapabilitySet.parse(text))
    except ValidationError as exc:
        raise ValueError(str(exc)) from exc


def _policy(text: str) -> str:
    try:
        return text_of_policy(parse_policy(text))
    except ValidationError as exc:
        raise ValueError(str(exc)) from exc


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


Url = Annotated[RedisUrl, AfterValidator(_redis_url)]
Seconds = Annotated[float, Field(allow_inf_nan=False)]
LogLevel = Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], BeforeValidator(_upper)]
PoolName = Annotated[Literal["inline", "prefork", "solo", "threads"], BeforeValidator(_lower)]
LogFormat = Annotated[Literal["console", "json"], BeforeValidator(_lower)]


def _allowed(text: str) -> dict[str, Any]:
    return {"allowed": text}


class OrchestraSettings(BaseSettings):
    """
    Every setting, from the environment (`ORCHESTRA_BROKER_URL`, …), then `.env` in the working directory, then here.

    `load_settings` makes one with errors that people can read. Showing it never shows a secret.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_file=".env",
        env_file_encoding="utf-8",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
        validate_default=False,
    )

    broker_url: Url = Field(
        default=RedisUrl("redis://localhost:6379/0"),
        description="The Redis that holds the queues, the records and the registry of agents.",
        json_schema_extra=_allowed(_URL_RULE),
    )
    result_backend: Url | None = Field(
        default=None,
        description="The Redis that holds the results; the broker's when it isn't set.",
        json_schema_extra=_allowed(_URL_RULE),
    )
    namespace: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9_.-]{1,64}$",
        description="The fleet's name, which parts it from others on the same Redis; the app's name when it isn't set.",
        json_schema_extra=_allowed("up to 64 letters, digits, '_', '.' and '-'"),
    )
    capabilities: Annotated[str, AfterValidator(_capabilities)] | None = Field(
        default=None,
        description="What an agent started here can, unless its command line says so: `nlp,mem_gb=64`.",
        json_schema_extra=_allowed("capabilities parted by commas, such as gpu,lang=fr,mem_gb=64"),
    )
    pool: PoolName | None = Field(
        default=None,
        description="What runs an agent's tasks, unless its command line says so; Celery's `worker_pool` if not set.",
        json_schema_extra=_allowed("one of: inline, prefork, solo, threads"),
    )
    key_prefix: str = Field(
        default="orchestra",
        pattern=r"^[A-Za-z0-9_.:-]{1,64}$",
        description="What the names of all our keys in Redis begin with; queues keep plain names.",
        json_schema_extra=_allowed("up to 64 letters, digits, '_', '.', ':' and '-'"),
    )
    log_level: LogLevel = Field(default="INFO", description="The least level that is logged.")
    log_format: LogFormat = Field(default="console", description="How log lines are written.")
    max_payload_bytes: int = Field(
        default=1_048_576,
        ge=1,
        le=536_870_912,  # what one string in Redis holds
        description="The most bytes that the arguments of one task may take as JSON.",
    )
    max_payload_depth: int = Field(
        default=64,
        ge=1,
        le=128,  # each level is read by recursion, inside whatever stack the caller has
        description="The most lists and objects that may be nested in the arguments of a task.",
    )
    max_timeout_seconds: Seconds = Field(
        default=604_800.0, ge=1, le=31_622_400, description="The longest timeout that a caller may give a task."
    )
    connect_timeout_seconds: Seconds = Field(
        default=5.0,
        ge=0.1,
        le=300,
        description="How long to try to reach Redis before a submission fails.",
    )
    confirm_replicas: int = Field(
        default=0,
        ge=0,
        le=10,
        description="How many replicas have to have a task before its submission returns.",
    )
    beat_seconds: Seconds = Field(
        default=1.0, ge=0.1, le=60, description="How often an agent says that it lives, and looks for new queues."
    )
    lost_after_beats: int = Field(
        default=5, ge=2, le=1000, description="After how many silent beats an agent counts as lost."
    )
    state_ttl_seconds: Seconds = Field(
        default=604_800.0,
        ge=60,
        le=31_622_400,
        description="How long the record of a task is kept after its last change.",
    )
    catalogue_ttl_seconds: Seconds = Field(
        default=2.0,
        ge=0,
        le=3600,
        description="How long a sender trusts what it read of the agents, and of the tasks that they published.",
    )
    on_unroutable: Annotated[str, AfterValidator(_policy)] = Field(
        default="wait",
        description="What becomes of a task that no agent can run, unless the task or the call says so.",
        json_schema_extra=_allowed(f"one of: {RULE}"),
    )
    unroutable_grace_seconds: Seconds = Field(
        default=60.0,
        ge=0,
        le=86_400,
        description="How long an agent that is gone still counts as one that can run tasks: `raise` and `fallback`.",
    )
    unregistered_after_seconds: Seconds = Field(
        default=3600.0,
        ge=0,
        le=31_622_400,
        description="How long a message waits for an agent that knows its task before it becomes a dead letter.",
    )
    max_lost_processes: int = Field(
        default=3,
        ge=0,
        le=1000,
        description="How many processes of a pool a message may cost and be tried again.",
    )
    max_lost_agents: int = Field(
        default=10,
        ge=0,
        le=1000,
        description="How many agents may be lost while they run a task that is tried again.",
    )
    dead_letters_max: int = Field(
        default=100_000,
        ge=1,
        le=100_000_000,
        description="How many dead letters are kept; beyond that the oldest are dropped.",
    )
    dead_letter_ttl_seconds: Seconds = Field(
        default=2_592_000.0, ge=60, le=315_360_000, description="How long a dead letter is kept."
    )
    max_queue_depth: int = Field(
        default=0,
        ge=0,
        le=1_000_000_000,
        description="How many tasks may wait in a queue before a submission to it is refused; 0 for any number.",
    )
    idempotency_seconds: Seconds = Field(
        default=86_400.0,
        ge=1,
        le=31_622_400,
        description="How long an idempotency key stands for the task that was submitted with it.",
    )
    flower_user: str = Field(
        default="orchestra",
        pattern=r"^[^:\s]{1,64}$",
        description="The user name that Flower asks for.",
        json_schema_extra=_allowed("up to 64 characters without ':' and spaces"),
    )
    flower_password: SecretStr | None = Field(
        default=None,
        description="The password that Flower asks for; `make up` thinks one up for the run when it isn't set.",
        json_schema_extra=_allowed("any text"),
    )


class _GivenSettings(OrchestraSettings):
    """Settings that know nothing of the environment."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003  # pydantic's signature
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


def load_settings(**overrides: object) -> OrchestraSettings:
    """
    Return the settings of this process; `overrides` win over the environment and `.env`.

    A variable that begins with `ORCHESTRA_` and isn't a setting is warned of.

    Raises:
        ConfigurationError: a value isn't allowed, or there is no such setting; it names every wrong one with its value
            (masked where it may hold a secret) and what is allowed.

    """
    settings = _made(OrchestraSettings, overrides)
    _warn_of_unknown()
    return settings


def settings_from(values: Mapping[str, object]) -> OrchestraSettings:
    """
    Return settings made of `values` alone, whatever the environment says; for tests and for tools.

    Raises:
        ConfigurationError: as `load_settings` does.

    """
    return _made(_GivenSettings, values)


def _made(kind: type[OrchestraSettings], values: Mapping[str, Any]) -> OrchestraSettings:
    unknown = [name for name in values if name not in OrchestraSettings.model_fields]
    if unknown:
        message = "; ".join(
            f"there is no setting {name!r}{_nearest(name, OrchestraSettings.model_fields)}" for name in unknown
        )
        raise ConfigurationError(message, variable=unknown[0])
    try:
        return kind(**dict(values))
    except pydantic.ValidationError as exc:
        raise _wrong(exc) from None  # pydantic's error holds the values, secrets among them
    except (SettingsError, UnicodeDecodeError, OSError) as exc:
        message = f"The settings can't be read from {Path('.env').absolute()}: {shorten(mask_text(str(exc)), 200)}"
        raise ConfigurationError(message) from None


def _wrong(error: pydantic.ValidationError) -> ConfigurationError:
    entries = {str(entry["loc"][0]): entry for entry in error.errors(include_url=False)}
    errors = tuple(_problem(name, entry["input"]) for name, entry in entries.items())
    reasons = (_reason(entry["type"], entry["msg"]) for entry in entries.values())
    lines = (
        f"{problem.field} is {problem.given}{reason}; it must be {problem.message}."
        for problem, reason in zip(errors, reasons, strict=True)
    )
    first = errors[0]
    return ConfigurationError(
        " ".join(lines), variable=first.field, given=first.given, allowed=first.message, errors=errors
    )


def _problem(name: str, value: object) -> FieldError:
    annotation = str(OrchestraSettings.model_fields[name].annotation)
    if "Url" in annotation:
        given = repr(mask_url(str(value)))
    else:
        given = MASK if "Secret" in annotation else mask_text(repr(value))
    return FieldError(f"{PREFIX}{name.upper()}", _rule(name), shorten(given, 120))


def _reason(kind: str, message: str) -> str:
    """Return what a check of ours says; what pydantic's checks say is in the rule."""
    return f": {shorten(message.removeprefix('Value error, ').rstrip('.'), 300)}" if kind == "value_error" else ""


def _rule(name: str) -> str:
    """Say in words what a setting may be."""
    schema = OrchestraSettings.model_json_schema()["properties"][name]
    if "allowed" in schema:
        return str(schema["allowed"])
    if "enum" in schema:
        return f"one of: {', '.join(schema['enum'])}"
    noun = "a whole number" if schema["type"] == "integer" else "a number"
    return f"{noun} from {schema['minimum']:g} to {schema['maximum']:,}"


def _warn_of_unknown() -> None:
    known = [f"{PREFIX}{name.upper()}" for name in OrchestraSettings.model_fields]
    for name in sorted(_named()):
        if name.upper() not in known:
            warnings.warn(f"{name} is no setting of Orchestra{_nearest(name.upper(), known)}", stacklevel=3)


def _named() -> set[str]:
    """Return the names that begin with our prefix, in the environment and in `.env`."""
    names = {*os.environ, *(dotenv_values(".env", encoding="utf-8") if Path(".env").is_file() else ())}
    return {name for name in names if name.upper().startswith(PREFIX)}


def _nearest(name: str, known: Iterable[str]) -> str:
    found = get_close_matches(name, list(known), n=1)
    return f"; did you mean {found[0]}?" if found else ""
