import runpy
from pathlib import Path
from typing import Any

import pytest

PATH = Path(__file__).parents[1] / "workers" / "flowerconfig.py"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Set nothing from outside."""
    monkeypatch.chdir(tmp_path)
    for name in ("FLOWER_ADDRESS", "FLOWER_PORT", "ORCHESTRA_FLOWER_USER", "ORCHESTRA_FLOWER_PASSWORD"):
        monkeypatch.delenv(name, raising=False)


def read() -> dict[str, Any]:
    """Read the file as Flower does."""
    return runpy.run_path(str(PATH))


class TestFlowerConfig:
    def test_serves_this_machine_alone_by_default(self) -> None:
        """Without settings nobody else can reach Flower."""
        assert read()["address"] == "127.0.0.1"
        assert read()["basic_auth"] == []

    def test_password_is_one_login_whatever_it_holds(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A comma, where Flower's own option parts logins, is a part of the password."""
        monkeypatch.setenv("ORCHESTRA_FLOWER_USER", "ada")
        monkeypatch.setenv("ORCHESTRA_FLOWER_PASSWORD", "of,lovelace")

        assert read()["basic_auth"] == ["ada:of,lovelace"]

    def test_refuses_to_serve_others_without_a_password(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Flower can end agents and run tasks, so an open address needs a password."""
        monkeypatch.setenv("FLOWER_ADDRESS", "0.0.0.0")

        with pytest.raises(SystemExit, match="ORCHESTRA_FLOWER_PASSWORD"):
            read()
