"""The plots of the page, as small SVG files whose words stay words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

__all__ = ["PLOTS", "Panel", "Plot", "draw"]

_OURS, _STOCK, _OTHERS = "#c2410c", "#475569", "#94a3b8"
_ROW_INCHES: Final = 0.26
_WIDTH_INCHES: Final = 9.0


@dataclass(frozen=True, slots=True)
class Panel:
    """One row of bars for each system: of which step, in which column. A logarithmic one is for wide ranges."""

    title: str
    step: str
    column: str
    logarithmic: bool = False


@dataclass(frozen=True, slots=True)
class Plot:
    """Two panels side by side, in a file that is shown by the section of the step that it comes after."""

    file: str
    after: str
    words: str
    panels: Sequence[Panel]

    def fits(self, found: Mapping[str, Any]) -> bool:
        """Whether all of its figures are there."""
        return all(panel.step in found["sections"] for panel in self.panels)


PLOTS: Final = (
    Plot(
        "benchmarks-submit.svg",
        "submit",
        "What submitting one task takes, and how many tasks a second are submitted in bulk, by system.",
        (Panel("one task, µs (less is better)", "submit", "µs"), Panel("many, tasks/s", "bulk", "tasks/s")),
    ),
    Plot(
        "benchmarks-latency.svg",
        "latency",
        "The latency to a result on an idle worker, and to a start on a loaded one, by system.",
        (
            Panel("idle, to the result, p50 ms", "latency", "p50, ms", logarithmic=True),
            Panel("100 tasks/s, to the start, p99 ms", "load", "p99, ms", logarithmic=True),
        ),
    ),
    Plot(
        "benchmarks-drain.svg",
        "drain",
        "How many tasks a second one process and two processes work off, by system.",
        (Panel("one process, tasks/s", "drain", "tasks/s"), Panel("two processes, tasks/s", "drain2", "tasks/s")),
    ),
)


def draw(found: Mapping[str, Any], directory: Path) -> None:
    """
    Draw every plot whose figures there are.

    Raises:
        ImportError: the extra `bench` isn't installed.

    """
    import matplotlib as mpl  # noqa: PLC0415  # an extra, which measuring does without

    mpl.use("svg")
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "benchmarks", "font.size": 9})
    directory.mkdir(parents=True, exist_ok=True)
    for plot in PLOTS:
        if plot.fits(found):
            _draw(plot, found, directory / plot.file)


def _draw(plot: Plot, found: Mapping[str, Any], path: Path) -> None:
    from matplotlib import pyplot as plt  # noqa: PLC0415  # as above

    most = max(len(found["sections"][panel.step]["rows"]) for panel in plot.panels)
    figure, axes = plt.subplots(1, len(plot.panels), figsize=(_WIDTH_INCHES, _ROW_INCHES * most + 0.8))
    for panel, axis in zip(plot.panels, axes, strict=True):
        _bars(axis, panel, found)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None, "Creator": None}, facecolor="white")
    plt.close(figure)
    path.write_text("\n".join(line.rstrip() for line in path.read_text("utf-8").splitlines()) + "\n", encoding="utf-8")


def _bars(axis: Any, panel: Panel, found: Mapping[str, Any]) -> None:  # matplotlib's
    rows = found["sections"][panel.step]["rows"]
    names = [name for name in found["systems"] if name in rows and rows[name][panel.column]][::-1]
    spreads = [rows[name][panel.column] for name in names]
    middles = [one["median"] for one in spreads]
    reach = [[one["median"] - one["min"] for one in spreads], [one["max"] - one["median"] for one in spreads]]
    axis.barh(names, middles, xerr=reach, color=list(map(_colour, names)), error_kw={"elinewidth": 0.8, "capsize": 2})
    axis.set_title(panel.title, loc="left", fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    if panel.logarithmic:
        axis.set_xscale("log")


def _colour(name: str) -> str:
    return _OURS if name.startswith("ours") else _STOCK if name.startswith("Celery") else _OTHERS
