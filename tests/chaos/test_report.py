"""The table of the figures, and the page that shows it."""

import re
from typing import Any

from tests.chaos.faults import FAULTS
from tests.chaos.measure import Outcome
from tests.chaos.report import markdown, replaced
from tests.docs_pages import ROOT

FIGURES: dict[str, Any] = dict.fromkeys(Outcome.__dataclass_fields__, 0)
LISTS: dict[str, Any] = {
    "lost": [],
    "unexcused": [],
    "stuck": {},
    "without_result": [],
    "struck": [(1.0, 1.0, ["one"])],
}
RUN: dict[str, Any] = {**FIGURES, **LISTS, "system": "ours", "fault": "freeze", "confirmed": 2000, "agents": 3}


def row(*runs: dict[str, Any]) -> list[str]:
    """Return the cells of a table's only row."""
    return [cell.strip() for cell in markdown(runs).splitlines()[2].strip("|").split("|")]


class TestMarkdown:
    def test_seeds_stand_side_by_side(self) -> None:
        """What all seeds agree on stands once; the rest in the order of the seeds, and what never came as a word."""
        second = {**RUN, "seed": 2, "lost": [7], "alive": 3, "recovery": None}
        first = {**RUN, "seed": 1, "lost": [], "alive": 3, "recovery": 1.25}

        cells = row(second, first)

        assert ["`freeze`", "ours", "2,000"] == cells[:3]
        assert "0 / 1" == cells[4]
        assert ["3 of 3", "0", "1.2 / never"] == cells[-3:]

    def test_a_fault_without_anybody_to_strike_has_no_row(self) -> None:
        """A system that lacks the process that a fault strikes says nothing there; a run without a fault does."""
        assert 2 == len(markdown([{**RUN, "struck": []}]).splitlines())
        assert 3 == len(markdown([{**RUN, "fault": "none", "struck": []}]).splitlines())


class TestPage:
    def test_only_its_figures_are_replaced(self) -> None:
        """A new table takes the place of the one below its heading; other tables and the text stay."""
        page = "| a |\n\n## The figures\n\nThey are old.\n\n| old |\n| 1 |\n\n## Limits\n\n| b |\n"

        assert page.replace("| old |\n| 1 |", "| new |") == replaced(page, "| new |")

    def test_names_every_fault(self) -> None:
        """The page says what each fault is, and has its figures."""
        text = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")

        for fault in FAULTS.values():
            assert re.search(rf"^\| `{fault.name}` \| {re.escape(fault.what[:20])}", text, re.MULTILINE), fault.name
            assert re.search(rf"^\| `{fault.name}` \| (ours|stock) \|", text, re.MULTILINE), fault.name
