import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestra.embedded import EmbeddedServer
from orchestra.exceptions import ConfigurationError, PermanentError, RetryableError, ValidationError
from orchestra.fleet import AgentSpec, Fleet
from orchestra.supervised import Death
from tests.processes import alive, processes_of_group, processes_within, until

STOCK_APP = """
import os
import time

from celery import Celery

url = os.environ["ORCHESTRA_BROKER_URL"]
app = Celery("stock", broker=url, backend=url)
app.conf.broker_connection_retry_on_startup = True


@app.task
def nap(seconds):
    time.sleep(seconds)
"""

Maker = Callable[..., Fleet]


class TestAgentSpec:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("io", AgentSpec(name="io")),
            ("io:general", AgentSpec(name="io", capabilities="general")),
            ("text:nlp,mem_gb=64:2", AgentSpec(name="text", capabilities="nlp,mem_gb=64", processes=2)),
            ("text::2", AgentSpec(name="text", processes=2)),
        ],
    )
    def test_is_read_from_text(self, text: str, expected: AgentSpec) -> None:
        """Name, capabilities and number of processes stand between colons; the last two may be left out."""
        assert AgentSpec.parse(text) == expected

    @pytest.mark.parametrize(
        "text", ["", ":nlp", "text:nlp:", "a b", "text:nlp:two", "text:nlp:2:3", "text:nlp:0", "-x"]
    )
    def test_refuses_what_says_no_agent(self, text: str) -> None:
        """Text that names no agent, or no sensible number of them, is an error that quotes it."""
        with pytest.raises(ConfigurationError):
            AgentSpec.parse(text)

    def test_refuses_capabilities_before_anything_starts(self) -> None:
        """Capabilities that no agent could have are refused where they're written."""
        with pytest.raises(ValidationError, match="mem gb"):
            AgentSpec.parse("text:mem gb")

    def test_numbers_several_processes(self) -> None:
        """One process has the agent's name, several have numbers after it."""
        assert AgentSpec(name="io").names == ("io",)
        assert AgentSpec(name="text", processes=2).names == ("text-1", "text-2")

    def test_command_leaves_out_what_was_left_open(self) -> None:
        """A stock app, which knows no `--capabilities`, can be started too."""
        command = AgentSpec(name="io").command("stock", "io", "INFO")

        assert command[1:] == ["-m", "celery", "-A", "stock", "--quiet", "worker", "-n", "io@%h", "--loglevel", "INFO"]

    def test_command_names_what_was_chosen(self) -> None:
        """Capabilities, pool and concurrency reach the worker."""
        command = AgentSpec(name="io", capabilities="nlp", pool="solo", concurrency=3).command("stock", "io", "INFO")

        assert command[-6:] == ["--capabilities", "nlp", "--pool", "solo", "--concurrency", "3"]


class TestNames:
    def test_two_of_one_name_are_refused(self) -> None:
        """No two processes of a fleet share a name, also where a number makes them alike."""
        with pytest.raises(ConfigurationError, match="text-1"):
            Fleet("stock", [AgentSpec(name="text", processes=2), AgentSpec(name="text-1")])


@pytest.fixture
def server() -> Iterator[EmbeddedServer]:
    """Give a server of the test's own."""
    with EmbeddedServer.start() as server:
        yield server


@pytest.fixture
def heard() -> list[str]:
    """Give the list of lines that the fleet's log joins."""
    return []


@pytest.fixture
def fleet_of(server: EmbeddedServer, tmp_path: Path, heard: list[str]) -> Iterator[Maker]:
    """Give a maker of fleets over a stock Celery app; they're stopped with the test."""
    (tmp_path / "stock.py").write_text(STOCK_APP, encoding="utf-8")
    fleets: list[Fleet] = []

    def make(*agents: AgentSpec, app: str = "stock", broker_url: str = server.url) -> Fleet:
        environment = {"ORCHESTRA_BROKER_URL": broker_url}
        fleets.append(
            Fleet(
                app,
                agents,
                environment=environment,
                directory=tmp_path,
                sink=lambda name, line: heard.append(f"{name}: {line}"),
            )
        )
        return fleets[-1]

    yield make
    for each in fleets:
        each.stop(timeout=0)


@pytest.mark.integration
class TestFleet:
    def test_starts_joins_and_stops(self, fleet_of: Maker, heard: list[str]) -> None:
        """Every process becomes ready, its lines bear its name, and the stop leaves none, pool children included."""
        fleet = fleet_of(AgentSpec(name="text", processes=2, pool="prefork", concurrency=2))

        with fleet:
            fleet.wait_ready()
            pids = fleet.pids
            families = {name: processes_of_group(pid) for name, pid in pids.items()}

        assert list(pids) == ["text-1", "text-2"]
        assert all(len(family) > 1 for family in families.values())
        assert any(line.startswith("text-1: ") and line.endswith(" ready.") for line in heard)
        assert not fleet.pids
        assert not [pid for family in families.values() for pid in family if alive(pid)]

    def test_ready_is_what_the_caller_says(self, fleet_of: Maker) -> None:
        """With a function that knows who is registered, the logs aren't asked."""
        fleet = fleet_of(AgentSpec(name="io", pool="solo"))

        with fleet:
            fleet.wait_ready(ready=lambda: {"io@somewhere"})
            with pytest.raises(RetryableError, match="io"):
                fleet.wait_ready(0.01, ready=set)

    def test_other_programs_may_run_along(self, fleet_of: Maker, heard: list[str]) -> None:
        """A program that isn't an agent is started, heard and stopped with them."""
        fleet = fleet_of()
        code = "import time; print('at your service', flush=True); time.sleep(60)"
        fleet.add("extra", [sys.executable, "-c", code], ready_line="at your service")

        with fleet:
            fleet.wait_ready(ready=set)
            pid = fleet.pids["extra"]

        assert heard == ["extra: at your service"]
        assert not alive(pid)

    def test_early_death_is_told_with_its_last_lines(self, fleet_of: Maker) -> None:
        """An agent that ends before it's ready is an error that shows why."""
        fleet = fleet_of(AgentSpec(name="io"), app="missing")

        with fleet, pytest.raises(PermanentError, match="io ended with exit code 2") as caught:
            fleet.wait_ready()

        assert any("The module missing was not found" in line for line in vars(caught.value)["last_lines"])

    def test_without_redis_it_isnt_ready_in_time(self, fleet_of: Maker) -> None:
        """An agent that can't reach Redis waits, and who waits for it is told whom he waits for."""
        fleet = fleet_of(AgentSpec(name="io", pool="solo"), broker_url="redis://127.0.0.1:1/0")

        with fleet, pytest.raises(RetryableError, match="Not ready within 2 s: io") as caught:
            fleet.wait_ready(2)

        assert vars(caught.value)["agents"] == ("io",)

    def test_stubborn_process_is_killed(self, fleet_of: Maker) -> None:
        """Who doesn't heed the request to stop is killed with everything that it started."""
        fleet = fleet_of()
        code = (
            "import signal, subprocess, sys, time\n"
            "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
            "signal.signal(signal.SIGQUIT, signal.SIG_IGN)\n"
            "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
            "print('here', flush=True)\n"
            "time.sleep(60)"
        )
        fleet.add("stubborn", [sys.executable, "-c", code], ready_line="here")
        fleet.start()
        fleet.wait_ready()
        family = processes_of_group(fleet.pids["stubborn"])

        fleet.stop(timeout=0.1)

        assert len(family) == 2
        until(lambda: not [pid for pid in family if alive(pid)])

    def test_killed_agent_comes_back(self, fleet_of: Maker) -> None:
        """A dead agent is told, the others are kept, and a successor starts."""
        fleet = fleet_of(AgentSpec(name="io", pool="solo"), AgentSpec(name="text", pool="solo"))
        with fleet:
            fleet.wait_ready()
            before = fleet.pids

            os.kill(before["io"], signal.SIGKILL)
            deaths: list[Death] = []

            def back() -> bool:
                deaths.extend(fleet.tend())
                return fleet.pids.get("io") not in {None, before["io"]}

            until(back)
            fleet.wait_ready()

            assert [death.name for death in deaths] == ["io"]
            assert fleet.pids["text"] == before["text"]

    def test_sink_that_is_gone_holds_nobody_up(self, server: EmbeddedServer, tmp_path: Path) -> None:
        """Agents go on when nobody can read the joined log any more."""

        def closed(name: str, line: str) -> None:
            raise BrokenPipeError

        (tmp_path / "stock.py").write_text(STOCK_APP, encoding="utf-8")
        agents = [AgentSpec(name="io", pool="solo")]
        environment = {"ORCHESTRA_BROKER_URL": server.url}

        with Fleet("stock", agents, environment=environment, directory=tmp_path, sink=closed) as fleet:
            fleet.wait_ready()


@pytest.mark.integration
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")
class TestParent:
    CODE = """
import sys, time
from pathlib import Path
from orchestra.fleet import AgentSpec, Fleet
fleet = Fleet("stock", [AgentSpec(name="text", processes=2, concurrency=2)], directory=Path(sys.argv[1]))
fleet.start()
print("started", flush=True)
fleet.wait_ready()
print("ready", flush=True)
time.sleep(60)
"""

    @pytest.mark.parametrize(
        ("moment", "sign"), [("started", signal.SIGINT), ("ready", signal.SIGINT), ("ready", signal.SIGKILL)]
    )
    def test_its_end_is_the_end_of_the_fleet(
        self, server: EmbeddedServer, tmp_path: Path, moment: str, sign: signal.Signals
    ) -> None:
        """However and whenever the parent ends, no process of its fleet is left."""
        (tmp_path / "stock.py").write_text(STOCK_APP, encoding="utf-8")
        environment = {**os.environ, "ORCHESTRA_BROKER_URL": server.url}
        command = [sys.executable, "-c", self.CODE, str(tmp_path)]
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as parent:
            assert parent.stdout is not None
            until(lambda: parent.stdout is None or parent.stdout.readline().strip() == moment)
            assert processes_within(tmp_path)

            parent.send_signal(sign)

        until(lambda: not processes_within(tmp_path))
