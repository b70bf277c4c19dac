import os
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flower.command import apply_env_options  # type: ignore[import-untyped]  # Flower has no types
from flower.options import options  # type: ignore[import-untyped]  # as above

PATH = Path(__file__).parents[1] / "workers" / "flowerconfig.py"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Set nothing from outside, and leave Flower's options, which are global, as they were."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(("FLOWER_", "ORCHESTRA_"))]:
        monkeypatch.delenv(name)
    before = {name: option._value for name, option in options._options.items()}
    yield
    for name, value in before.items():
        options._options[name]._value = value


def read() -> dict[str, Any]:
    """Read the file as Flower does: behind its own variables."""
    apply_env_options()
    return runpy.run_path(str(PATH))


class TestWhomItServes:
    def test_this_machine_alone_by_default(self) -> None:
        """Without settings nobody else can reach Flower, which by itself would listen everywhere."""
        assert "127.0.0.1" == read()["address"]
        assert [] == read()["basic_auth"]

    def test_password_is_one_login_whatever_it_holds(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A comma, where Flower's own option parts logins, is a part of the password."""
        monkeypatch.setenv("ORCHESTRA_FLOWER_USER", "ada")
        monkeypatch.setenv("ORCHESTRA_FLOWER_PASSWORD", "of,lovelace")

        assert ["ada:of,lovelace"] == read()["basic_auth"]

    def test_others_only_with_a_password(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Flower can end agents and run tasks, so an open address needs a password."""
        monkeypatch.setenv("FLOWER_ADDRESS", "0.0.0.0")

        with pytest.raises(SystemExit, match=r"ORCHESTRA_FLOWER_PASSWORD.*0\.0\.0\.0"):
            read()

        monkeypatch.setenv("ORCHESTRA_FLOWER_PASSWORD", "of-lovelace")

        assert "0.0.0.0" == read()["address"]

    def test_address_of_the_command_line_is_held_to_it_too(self) -> None:
        """Flower has read its command line when it reads the file."""
        options.address = "0.0.0.0"

        with pytest.raises(SystemExit, match="ORCHESTRA_FLOWER_PASSWORD"):
            read()

    @pytest.mark.parametrize(
        ("variable", "value"), [("FLOWER_BASIC_AUTH", "ada:of-lovelace"), ("FLOWER_AUTH", "ada@example\\.org")]
    )
    def test_logins_by_other_ways_count(self, variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whoever has set Flower's own login, or one by OAuth, needs no other, and keeps it."""
        monkeypatch.setenv("FLOWER_ADDRESS", "0.0.0.0")
        monkeypatch.setenv(variable, value)

        assert ([value] if variable == "FLOWER_BASIC_AUTH" else []) == read()["basic_auth"]


class TestHowItServes:
    @pytest.mark.parametrize(
        ("option", "usual", "given"),
        [
            ("port", 5555, 8080),
            ("inspect_timeout", 2000.0, 500.0),
            ("max_tasks", 20_000, 100),
            ("purge_offline_workers", 86_400, 60),
            ("tasks_columns", "name,state,routing_key,worker,received,runtime,uuid", "name,state"),
        ],
    )
    def test_own_variables_come_first(
        self, option: str, usual: object, given: object, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What Flower is told by its own variables isn't overridden by the file."""
        assert usual == read()[option]

        monkeypatch.setenv(f"FLOWER_{option.upper()}", str(given))

        assert given == read()[option]

    def test_leaves_the_rest_to_flower(self) -> None:
        """Whatever else Flower can be told, read-only mode for one, its own variables and options say."""
        named = {name for name in read() if name in options.as_dict()}

        assert {
            "address",
            "basic_auth",
            "inspect_timeout",
            "max_tasks",
            "port",
            "purge_offline_workers",
            "tasks_columns",
        } == named
