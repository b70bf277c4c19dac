import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers.page import text_of, write
from benchmarks.peers.systems import PROJECT, SYSTEMS

NAMES = ["ours, inline", "Celery, solo", "dramatiq", "huey"]


def spread(middle: float, least: float | None = None, most: float | None = None) -> dict[str, Any]:
    """Return one figure as it's written down."""
    least, most = middle if least is None else least, middle if most is None else most
    return {"median": middle, "min": least, "max": most, "rounds": [least, middle, most]}


def section(title: str, column: str, figures: list[dict[str, Any]]) -> dict[str, Any]:
    """Return one table as it's written down."""
    rows = {name: {column: figure} for name, figure in zip(NAMES, figures, strict=True)}
    return {"title": title, "note": "", "rows": rows}


@pytest.fixture
def found() -> dict[str, Any]:
    """Give what a run has written down: huey is the fastest, and dramatiq the fastest of those that keep tasks."""
    described = {system.name: system.described() for system in SYSTEMS}
    return {
        "about": {
            "at": "2026-05-04T03:02:01Z",
            "tasks": 1000,
            "rounds": 3,
            "python": "3.11.7",
            "server": "Valkey 9.1.2",
            "cores": 2,
            "packages": {"huey": {"huey": "3.5.4"}},
            "other_cores": 0.1,
            "stolen_cores": 0.0,
            "load": [0.5, 2.0],
        },
        "systems": {name: described[name] for name in NAMES},
        "sections": {
            "submit": section("Submitting one task", "µs", [spread(200), spread(400), spread(150), spread(100)]),
            "bulk": section("Many", "tasks/s", [spread(9_000), spread(1_000), spread(3_000), spread(4_500)]),
            "drain": section(
                "Draining", "tasks/s", [spread(4_000, 3_500, 4_400), spread(500), spread(1_000), spread(2_000)]
            ),
        },
        "troubles": [],
    }


class TestTextOf:
    def test_ours_beside_the_best(self, found: dict[str, Any]) -> None:
        """A ratio above 1 is ours', whether little or much is good, beside each of three rivals."""
        text = text_of(found)

        assert "| submit one task, µs | 200 (inline) | 100 (huey) | 0.50 | 150 (dramatiq) | 0.75 | 400 (" in text
        assert (
            "| drain by one process, tasks/s | 4,000 (inline) | 2,000 (huey) | 2.00 | 1,000 (dramatiq) | 4.00 |" in text
        )

    def test_a_figure_has_its_range(self, found: dict[str, Any]) -> None:
        """A cell has the median with the least and the most, and only one figure where they are the same."""
        text = text_of(found)

        assert "| ours, inline | 4,000 (3,500 to 4,400) |" in text
        assert "| huey | 2,000 |" in text

    def test_a_system_without_a_figure(self, found: dict[str, Any]) -> None:
        """One that takes no part in a step, or failed at it, is left out there and can't win there."""
        found["sections"]["drain"]["rows"]["huey"]["tasks/s"] = None
        del found["sections"]["bulk"]["rows"]["dramatiq"]

        text = text_of(found)

        assert "| huey |  |" in text
        assert "| drain by one process, tasks/s | 4,000 (inline) | 1,000 (dramatiq) | 4.00 |" in text

    def test_ours_failed(self, found: dict[str, Any]) -> None:
        """Where ours failed that is said beside those that didn't, rather than left out."""
        del found["sections"]["drain"]["rows"]["ours, inline"]

        assert "| drain by one process, tasks/s | failed | 2,000 (huey) |  | 1,000 (dramatiq) |  |" in text_of(found)

    def test_a_busy_machine_is_told_of(self, found: dict[str, Any]) -> None:
        """Whoever reads figures of a busy machine is warned."""
        calm = text_of(found)
        found["about"]["other_cores"] = 1.2

        busy = text_of(found)

        assert "That is much" not in calm
        assert "Other work kept 1.2 of the cores busy" in busy
        assert "That is much" in busy

    def test_troubles_are_told(self, found: dict[str, Any]) -> None:
        """What failed is named with its beginning and its end."""
        found["troubles"] = ["huey, two processes: it failed: Traceback\n  many\n  lines\nTimeoutError: late"]

        once, often = text_of(found), text_of({**found, "troubles": 3 * found["troubles"]})

        assert "- huey, two processes: it failed: Traceback … TimeoutError: late\n" in once
        assert "- huey, two processes: it failed: Traceback … TimeoutError: late That was so 3 times.\n" in often

    def test_each_promise_has_its_source(self, found: dict[str, Any]) -> None:
        """Every system's promise is told with where that is documented."""
        text = text_of(found)

        for name in NAMES:
            assert re.search(rf"^\| {re.escape(name)} \| .*\(\[source\]\(\S+\)\) \|$", text, re.MULTILINE)


class TestWrite:
    def test_plots_stand_beside_the_page(self, found: dict[str, Any], tmp_path: Path) -> None:
        """A plot is drawn where all of its figures are there; its words stay words."""
        pytest.importorskip("matplotlib", reason="the extra `bench` isn't installed")

        write(found, tmp_path / "page.md")

        (plot,) = (tmp_path / "images").iterdir()
        assert "benchmarks-submit.svg" == plot.name
        assert "ours, inline" in plot.read_text(encoding="utf-8")
        assert "](images/benchmarks-submit.svg)" in (tmp_path / "page.md").read_text(encoding="utf-8")

    def test_the_page_has_every_system(self) -> None:
        """The page in docs/ is of the systems that are described, so a new one has to be measured."""
        text = (PROJECT / "docs" / "benchmarks.md").read_text(encoding="utf-8")

        assert all(f"| {system.name} |" in text for system in SYSTEMS)
        for file in re.findall(r"\]\((images/[^)]+)\)", text):
            assert (PROJECT / "docs" / file).stat().st_size < 100_000
