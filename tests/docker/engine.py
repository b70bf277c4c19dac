"""The Docker engine as the tests use it: commands with their output, images, and a Compose project of one's own."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

__all__ = ["PROJECT", "Compose", "Images", "compose_command", "done", "inspected", "output_of"]

PROJECT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """The images that the tests run: Python and Redis below, ours on top."""

    python: str
    redis: str
    agent: str


def done(
    *command: str, env: Mapping[str, str] | None = None, given: str | None = None, seconds: float = 60
) -> subprocess.CompletedProcess[str]:
    """Run a command in the project's folder to its end, with `env` besides this process's."""
    return subprocess.run(
        command,
        cwd=PROJECT,
        env={**os.environ, **(env or {})},
        input=given,
        stdin=subprocess.DEVNULL if given is None else None,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def output_of(*command: str, env: Mapping[str, str] | None = None, seconds: float = 60) -> str:
    """Return what a command that succeeds writes; fail with all of it when it doesn't."""
    finished = done(*command, env=env, seconds=seconds)
    assert finished.returncode == 0, f"{' '.join(command)}\n{finished.stdout}{finished.stderr}"
    return finished.stdout


def inspected(*names: str) -> list[dict[str, Any]]:
    """Return what the engine knows of containers or images."""
    found: list[dict[str, Any]] = json.loads(output_of("docker", "inspect", *names))
    return found


def compose_command() -> tuple[str, ...] | None:
    """Return how Compose is called here, by its old name or as Docker's plugin; None where it's missing."""
    if shutil.which("docker-compose"):
        return ("docker-compose",)
    return ("docker", "compose") if done("docker", "compose", "version").returncode == 0 else None


class Compose:
    """One Compose project over docker-compose.yml, under a name that nobody else has."""

    def __init__(self, images: Images, **variables: str) -> None:
        command = compose_command()
        assert command is not None
        self.name = f"orchestra-test-{uuid4().hex[:8]}"
        self._command = (*command, "--project-name", self.name)
        self.environment = {
            "PYTHON_IMAGE": images.python,
            "REDIS_IMAGE": images.redis,
            "AGENT_IMAGE": images.agent,
            **variables,
        }

    def __call__(self, *arguments: str, seconds: float = 120) -> str:
        """Run a command of Compose that has to succeed; return what it writes."""
        return output_of(*self._command, *arguments, env=self.environment, seconds=seconds)

    @contextmanager
    def begun(self, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
        """Give a command of Compose whose output is read while it runs, and that doesn't outlive the block."""
        with subprocess.Popen(
            [*self._command, *arguments],
            cwd=PROJECT,
            env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def containers(self, *services: str) -> list[dict[str, Any]]:
        """Return what the engine knows of the containers of some services, or of all."""
        found = self("ps", "--all", "--quiet", *services).split()
        return inspected(*found) if found else []

    def logs(self) -> str:
        """Return the end of what every container wrote."""
        return self("logs", "--no-color", "--tail", "15")

    def redis(self, *words: str) -> str:
        """Send Redis a command, from within its container, and return the answer."""
        return self("exec", "-T", "redis", "redis-cli", *words).strip()

    def close(self) -> None:
        """Remove every container, network and volume of the project."""
        self("--profile", "demo", "down", "--volumes", "--remove-orphans", "--timeout", "20")
