"""The images that container tests need, made once; and the reasons for which these tests are skipped."""

import os
import shutil

import pytest

from tests.docker.engine import PROJECT, Compose, Images, compose_command, done

_AGENT = "agent-orchestra:test"  # it stays, so that the next run builds what has changed only


@pytest.fixture(scope="session")
def engine() -> None:
    """Skip where no container can be started."""
    if shutil.which("docker") is None or done("docker", "info").returncode:
        pytest.skip("no Docker engine answers here")
    if compose_command() is None:
        pytest.skip("Compose is missing: neither docker-compose nor the plugin of docker is here")


@pytest.fixture(scope="session")
def images(engine: None) -> Images:
    """Give the images: those below by PYTHON_IMAGE and REDIS_IMAGE, else local ones, made if need be; and ours."""
    if "PYTHON_IMAGE" not in os.environ or "REDIS_IMAGE" not in os.environ:
        made = done(str(PROJECT / "docker" / "base-images.sh"), seconds=600)
        if made.returncode:
            pytest.skip(f"there are no base images, and none can be made: {made.stderr.strip()}")
    images = Images(
        python=os.environ.get("PYTHON_IMAGE", "agent-orchestra/python:local"),
        redis=os.environ.get("REDIS_IMAGE", "agent-orchestra/redis:local"),
        agent=_AGENT,
    )
    Compose(images, REDIS_PASSWORD="-", ORCHESTRA_FLOWER_PASSWORD="-")("build", "general", seconds=900)
    return images
