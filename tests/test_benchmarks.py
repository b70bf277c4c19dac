import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).parents[1]
COLUMNS = {
    "submit": {"time", "CPU", "server's CPU"},
    "parts": {"time", "CPU", "server's CPU"},
    "bulk": {"tasks/s"},
    "commands": {"stock", "round trips", "ours", "ours in trips"},
    "drain": {"tasks/s", "CPU µs", "server's CPU µs"},
    "lookups": {"time", "CPU"},
    "crowd": {"tasks/s", "CPU µs", "server's CPU µs"},
}


def _run(*options: str, module: str = "overhead") -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", f"benchmarks.{module}", *options]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False, timeout=170)


@pytest.mark.slow
@pytest.mark.timeout(180)  # ten workers are started
class TestOverhead:
    def test_every_section_is_measured(self, tmp_path: Path) -> None:
        """One run measures all sections for both sides, shows them in 80 columns, and writes every round down."""
        file = tmp_path / "found.json"

        ended = _run("--tasks", "12", "--rounds", "1", "--queues", "3", "--json", str(file))

        assert (0, "") == (ended.returncode, ended.stderr)
        assert all(len(line) <= 80 for line in ended.stdout.splitlines())
        found: Any = json.loads(file.read_text(encoding="utf-8"))
        assert (12, 1, 3) == (found["about"]["tasks"], found["about"]["rounds"], found["about"]["queues"])
        assert list(COLUMNS) == list(found["sections"])
        for key, section in found["sections"].items():
            assert section["title"] in ended.stdout
            for columns in section["rows"].values():
                assert COLUMNS[key] == set(columns)
                assert all({"median", "min", "max", "rounds"} == set(one) for one in columns.values() if one)
                assert all(1 == len(one["rounds"]) for one in columns.values() if one)
        commands = found["sections"]["commands"]["rows"]
        assert 1 == commands["submit, one by one"]["ours"]["median"]
        assert 1 == commands["submit, one by one"]["ours in trips"]["median"]
        assert 3 >= commands["idle agent, solo"]["ours in trips"]["median"]


@pytest.mark.slow
class TestDrain:
    def test_a_quick_look(self) -> None:
        """A part of it can be had alone: how fast tasks are submitted and worked off."""
        ended = _run("--tasks", "12", "--rounds", "1", module="drain")

        assert (0, "") == (ended.returncode, ended.stderr)
        for row in ("in batches, ours : stock", "ours, 2 processes, uncapped : stock"):
            assert re.search(rf"^ {row} +\d", ended.stdout, re.MULTILINE), ended.stdout


@pytest.mark.slow
class TestRetryBudget:
    def test_a_short_storm(self, tmp_path: Path) -> None:
        """It tells for both what the service got and how it ended, and loses nothing."""
        file = tmp_path / "found.json"

        ended = _run("--tasks", "20", "--seconds", "2", "--json", str(file), module="retry_budget")

        assert (0, "") == (ended.returncode, ended.stderr)
        found: Any = json.loads(file.read_text(encoding="utf-8"))["found"]
        assert {"with a budget", "without one"} == set(found)
        for one in found.values():
            assert (0, True) == (one["lost"], one["attempts"] > 0)
        assert "tasks lost" in ended.stdout


@pytest.mark.slow
class TestExplain:
    def test_a_quick_look(self) -> None:
        """It measures each thing that can be asked about, and explains it as this fleet gives cause for."""
        ended = _run("--agents", "20", "--tasks", "200", "--rounds", "2", "--json", module="explain")

        assert (0, "") == (ended.returncode, ended.stderr)
        rows = json.loads(ended.stdout)["rows"]
        assert 7 == len(rows)
        assert all({"time", "longest command"} == set(columns) for columns in rows.values())


@pytest.mark.slow
@pytest.mark.timeout(180)  # four fleets are started, one after the other
class TestScarce:
    def test_a_quick_look(self, tmp_path: Path) -> None:
        """Both orders are measured in both floods, and every round is written down."""
        file = tmp_path / "found.json"

        ended = _run("--seconds", "3", "--rounds", "1", "--json", str(file), module="scarce")

        assert (0, "") == (ended.returncode, ended.stderr)
        assert all(len(line) <= 80 for line in ended.stdout.splitlines())
        found: Any = json.loads(file.read_text(encoding="utf-8"))
        assert ["common", "rare"] == list(found["sections"])
        for section in found["sections"].values():
            assert 6 == len(section["rows"])
            assert all({"scarce first", "by turns"} == set(columns) for columns in section["rows"].values())
            assert section["rows"]["flood, in tasks/s"]["scarce first"]["median"] > 0

    @pytest.mark.parametrize("option", ["--seconds", "--rounds"])
    def test_wrong_options_are_refused(self, option: str) -> None:
        """An option that makes no sense is named, and nothing is started."""
        ended = _run(option, "0", module="scarce")

        assert (2, "") == (ended.returncode, ended.stdout)
        assert "'0' is no count" in ended.stderr


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "problem"),
        [
            (["--tasks", "0"], "'0' is no count"),
            (["--rounds", "x"], "'x' is no count"),
            (["--queues", "257"], "257 queues are too many"),
            (["--only", "speed"], "invalid choice: 'speed'"),
        ],
    )
    @pytest.mark.slow
    @pytest.mark.parametrize("module", ["overhead", "commands", "drain"])
    def test_wrong_options_are_refused(self, options: list[str], problem: str, module: str) -> None:
        """An option that makes no sense is named, and nothing is started."""
        ended = _run(*options, module=module)

        assert 2 == ended.returncode
        assert problem in ended.stderr
        assert "" == ended.stdout
