"""The faults, by name: acts, and what is published meanwhile."""

from collections.abc import Mapping
from typing import Final

from tests.chaos import at_agents, at_clocks, at_networks, at_servers, at_services
from tests.chaos.clocks import Clocks
from tests.chaos.networks import Networks
from tests.chaos.proxied import Proxied
from tests.chaos.sentinels import Sentinels
from tests.chaos.small_disk import SmallDisk
from tests.chaos.stage import Fault

__all__ = ["FAULTS"]

_HOUR: Final = 3600  # s
_RESTARTS: Final = 24  # one every 5 s over two minutes


_AGENTS: Final = (
    Fault(name="none", what="no fault", acts=()),
    Fault(name="kill_main", what="`kill -9` of the main process", acts=(at_agents.kill_main,) * 3),
    Fault(name="kill_child", what="`kill -9` of a pool process that runs a task", acts=(at_agents.kill_child,) * 6),
    Fault(name="kill_group", what="`kill -9` of the whole process group", acts=(at_agents.kill_group,) * 3),
    Fault(name="kill_helper", what="`kill -9` of the process that beats", acts=(at_agents.kill_helper,) * 3),
    Fault(name="freeze_kill", what="SIGSTOP, then `kill -9` 2 s later", acts=(at_agents.freeze_and_kill,) * 2),
    Fault(name="freeze", what="SIGSTOP of every process for 12 s, then SIGCONT", acts=(at_agents.freeze,)),
    Fault(name="freeze_main", what="SIGSTOP of the main process for 12 s, then SIGCONT", acts=(at_agents.freeze_main,)),
    Fault(name="stop_warm", what="warm stop (SIGTERM)", acts=(at_agents.stop_warmly,) * 3),
    Fault(name="stop_cold", what="cold stop (SIGQUIT)", acts=(at_agents.stop_coldly,) * 3),
    Fault(
        name="rolling",
        what="warm stop of one agent after the other, every 5 s for two minutes",
        acts=(at_agents.stop_next_warmly,) * _RESTARTS,
        workload="steady",
    ),
)

_SERVERS: Final = (
    Fault(name="server_kill", what="`kill -9` of the server", acts=(at_servers.kill_server,) * 3),
    Fault(name="server_shutdown", what="SHUTDOWN SAVE of the server", acts=(at_servers.shut_server_down,) * 3),
    Fault(name="server_away", what="the server is away for 10 s", acts=(at_servers.server_away,)),
    Fault(
        name="failover",
        what="a replica that lags by 1.5 s takes its killed master's place, by Sentinel",
        acts=(at_servers.fail_over,),
        site=Sentinels,
        loses=True,
    ),
    Fault(
        name="failover_confirmed",
        what="the same with `ORCHESTRA_CONFIRM_REPLICAS=1`",
        acts=(at_servers.fail_over,),
        site=Sentinels,
        settings={"confirm_replicas": 1},
        systems=("ours",),
    ),
    Fault(
        name="memory_full",
        what="the server has used up its `maxmemory` for 10 s, with a backlog",
        acts=(at_servers.fill_memory,),
        workload="burst",
    ),
    Fault(
        name="disk_full",
        what="the server's disk is full for 10 s, with a backlog",
        acts=(at_servers.fill_disk,),
        workload="burst",
        site=SmallDisk,
    ),
)

_WAYS: Final = (
    Fault(
        name="connections",
        what="CLIENT KILL of every or every second connection",
        acts=(at_servers.kill_connections,) * 6,
    ),
    Fault(
        name="half_open",
        what="every connection falls silent without ending",
        acts=(at_networks.fall_silent,),
        site=Proxied,
    ),
    Fault(
        name="partition",
        what="an agent and the server don't reach each other for 12 s",
        acts=(at_networks.partition(to_server=True, to_agent=True),),
        site=Networks,
    ),
    Fault(
        name="partition_out",
        what="what an agent sends doesn't reach the server for 12 s",
        acts=(at_networks.partition(to_server=True, to_agent=False),),
        site=Networks,
    ),
    Fault(
        name="partition_in",
        what="what the server sends doesn't reach an agent for 12 s",
        acts=(at_networks.partition(to_server=False, to_agent=True),),
        site=Networks,
    ),
    Fault(
        name="clock",
        what="an agent's clock is set an hour ahead, another's an hour back, every fourth task delayed",
        acts=(at_clocks.step_clock(seconds=_HOUR), at_clocks.step_clock(seconds=-_HOUR)) * 2,
        workload="mixed",
        site=Clocks,
    ),
)

_TASKS: Final = (
    Fault(name="long", what="no fault, with tasks of 12 s among the others", acts=(), workload="long"),
    Fault(
        name="long_kill",
        what="`kill -9` of the whole process group, with tasks of 12 s among the others",
        acts=(at_agents.kill_group,),
        workload="long",
    ),
    Fault(
        name="delayed",
        what="delayed tasks over `kill -9` of an agent and of the server, a warm stop of all agents, SHUTDOWN SAVE",
        acts=(at_agents.kill_group, at_servers.kill_server, at_agents.stop_all_warmly, at_servers.shut_server_down),
        workload="delayed",
    ),
    Fault(
        name="canvases",
        what="two chords of 1,000 and 20 chains of 20, over `kill -9` of agents, pool processes and the server",
        acts=(at_agents.kill_child, at_agents.kill_group, at_servers.kill_server, at_agents.kill_main),
        workload="canvases",
    ),
    Fault(
        name="breaker",
        what="a service that tasks call by a breaker is away, over `kill -9` of agents, pool processes and the server",
        acts=(
            at_services.take_service_away,
            at_agents.kill_group,
            at_servers.kill_server,
            at_services.bring_service_back,
            at_agents.kill_child,
        ),
        workload="calls",
    ),
    Fault(
        name="poison",
        what="tasks that exit, kill their process, crash it, raise MemoryError, or take all memory",
        acts=(),
        workload="poison",
    ),
    Fault(
        name="hang",
        what="tasks that hang past their timeout, and some that don't listen to it",
        acts=(),
        workload="hanging",
    ),
)

FAULTS: Final[Mapping[str, Fault]] = {fault.name: fault for fault in (*_AGENTS, *_SERVERS, *_WAYS, *_TASKS)}
