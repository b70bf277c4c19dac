"""What [tool.orchestra] in the project's pyproject.toml says of its app and its agents."""

import tomllib
from pathlib import Path
from typing import Annotated, Final

import pydantic
from pydantic import BaseModel, BeforeValidator, ConfigDict

from orchestra.exceptions import ConfigurationError
from orchestra.fleet import AgentSpec

__all__ = ["PROJECT", "FleetTable", "read_table"]

PROJECT: Final = Path("pyproject.toml")


def _spec(value: object) -> object:
    return AgentSpec.parse(value) if isinstance(value, str) else value


class FleetTable(BaseModel):
    """What `[tool.orchestra]` says: an app, and its agents as tables or as `NAME:CAPABILITIES:PROCESSES`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    app: str | None = None
    agents: tuple[Annotated[AgentSpec, BeforeValidator(_spec)], ...] = ()


class _Tool(BaseModel):
    orchestra: FleetTable = FleetTable()


class _Document(BaseModel):
    tool: _Tool = _Tool()


def read_table(path: Path) -> FleetTable:
    """
    Read `[tool.orchestra]`; an empty one when there's no such file or table.

    Raises:
        ConfigurationError: it can't be read, or says what makes no sense.

    """
    try:
        return _Document.model_validate(tomllib.loads(path.read_text(encoding="utf-8"))).tool.orchestra
    except FileNotFoundError:
        return FleetTable()
    except pydantic.ValidationError as error:
        raise _wrong_table(path, error) from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        message = f"{path} can't be read: {error}"
        raise ConfigurationError(message) from error


def _wrong_table(path: Path, error: pydantic.ValidationError) -> ConfigurationError:
    first = error.errors(include_url=False)[0]
    place = ".".join(map(str, first["loc"]))
    return ConfigurationError(f"{path}, {place}: {first['msg']} (got {first['input']!r}).")
