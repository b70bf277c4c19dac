"""Acts at the server that holds the queues: killed, shut down, full, cut off from clients, replaced by a replica."""

import time
from typing import Final

from tests.chaos.sentinels import Sentinels
from tests.chaos.small_disk import SmallDisk
from tests.chaos.stage import Stage, Strike, pause

__all__ = [
    "fail_over",
    "fill_disk",
    "fill_memory",
    "kill_connections",
    "kill_server",
    "server_away",
    "shut_server_down",
]

_AWAY_SECONDS: Final = 10.0
_FULL_SECONDS: Final = 10.0
_LAG_SECONDS: Final = 1.5
_ANY: Final = 0.5


def kill_server(stage: Stage) -> Strike:
    """End the server with SIGKILL, and start it again."""
    began = time.monotonic()
    stage.broker.kill()
    stage.broker.start()
    return stage.strike_all(began=began)


def shut_server_down(stage: Stage) -> Strike:
    """End the server by SHUTDOWN SAVE, and start it again."""
    began = time.monotonic()
    stage.broker.shut_down()
    stage.broker.start()
    return stage.strike_all(began=began)


def server_away(stage: Stage) -> Strike:
    """End the server either way, and start it again after a while."""
    began = time.monotonic()
    end = stage.dice.choice([stage.broker.kill, stage.broker.shut_down])
    end()
    pause(_AWAY_SECONDS)
    stage.broker.start()
    return stage.strike_all(began=began)


def kill_connections(stage: Stage) -> Strike:
    """End every connection, or each with even odds."""
    every, began = stage.dice.random() < _ANY, time.monotonic()
    with stage.broker.client() as client:
        own = client.client_id()
        for connection in client.client_list():
            if int(connection["id"]) != own and (every or stage.dice.random() < _ANY):
                client.client_kill_filter(_id=connection["id"])
    return stage.strike_all(began=began)


def fill_memory(stage: Stage) -> Strike:
    """Give the server less memory than it uses, and more again after a while."""
    began = time.monotonic()
    with stage.broker.client() as client:
        client.config_set("maxmemory", 1)
        try:
            pause(_FULL_SECONDS)
        finally:
            client.config_set("maxmemory", 0)
    return stage.strike_all(began=began)


def fill_disk(stage: Stage) -> Strike:
    """Fill the disk that the server writes its changes to, and make room again after a while."""
    assert isinstance(stage.site, SmallDisk)
    began = time.monotonic()
    with stage.site.full():
        pause(_FULL_SECONDS)
    return stage.strike_all(began=began)


def fail_over(stage: Stage) -> Strike:
    """Cut the replica off from its master, kill the master a little later, and have Sentinel promote the replica."""
    assert isinstance(stage.site, Sentinels)
    began = time.monotonic()
    stage.site.cut_replica_off()
    pause(_LAG_SECONDS)
    stage.site.fail_over()
    return stage.strike_all(began=began)
