import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from threading import Event

import click
import pytest

from orchestra.cli_app import agent_command, app_name, completing, engine_of
from orchestra.cli_base import OrchestraCommand, OrchestraGroup
from orchestra.exceptions import ConfigurationError
from orchestra.orchestra import Orchestra
from tests.command_line import Shop, shop_at


@pytest.fixture
def shop(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    """Give a project whose modules are forgotten with the test."""
    known = set(sys.modules)
    with shop_at(redis_url, tmp_path, monkeypatch) as shop:
        yield shop
    for name in set(sys.modules) - known:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


def context(*words: str, celery: object = None) -> click.Context:
    """Give the context of a command that was called with these words, maybe within Celery's."""
    root = click.Context(click.Command("celery"))
    root.params["app"] = celery
    group = OrchestraGroup("orchestra", commands=[OrchestraCommand("act")])
    return group.commands["act"].make_context("act", list(words), parent=root if celery else None)


class TestAppName:
    def test_order(self, shop: Shop) -> None:
        """The command line wins over Celery's, that over the project's file, and that over the default."""
        assert "mine" == app_name(context("--app", "mine", celery="celerys"))
        assert "celerys" == app_name(context(celery="celerys"))
        assert "shop" == app_name(context())

        shop.write("pyproject.toml", "")

        assert "workers" == app_name(context())

    def test_agent_command(self, shop: Shop) -> None:
        """What starts an agent names the app, and the agent by its first label."""
        assert "celery -A shop worker --capabilities lang=fr,gpu -n lang@%h" == agent_command(context(), "lang=fr,gpu")


class TestEngineOf:
    @pytest.mark.parametrize("name", ["shop", "shop:app", "shop.app", "package", "package:other"])
    def test_takes_names_as_celery_does(self, shop: Shop, name: str) -> None:
        """A module, an attribute of it, or a package with a module `celery` name an app."""
        (Path("package")).mkdir()
        shop.write("package/__init__.py", "from shop import app as other")
        shop.write("package/celery.py", "from shop import app")

        assert engine_of(context("-A", name)).app is shop.app

    def test_app_of_a_program(self, shop: Shop) -> None:
        """An app that Celery's command line was given as an object is taken as it is."""
        assert engine_of(context(celery=shop.app)).app is shop.app

    def test_leaves_nothing_open(self, shop: Shop) -> None:
        """The connections end with the command."""
        with context() as ctx:
            store = engine_of(ctx).app.store
            store.command("PING")
            (client,) = [
                line for line in store.command("CLIENT", "LIST").decode().splitlines() if " cmd=client" in line
            ]

        assert client.split()[0] not in shop.app.store.command("CLIENT", "LIST").decode()

    def test_what_the_app_prints_is_not_ours(self, shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
        """A module that prints can't spoil a JSON document."""
        shop.write("loud.py", "print('hello')\nfrom shop import app")

        engine_of(context("-A", "loud"))

        assert ("", "hello\n") == capsys.readouterr()

    @pytest.mark.parametrize(
        ("name", "source", "message"),
        [
            ("absent", None, "The app absent wasn't found: there is no module absent. Run this in the folder"),
            ("absent:app", None, "The app absent:app wasn't found: there is no module absent. "),
            (
                "bad:other",
                "app = None",
                "The module bad holds no app: there is no other in it. Name it, as in --app bad",
            ),
            ("bad", "other = 1", "The module bad holds no app: module 'bad' has no attribute 'celery'. Name it"),
            ("bad", "app = 5", "bad is no app but of type int; name the OrchestraCelery, as in --app module:app."),
            (
                "bad",
                "from celery import Celery\napp = Celery('bad', set_as_current=False)",
                "bad is a plain Celery app; make it with orchestra.OrchestraCelery",
            ),
            ("bad", "\nimport nowhere", "ModuleNotFoundError: No module named 'nowhere' (bad.py, line 2)"),
            ("bad", "import json\n\njson.loads('{')", "double quotes: line 1 column 2 (char 1) (bad.py, line 3)"),
            ("bad", "app = (", "The app bad can't be imported: SyntaxError: '(' was never closed (bad.py, line 1)"),
            ("bad", "import os\nos.nothing", "AttributeError: module 'os' has no attribute 'nothing' (bad.py, line 2)"),
        ],
    )
    def test_error_says_what_and_where(self, shop: Shop, name: str, source: str | None, message: str) -> None:
        """What is wrong with the name or with the code is said in one line, with the code's place."""
        if source is not None:
            shop.write("bad.py", source)

        with pytest.raises(ConfigurationError) as caught:
            engine_of(context("--app", name))

        assert message in str(caught.value)

    def test_package_whose_app_cannot_be_imported(self, shop: Shop) -> None:
        """The cause is told where the app is in a package's module `celery`, too."""
        Path("package").mkdir()
        shop.write("package/__init__.py", "")
        shop.write("package/celery.py", "\nimport nowhere")

        with pytest.raises(ConfigurationError, match=r"No module named 'nowhere' \(package/celery.py, line 2\)"):
            engine_of(context("--app", "package"))

    def test_place_outside_of_the_project(
        self, shop: Shop, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A place that isn't below the working directory is told with its whole path."""
        elsewhere = tmp_path_factory.mktemp("elsewhere")
        (elsewhere / "far.py").write_text("1 / 0", encoding="utf-8")
        monkeypatch.syspath_prepend(str(elsewhere))

        with pytest.raises(ConfigurationError, match=rf"ZeroDivisionError: .* \({elsewhere}/far.py, line 1\)"):
            engine_of(context("--app", "far"))

    def test_nothing_named_and_nothing_found(self, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
        """Who named no app is told how to."""
        shop.write("pyproject.toml", "")
        monkeypatch.setitem(sys.modules, "workers", None)  # as where there is none

        with pytest.raises(ConfigurationError, match=r"^Which app\? There is no module workers here: name yours"):
            engine_of(context())


class TestCompleting:
    @staticmethod
    def complete(names: Callable[[Orchestra], Iterable[str]], *words: str, incomplete: str = "") -> list[str]:
        """Press the tab key."""
        return completing(names)(context(*words), click.Argument(["name"]), incomplete)

    def test_offers_what_fits(self, shop: Shop) -> None:
        """The names come sorted, and begin with what was typed."""
        assert ["nap", "nlp"] == self.complete(lambda _: ["nlp", "gpu", "nap"], incomplete="n")

    @pytest.mark.parametrize("words", [["-A", "absent"], ["-A", "loud"]])
    def test_an_error_offers_nothing(self, shop: Shop, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        """Nobody wants to read about it amid what they type."""
        shop.write("loud.py", "import sys\nprint('hello', file=sys.stderr)\n1 / 0")

        assert [] == self.complete(lambda _: ["nlp"], *words)
        assert ("", "") == capsys.readouterr()

    @pytest.mark.slow
    def test_what_takes_long_offers_nothing(self, shop: Shop) -> None:
        """The tab key answers within seconds, whatever Redis does."""
        assert [] == self.complete(lambda _: [str(Event().wait(60))])
