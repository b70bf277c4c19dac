from pathlib import Path

import pytest

from orchestra.cli_project import PROJECT, read_table
from orchestra.exceptions import ConfigurationError
from orchestra.fleet import AgentSpec


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make an empty project the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


class TestReadTable:
    def test_agents_are_text_or_tables(self, project: Path) -> None:
        """An agent is written in one line or, with more to say, as a table."""
        (project / "pyproject.toml").write_text(
            '[tool.orchestra]\napp = "shop"\nagents = ["io", {name = "text", capabilities = "nlp", concurrency = 3}]',
            encoding="utf-8",
        )

        table = read_table(PROJECT)

        assert table.app == "shop"
        assert table.agents == (AgentSpec(name="io"), AgentSpec(name="text", capabilities="nlp", concurrency=3))

    def test_no_file_is_no_fleet(self, project: Path) -> None:
        """A project without the file or the table has no agents of its own."""
        assert read_table(PROJECT).agents == ()

    @pytest.mark.parametrize(
        ("text", "place"),
        [
            (
                '[[tool.orchestra.agents]]\nname = "text"\nprocesses = "two"',
                r"tool\.orchestra\.agents\.0\.processes.*two",
            ),
            (
                '[[tool.orchestra.agents]]\nname = "text"\ncapabilites = "nlp"',
                r"tool\.orchestra\.agents\.0\.capabilites",
            ),
            ('[tool.orchestra]\nagent = "text"', r"tool\.orchestra\.agent\b"),
            ('[tool]\norchestra = "text"', r"tool\.orchestra"),
            ('tool = "text"', r"pyproject\.toml"),
            ("[tool.orchestra", r"pyproject\.toml can't be read"),
        ],
    )
    def test_error_names_the_place(self, project: Path, text: str, place: str) -> None:
        """What can't be understood is quoted with its place in the file."""
        (project / "pyproject.toml").write_text(text, encoding="utf-8")

        with pytest.raises(ConfigurationError, match=place):
            read_table(PROJECT)
