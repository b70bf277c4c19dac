"""The guide on set-up, structure, commands, and contributing."""

import ast
import importlib
import inspect
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # its types would be one more package, for one line here

import orchestra
from orchestra.cli import orchestra as command_line
from tests.guide.quoting import ROOT, quotes


def pytest_of(*arguments: str, cwd: Path = ROOT, status: int = 0) -> str:
    """Run pytest; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=cwd, capture_output=True, text=True, check=False, timeout=110
    )
    assert status == done.returncode, done.stdout + done.stderr
    return done.stdout


class TestSetup:
    """Local Setup."""

    @quotes('pip install -e ".[dev]"')
    def test_install(self, quoted: str) -> None:
        """The Makefile's set-up is this very command, in a virtual environment."""
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")

        assert quoted.replace("pip install -e", "$(INSTALL) --editable") in makefile
        assert "INSTALL = $(RUN) -m pip install" in makefile

    @quotes("pre-commit install")
    def test_hooks(self, quoted: str) -> None:
        """The configuration that it takes is valid; tests/test_packaging.py installs it."""
        assert quoted in (ROOT / "docs/development.md").read_text(encoding="utf-8")
        assert (ROOT / ".pre-commit-config.yaml").is_file()

    @quotes("pytest tests/")
    def test_everything_is_collected(self, quoted: str) -> None:
        """It finds the same tests as a bare `pytest`."""
        assert ["tests"] == pyproject()["tool"]["pytest"]["ini_options"]["testpaths"]


def pyproject() -> Any:
    """Return what pyproject.toml says."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


class TestStructure:
    """Project Structure, and the core components."""

    @quotes(
        "├── __init__.py              # Package initialization",
        "├── agent.py                 # Agent management",
        "├── cli.py                   # Command-line interface",
        "├── config.py                # Configuration management",
        "├── exceptions.py            # Custom exceptions with retry logic",
        "├── logging_utils.py         # Structured logging and observability",
        "├── orchestra.py             # Main orchestration logic",
        "├── security_utils.py        # Authentication and authorization",
        "├── task_router.py           # Task routing and scheduling",
        "├── testing_utils.py         # Test utilities and fixtures",
        "├── types.py                 # Type definitions and models",
        "├── utils.py                 # General utilities",
        "└── validation.py            # Input validation and sanitization",
    )
    def test_modules(self, quoted: str) -> None:
        """Every module of the guide is there, and its first sentence says what it is for."""
        for line in quoted.splitlines():
            path = ROOT / "orchestra" / line.split()[1]
            assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path

    @quotes(
        "├── api.md                   # API documentation",
        "├── architecture.md          # Architecture overview",
        "├── development.md           # Development guide (this file)",
        "├── security.md              # Security documentation",
        "└── troubleshooting.md       # Common issues and solutions",
    )
    def test_pages(self, quoted: str) -> None:
        """Every page of the guide is there."""
        for line in quoted.splitlines():
            assert (ROOT / "docs" / line.split()[1]).is_file(), line

    @quotes(
        "├── conftest.py              # Pytest configuration and fixtures",
        "├── test_*.py                # Unit tests",
        "├── integration/             # Integration tests",
    )
    def test_tests(self, quoted: str) -> None:
        """Tests are where the guide looks for them."""
        for line in quoted.splitlines():
            assert list((ROOT / "tests").glob(line.split()[1].rstrip("/"))), line

    @quotes(
        "1. **Orchestra**: Main orchestration engine that manages task distribution and agent coordination",
        "2. **Task Router**: Intelligent routing system that assigns tasks to appropriate agents",
        "3. **Agent Manager**: Handles agent registration, health monitoring, and lifecycle",
        "4. **State Manager**: Manages persistent state and task tracking",
        "5. **Security Layer**: Authentication, authorization, and input validation",
    )
    def test_components(self, quoted: str) -> None:
        """Each component is a class of its name."""
        rooms = {
            "Orchestra": "orchestra.orchestra:Orchestra",
            "Task Router": "orchestra.task_router:TaskRouter",
            "Agent Manager": "orchestra.agent:AgentManager",
            "State Manager": "orchestra.state:StateManager",
            "Security Layer": "orchestra.security_utils:SecurityMiddleware",
        }

        assert list(rooms) == re.findall(r"\*\*(.+?)\*\*", quoted)
        for place in rooms.values():
            module, _, name = place.partition(":")
            assert inspect.isclass(getattr(importlib.import_module(module), name))

    @quotes("Update version in `__init__.py`")
    def test_one_version(self, quoted: str) -> None:
        """The version stands in `__init__.py`, and the packaging reads it there."""
        path = pyproject()["tool"]["hatch"]["version"]["path"]

        assert "orchestra/__init__.py" == path
        assert f'__version__ = "{orchestra.__version__}"' in (ROOT / path).read_text(encoding="utf-8")


class TestTargets:
    """The commands of the guide; tests/test_packaging.py and CI run the targets themselves."""

    @quotes("make lint", "make format")
    def test_make(self, quoted: str) -> None:
        """The targets exist, and so does one for the types."""
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")

        for command in [*quoted.splitlines(), "make typecheck"]:
            assert re.search(rf"^{command.removeprefix('make ')}:", makefile, re.MULTILINE)

    @quotes(
        "- **Black**: Code formatting",
        "- **isort**: Import sorting",
        "- **flake8**: Linting",
        "- **bandit**: Security linting",
    )
    def test_four_tools_in_one(self, quoted: str) -> None:
        """One tool, ruff, holds the rules of all four: a finding of each is refused."""
        findings = {
            "Black": ("x = {  'a':1 }\n", ["format", "--check", "-"]),
            "isort": ("import os, abc\n", ["check", "--select", "I,E401", "-"]),
            "flake8": ("import os\n", ["check", "--select", "F,E,W", "-"]),
            "bandit": ("eval(input())\n", ["check", "--select", "S", "-"]),
        }

        assert list(findings) == re.findall(r"\*\*(.+?)\*\*", quoted)
        for source, arguments in findings.values():
            command = [sys.executable, "-m", "ruff", arguments[0], "--isolated", *arguments[1:]]
            assert subprocess.run(command, input=source, text=True, capture_output=True, check=False).returncode == 1
        assert ["ALL"] == pyproject()["tool"]["ruff"]["lint"]["select"]

    @quotes("- **mypy**: Type checking")
    def test_strict(self, quoted: str) -> None:
        """It runs in its strict mode."""
        assert pyproject()["tool"]["mypy"]["strict"]

    @pytest.mark.slow
    @quotes("pytest tests/test_validation.py")
    def test_one_file(self, quoted: str) -> None:
        """A single file runs by its name."""
        assert " passed" in pytest_of(*quoted.split())

    @pytest.mark.slow
    @quotes("pytest --cov=orchestra --cov-report=html")
    def test_coverage(self, quoted: str, tmp_path: Path) -> None:
        """Coverage is told as pages; here of one file's tests, in a folder of their own."""
        report = f"--cov-report=html:{tmp_path / 'htmlcov'}"
        arguments = [report if word == "--cov-report=html" else word for word in quoted.split()]

        pytest_of(
            *arguments,
            str(ROOT / "tests/test_types.py"),
            "--rootdir",
            str(ROOT),
            f"--cov-config={ROOT}/pyproject.toml",
            "-c",
            str(ROOT / "pyproject.toml"),
            cwd=tmp_path,
        )

        assert "task_router.py" in (tmp_path / "htmlcov/index.html").read_text(encoding="utf-8")

    @pytest.mark.slow
    @quotes("pytest tests/integration/")
    def test_integration_alone(self, quoted: str) -> None:
        """They are all in one folder, and carry a marker that `make test` leaves out."""
        others = pytest_of(*quoted.split(), "--collect-only", "-q", "-m", "not (integration or slow)", status=5)

        assert re.search(r"no tests collected \([0-9]+ deselected\)", others)

    @pytest.mark.slow
    @quotes('pytest -m "not slow"')
    def test_without_the_slow(self, quoted: str) -> None:
        """The marker leaves tests out."""
        listed = pytest_of("pytest", "-m", quoted.partition(" -m ")[2].strip('"'), "--collect-only", "-q")

        assert re.search(r"[0-9]+/[0-9]+ tests collected \([0-9]+ deselected\)", listed)
        assert "test_without_the_slow" not in listed

    @quotes(
        "Use `pytest --pdb` to drop into debugger on test failures", "Enable verbose logging with environment variables"
    )
    def test_debugging_is_told(self, quoted: str) -> None:
        """The pages tell how."""
        pages = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("docs/*.md"))

        assert "--pdb" in pages
        assert "ORCHESTRA_LOG_LEVEL" in pages

    @quotes("Use the built-in health checks for system status")
    def test_health(self, quoted: str) -> None:
        """There is a command for it."""
        assert "health" in command_line.commands


class TestContributing:
    """Contributing."""

    @quotes(
        "feat(validation): add email validation utility",
        "fix(router): handle empty agent pool gracefully",
        "test(security): add comprehensive auth tests",
        "docs(api): update task creation examples",
    )
    def test_commit_messages(self, quoted: str, tmp_path: Path) -> None:
        """The hook that checks commit messages takes the guide's examples and types, and refuses others."""
        for subject in quoted.splitlines():
            assert commit_message(tmp_path, f"{subject}\n\nA body with the reason.\n")
        for subject in ("Added a thing", "feature: a thing", "feat:no space", "wip", "docs(api):"):
            assert not commit_message(tmp_path, f"{subject}\n\nfeat(body): isn't the subject\n")

    @quotes("- `feat`", "- `fix`", "- `docs`", "- `test`", "- `refactor`", "- `perf`", "- `chore`")
    def test_types(self, quoted: str, tmp_path: Path) -> None:
        """Every type of the guide is taken, with a scope and without, and as a breaking change."""
        for kind in re.findall(r"`(\w+)`", quoted):
            for subject in (f"{kind}: a thing", f"{kind}(router): a thing", f"{kind}(router)!: a thing"):
                assert commit_message(tmp_path, subject)

    @pytest.mark.parametrize(
        ("tag", "section", "complaint"),
        [
            (f"v{orchestra.__version__}", f"## {orchestra.__version__} - 2026-12-01", None),
            ("v99.0.0", "## 99.0.0 - 2026-12-01", "but orchestra/__init__.py says"),
            (f"v{orchestra.__version__}", "## Unreleased", "has no section"),
        ],
        ids=["right", "another version", "no changelog"],
    )
    @quotes(
        "1. Update version in `__init__.py`",
        "2. Update `CHANGELOG.md`",
        "3. Create and push git tag",
        "4. CI/CD will handle the rest",
    )
    def test_release(self, quoted: str, tmp_path: Path, tag: str, section: str, complaint: str | None) -> None:
        """A pushed tag is built and published by a workflow, once version, changelog and tag agree."""
        for name in (".github/check-tag", "orchestra/__init__.py"):
            (tmp_path / name).parent.mkdir()
            shutil.copy(ROOT / name, tmp_path / name)
        (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n{section}\n", encoding="utf-8")

        done = subprocess.run([".github/check-tag", tag], cwd=tmp_path, capture_output=True, text=True, check=False)

        assert (complaint is None) == (done.returncode == 0)
        assert complaint is None or complaint in done.stderr
        workflow = (ROOT / ".github/workflows/release.yml").read_text(encoding="utf-8")
        assert 'tags: ["v*"]' in workflow
        assert all(step in workflow for step in ("check-tag", ".ci/run", "-m build", "pypi-publish"))


def commit_message(folder: Path, text: str) -> bool:
    """Tell whether the hook takes a commit message."""
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    (hook,) = [hook for hook in hooks if hook["id"] == "commit-message"]
    (folder / "message").write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "pre_commit.languages.pygrep", *hook["args"], hook["entry"], "message"]
    return subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode == 0
