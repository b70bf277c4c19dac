"""What people install, and the targets that they type before anything is installed."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

import orchestra

ROOT = Path(__file__).parents[1]
METADATA = f"agent_orchestra-{orchestra.__version__}.dist-info"


def run(*command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, as if neither make nor git had started the tests."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "MAKE", "MFLAGS"))}
    return subprocess.run(
        command, cwd=cwd, env={**inherited, **environment}, check=False, capture_output=True, text=True, timeout=100
    )


@pytest.fixture(scope="module")
def wheel(built: Path) -> zipfile.ZipFile:
    """Give the wheel."""
    (path,) = built.glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def installed(wheel: zipfile.ZipFile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder that holds what the wheel installs, and nothing of the checkout."""
    folder = tmp_path_factory.mktemp("installed")
    wheel.extractall(folder)
    return folder


@pytest.mark.slow
class TestWheel:
    def test_holds_the_package_alone(self, wheel: zipfile.ZipFile) -> None:
        """Every file of the package is in the wheel, its Lua and its type marker too; tests and fleet aren't."""
        package = {
            path.relative_to(ROOT).as_posix()
            for path in ROOT.glob("orchestra/**/*")
            if path.suffix in {".py", ".lua"} or path.name == "py.typed"
        }

        held = {name for name in wheel.namelist() if not name.startswith(f"{METADATA}/")}

        assert package | {"_orchestra_pytest.py"} == held
        assert "orchestra/py.typed" in package
        assert "orchestra/scripts/publish.lua" in package

    def test_says_what_it_is(self, wheel: zipfile.ZipFile) -> None:
        """The metadata names the licence, the oldest Python, the version, and only those who belong."""
        metadata: Message = Parser().parsestr(wheel.read(f"{METADATA}/METADATA").decode())
        requirements = metadata.get_all("Requires-Dist", [])

        assert "Apache-2.0" == metadata["License-Expression"]
        assert ">=3.11" == metadata["Requires-Python"]
        assert ["bench", "dev", "embedded"] == metadata.get_all("Provides-Extra")
        assert any(re.fullmatch(r"celery\[redis\][^;]*", one) for one in requirements)
        assert f"{METADATA}/licenses/LICENSE" in wheel.namelist()

    def test_has_its_commands(self, wheel: zipfile.ZipFile) -> None:
        """It installs `orchestra`, and `celery orchestra`."""
        points = ConfigParser()
        points.read_string(wheel.read(f"{METADATA}/entry_points.txt").decode())

        assert {"orchestra": "orchestra.cli:main"} == dict(points["console_scripts"])
        assert {"orchestra": "orchestra.cli:orchestra"} == dict(points["celery.commands"])

    def test_its_scripts_are_found(self, installed: Path) -> None:
        """The Lua is read from where the wheel puts it."""
        code = "import orchestra.store as s; print(s.__file__); print(len(s.load_script('publish').source) > 0)"

        done = run(sys.executable, "-c", code, cwd=installed, PYTHONPATH=str(installed))

        assert [str(installed / "orchestra/store.py"), "True"] == done.stdout.splitlines(), done.stderr


@pytest.mark.slow
class TestSdist:
    def test_holds_what_its_tests_need(self, built: Path) -> None:
        """Whoever repackages it finds the tests, the fleet that they run, and the docs that they check."""
        (path,) = built.glob("*.tar.gz")
        with tarfile.open(path) as archive:
            top = {name.split("/")[1] for name in archive.getnames() if "/" in name}

        assert {"orchestra", "workers", "tests", "docs", "celeryconfig.py", "Makefile", ".ci", ".github"} <= top
        assert ".env" not in top


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Give a folder with the Makefile, in which nothing is installed."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def program(path: Path, text: str) -> Path:
    """Write a shell script that can be run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def set_up(checkout: Path) -> None:
    """Leave the stamps that a finished set-up leaves."""
    (checkout / ".venv").mkdir()
    for stamp in (".installed-demo", ".installed-dev", ".installed-bench"):
        (checkout / ".venv" / stamp).touch()


def targets() -> list[str]:
    """Return the targets that `make help` names."""
    return re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


class TestMakefile:
    def test_help_is_the_default(self, checkout: Path) -> None:
        """A bare `make` lists every target, and needs nothing installed."""
        done = run("make", cwd=checkout)

        assert targets() == [line.split()[1] for line in done.stdout.splitlines()]

    @pytest.mark.parametrize("target", targets())
    def test_every_target_is_known(self, checkout: Path, target: str) -> None:
        """Once set up, a target goes straight to its work."""
        set_up(checkout)

        done = run("make", "--dry-run", target, cwd=checkout)

        assert done.returncode == 0, done.stderr
        assert "pip" not in done.stdout

    def test_a_changed_project_is_installed_again(self, checkout: Path) -> None:
        """The set-up follows pyproject.toml."""
        set_up(checkout)
        os.utime(checkout / ".venv/.installed-demo", (0, 0))

        assert "pip install" in run("make", "--dry-run", "demo", cwd=checkout).stdout

    @pytest.mark.parametrize(
        ("python", "line"),
        [
            ("case $2 in *version_info*) exit 1;; esac", r"\S+ is older than Python 3\.11: .* PYTHON=\S+ demo"),
            ("case $2 in *ensurepip*) exit 1;; esac", r"\S+ cannot make virtual .* sudo apt install python3-venv\)"),
            (None, r"\S+ was not found: install Python 3\.11 or newer, .* PYTHON=\S+ demo"),
        ],
        ids=["too old", "without venv", "absent"],
    )
    def test_a_python_that_will_not_do(self, checkout: Path, python: str | None, line: str) -> None:
        """One line says what is wrong with this Python and what to do, before anything is made."""
        path = checkout / "bin/python3"
        if python is not None:
            program(path, python)

        done = run("make", "demo", f"PYTHON={path}", cwd=checkout)

        said = [one for one in done.stderr.splitlines() if not one.startswith("make")]
        assert done.returncode != 0
        assert len(said) == 1
        assert re.fullmatch(line, said[0])
        assert not (checkout / ".venv").exists()

    def test_an_interrupted_install_is_done_again(self, checkout: Path) -> None:
        """An install that failed or was interrupted leaves no stamp, and the next one overwrites what it left."""
        (checkout / ".venv/bin").mkdir(parents=True)
        (checkout / ".venv/bin/activate").touch()
        python = checkout / ".venv/bin/python"

        program(python, 'test "$3" = --version')
        failed = run("make", ".venv/.installed-dev", f"PYTHON={sys.executable}", cwd=checkout)
        left = {path.name for path in (checkout / ".venv").iterdir()}
        program(python, 'echo "$@"')
        done = run("make", ".venv/.installed-dev", f"PYTHON={sys.executable}", cwd=checkout)

        assert failed.returncode != 0
        assert {"bin", ".unfinished"} == left
        assert done.stdout.splitlines()[-1].endswith("--ignore-installed --editable .[dev]")
        assert {"bin", ".installed-demo", ".installed-dev"} == {path.name for path in (checkout / ".venv").iterdir()}

    def test_demo_takes_a_folder(self, checkout: Path) -> None:
        """The folder reaches the demo as one argument, whatever its name."""
        set_up(checkout)
        program(checkout / "python", 'printf "%s\\n" "$@"')

        done = run("make", "demo", "RUN=./python", "INPUT=my 'own' folder", cwd=checkout)

        assert ["-m", "workers.demo", "--input", "my 'own' folder"] == done.stdout.splitlines()

    def test_clean_removes_what_was_made(self, checkout: Path) -> None:
        """After `make clean` only the sources are left."""
        set_up(checkout)
        for folder in ("orchestra/__pycache__", "workers", "tests", ".mypy_cache"):
            (checkout / folder).mkdir(parents=True)

        done = run("make", "clean", cwd=checkout)

        assert done.returncode == 0, done.stderr
        assert {path.name for path in checkout.iterdir()} == {
            "Makefile",
            "pyproject.toml",
            "orchestra",
            "tests",
            "workers",
        }
        assert not (checkout / "orchestra/__pycache__").exists()


class TestContinuousIntegration:
    @pytest.fixture
    def make(self, checkout: Path) -> Path:
        """Give a `make` that prints what it's asked for, and fails at the target that the environment names."""
        shutil.copytree(ROOT / ".ci", checkout / ".ci")
        text = 'echo "===== 1 passed in 0.1s ====="; for target; do [ "$target" != "$BROKEN" ] || exit 1; done'
        return program(checkout / "bin/make", text)

    @pytest.mark.parametrize("broken", ["lint", "typecheck", "test", "test-slow", "test-docker", "docs", "demo"])
    def test_fails_with_any_target(self, checkout: Path, make: Path, broken: str) -> None:
        """Whichever target fails, CI does."""
        done = run(".ci/run", cwd=checkout, PATH=f"{make.parent}:{os.environ['PATH']}", BROKEN=broken)

        assert done.returncode != 0

    def test_ends_with_the_tests_closing_lines(self, checkout: Path, make: Path) -> None:
        """When all is well it succeeds, and the last lines count the tests."""
        done = run(".ci/run", cwd=checkout, PATH=f"{make.parent}:{os.environ['PATH']}", BROKEN="")

        assert done.returncode == 0, done.stderr
        assert ["===== 1 passed in 0.1s ====="] * 4 == done.stdout.splitlines()[-4:]

    def test_hooks_are_installed(self, tmp_path: Path) -> None:
        """`pre-commit install` takes our configuration, whose hooks are targets of the Makefile."""
        configuration = tmp_path / ".pre-commit-config.yaml"
        shutil.copy(ROOT / ".pre-commit-config.yaml", configuration)
        run("git", "init", cwd=tmp_path)

        for command in ("validate-config", "install"):
            done = run(
                sys.executable, "-m", "pre_commit", command, cwd=tmp_path, PRE_COMMIT_HOME=str(tmp_path / "home")
            )

            assert done.returncode == 0, done.stdout + done.stderr
        assert (tmp_path / ".git/hooks/pre-commit").exists()
        assert set(re.findall(r"entry: make (\S+)", configuration.read_text(encoding="utf-8"))) <= set(targets())
