"""The sharpest faults in a short form; `make chaos` strikes all of them, for longer and with three seeds."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.clocks import Clocks
from tests.chaos.faults import FAULTS
from tests.chaos.run import run
from tests.chaos.scene import Plan

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(150)]

SEED = int(os.environ.get("CHAOS_SEED", "1"))


@pytest.mark.parametrize(
    "fault",
    [
        *("kill_main", "kill_group", "freeze", "server_kill", "connections", "stop_warm", "delayed"),
        *("failover_confirmed", "memory_full", "partition_in", "canvases", "poison", "breaker"),
    ],
)
def test_nothing_is_lost(fault: str, tmp_path: Path) -> None:
    """
    Whatever is struck, each confirmed task runs and has its result, and only one that was running may run twice.

    Nothing stays behind in the broker, and every agent still takes tasks.
    """
    if FAULTS[fault].lacking:
        pytest.skip(FAULTS[fault].lacking)
    outcome = run(Plan(system="ours", fault=fault, seed=SEED, folder=tmp_path, tasks=200, rate=50))

    assert [] == outcome.broken, outcome
    assert [] == outcome.lost + outcome.without_result
    assert {} == outcome.stuck
    assert outcome.struck or not FAULTS[fault].acts
    assert outcome.duplicates <= outcome.running
    assert (outcome.agents, 0) == (outcome.alive, outcome.own_ends)


@pytest.mark.skipif(shutil.which("cc") is None, reason="there's no C compiler")
def test_clocks_can_be_set(tmp_path: Path) -> None:
    """A process of a site of clocks sees the time that it's given, at once, and waits as long as ever."""
    with Clocks.open(tmp_path, ("one",)) as site:
        assert isinstance(site, Clocks)
        code = "import sys, time; [print(time.time(), time.monotonic(), flush=True) for _ in sys.stdin]"
        asked = subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, **site.reach("one").environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        with asked:
            before = _times(asked)
            site.set_clock("one", -3600)
            after = _times(asked)

    assert -3601 < after[0] - before[0] < -3500
    assert 0 <= after[1] - before[1] < 100


def _times(asked: subprocess.Popen[str]) -> list[float]:
    assert asked.stdin is not None
    assert asked.stdout is not None
    asked.stdin.write("\n")
    asked.stdin.flush()
    return [float(word) for word in asked.stdout.readline().split()]
