import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).parents[1]
COLUMNS = {
    "submit": {"time", "CPU", "server's CPU"},
    "parts": {"time", "CPU", "server's CPU"},
    "commands": {"submit", "run", "whole life", "round trips of the run"},
    "drain": {"tasks/s", "CPU µs", "server's CPU µs"},
    "lookups": {"time", "CPU"},
    "crowd": {"tasks/s", "CPU µs", "server's CPU µs"},
}


def _run(*options: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "benchmarks.overhead", *options]
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
        assert 1 == found["sections"]["commands"]["rows"]["ours, requires"]["submit"]["median"]


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
    def test_wrong_options_are_refused(self, options: list[str], problem: str) -> None:
        """An option that makes no sense is named, and nothing is started."""
        ended = _run(*options)

        assert 2 == ended.returncode
        assert problem in ended.stderr
        assert "" == ended.stdout
