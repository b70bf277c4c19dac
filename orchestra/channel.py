"""What every part of our channels rests on: whose fleet it is, its keys, and a client for scripts."""

from typing import Any, Final

from kombu.utils.objects import cached_property
from redis import Redis

from orchestra.queues import QueueNames
from orchestra.store import Keys

__all__ = ["OPTIONS", "FleetChannel", "kombu_of"]

OPTIONS: Final = (
    *("orchestra_fleet", "orchestra_default_queue", "orchestra_prefix", "orchestra_record_ttl_seconds"),
    *("orchestra_beat_seconds", "orchestra_lost_after_seconds"),
    "orchestra_patience_seconds",
)


class FleetChannel:
    """What our channels add to kombu's, whichever server they speak to."""

    orchestra_fleet = ""
    orchestra_default_queue = ""
    orchestra_prefix = "orchestra"
    orchestra_record_ttl_seconds = 604_800.0
    orchestra_patience_seconds = 5.0
    orchestra_beat_seconds = 1.0
    orchestra_lost_after_seconds = 5.0

    @cached_property
    def fleet_keys(self) -> Keys:
        """The fleet's key names, behind kombu's `global_keyprefix` if there is one."""
        return Keys(self.orchestra_prefix, self.orchestra_fleet, kombu_of(self).global_keyprefix)

    @cached_property
    def _queue_names(self) -> QueueNames:
        return QueueNames(self.orchestra_fleet, self.orchestra_default_queue)

    @cached_property
    def script_client(self) -> "Redis":
        """A client without kombu's key prefixing, since scripts name their keys in full; kept, and thread-safe."""
        return Redis(connection_pool=kombu_of(self).pool)


def kombu_of(channel: object) -> Any:  # kombu ships no types, and a mix-in doesn't know what it is mixed into
    """Return a channel as kombu's, for mypy's sake."""
    return channel
