import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers.steps import STEPS
from benchmarks.peers.systems import PROJECT, SYSTEMS
from benchmarks.peers.tally import Tally


def _run(*options: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "benchmarks.peers", *options]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False, timeout=280)


@pytest.mark.slow
class TestPeers:
    @pytest.mark.timeout(300)  # a dozen workers are started
    def test_every_step_is_measured(self, tmp_path: Path) -> None:
        """One run measures every step for ours and for Celery, and writes every round down."""
        file = tmp_path / "found" / "peers.json"
        names = ["ours, inline", "Celery, solo", "Celery, prefork"]
        solo = names[:2]  # prefork shares what submits with solo, and takes no part in the steps about many queues
        taking_part = {"submit": solo, "bulk": solo, "queue": solo, "queues": solo, "pause": names[2:]}

        ended = _run("--systems", *names, "--tasks", "20", "--rounds", "1", "--json", str(file))

        assert 0 == ended.returncode, ended.stderr
        found: Any = json.loads(file.read_text(encoding="utf-8"))
        assert [] == found["troubles"]
        assert (20, 1) == (found["about"]["tasks"], found["about"]["rounds"])
        assert names == list(found["systems"])
        assert list(STEPS) == list(found["sections"])
        for key, section in found["sections"].items():
            assert STEPS[key].title in ended.stdout
            assert taking_part.get(key, names) == list(section["rows"])
            for columns in section["rows"].values():
                assert list(STEPS[key].columns) == list(columns)
                assert all(1 == len(one["rounds"]) for one in columns.values())
        drains = [row for key in ("drain", "drain2", "queues") for row in found["sections"][key]["rows"].values()]
        assert all(row["tasks/s"]["median"] > 0 for row in drains)
        assert all(0 == row["run twice"]["median"] for row in drains)
        assert all(row["tasks/s"]["median"] <= 210 for row in found["sections"]["compute"]["rows"].values())

    def test_wrong_options_are_refused(self) -> None:
        """An option that makes no sense is named, and nothing is started."""
        ended = _run("--tasks", "0")

        assert (2, "") == (ended.returncode, ended.stdout)
        assert "'0' is no count" in ended.stderr


class TestSystems:
    def test_each_is_told_of(self) -> None:
        """Each has a name of its own, an environment that can be made, and a task."""
        peers = PROJECT / "benchmarks" / "peers"

        assert len(SYSTEMS) == len({system.name for system in SYSTEMS})
        for system in SYSTEMS:
            assert not system.home or (peers / "requirements" / f"{system.home}.txt").is_file()
            assert (peers / "apps" / f"{system.app}.py").is_file()

    def test_a_worker_for_each_process(self) -> None:
        """Where a process is a worker of its own, two are two commands; else one command makes both."""
        commands = {system.name: system.commands(2) for system in SYSTEMS}

        assert ["w0@%h", "w1@%h"] == [command[6] for command in commands["Celery, solo"]]
        assert 1 == len(commands["Celery, prefork"])
        assert ["--concurrency", "2"] == commands["Celery, prefork"][0][-2:]


class TestTally:
    def test_counts_each_process(self, tmp_path: Path) -> None:
        """Each process counts by itself, and whoever opens the file sees them all."""
        seen = Tally(tmp_path / "tally")
        code = "from benchmarks.peers.tally import count; count(); count(7_000)"
        environment = {**os.environ, "PEERS_TALLY": str(tmp_path / "tally"), "PYTHONPATH": str(PROJECT)}
        mine = Tally(tmp_path / "tally")

        mine.count(5_000)
        subprocess.run([sys.executable, "-c", code], env=environment, check=True)

        assert [1, 2] == seen.counts()
        assert {5_000, 7_000} <= set(seen.delays_ns())
        assert seen.last_ns() > 0

    def test_a_dead_process_leaves_its_slot(self, tmp_path: Path) -> None:
        """What runs each task in a process of its own needs no more slots than processes at a time."""
        seen = Tally(tmp_path / "tally")
        environment = {**os.environ, "PEERS_TALLY": str(tmp_path / "tally"), "PYTHONPATH": str(PROJECT)}

        for _ in range(3):
            code = "from benchmarks.peers.tally import count; count()"
            subprocess.run([sys.executable, "-c", code], env=environment, check=True)

        assert [3] == seen.counts()

    def test_begins_anew(self, tmp_path: Path) -> None:
        """After `clear` nothing has been run."""
        tally = Tally(tmp_path / "tally")
        tally.count()

        tally.clear()

        assert ([], 0) == (tally.counts(), tally.last_ns())
