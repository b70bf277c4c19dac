"""Consumers on connections of our transport, as agents and other processes have them, turned by the test itself."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from time import monotonic
from typing import Any

from kombu import Queue

from orchestra.leases import LeaseHolder

__all__ = ["LETTERS", "Reader", "put", "reader_at"]

LETTERS = "letters"


class Reader:
    """Reads queues over one connection, and keeps what it got."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.messages: list[Any] = []
        self.consumers: dict[str, Any] = {}

    @property
    def holder(self) -> LeaseHolder:
        """Who holds what is read here."""
        holder: LeaseHolder = self.channel.holder
        return holder

    @property
    def channel(self) -> Any:
        """The channel that everything here goes by."""
        return self.connection.default_channel

    @property
    def texts(self) -> list[str]:
        """What the messages say, in the order in which they came."""
        return [message.payload for message in self.messages]

    def consume(
        self, queue: str = LETTERS, *, no_ack: bool = False, on_message: Callable[[Any], object] | None = None
    ) -> None:
        """Read a queue from now on."""
        took = on_message or self.messages.append
        consumer = self.connection.Consumer([Queue(queue)], channel=self.channel, on_message=took, no_ack=no_ack)
        consumer.consume()
        self.consumers[queue] = consumer

    def take_and_settle(self, message: Any) -> None:
        """Take a message and be done with it."""
        self.messages.append(message)
        message.ack()

    def cancel(self, queue: str = LETTERS) -> None:
        """Read a queue no more."""
        self.consumers.pop(queue).cancel()

    def send(self) -> None:
        """Send what the next turn of the loop sends, without reading what comes."""
        self.connection.transport.cycle.on_poll_start()

    def turn(self, *, seconds: float = 0.1) -> None:
        """Turn the loop once: send what there is to send, and read what comes in time."""
        with suppress(TimeoutError):
            self.connection.drain_events(timeout=seconds)

    def until(self, condition: Callable[[], object], *, seconds: float = 10.0) -> None:
        """Turn the loop until a condition comes true; fail when it doesn't in time."""
        deadline = monotonic() + seconds
        while not condition():
            assert monotonic() < deadline, "the condition did not come true in time"
            self.turn()

    def read(self, count: int) -> list[str]:
        """Read until so many messages came, and return what they say."""
        self.until(lambda: len(self.messages) >= count)
        return self.texts

    def settle(self) -> None:
        """Have Redis know all there is to tell."""
        self.until(lambda: not self.holder.untold)


@contextmanager
def reader_at(
    app: Any, *, slots: int | None = None, holder: LeaseHolder | None = None
) -> Iterator[Reader]:  # OrchestraCelery
    """Give a reader over a connection of its own: an agent with `slots` processes, or any other consumer."""
    if holder is None and slots is not None:
        holder = LeaseHolder(agent="text@a", slots=lambda: slots)
    with app.connection_for_read() as connection:
        connection.transport.lease_holder = holder
        try:
            yield Reader(connection)
        finally:
            connection.transport.hold().rest()


def put(app: Any, *texts: str, queue: str = LETTERS) -> None:
    """Send messages that are no tasks'."""
    with app.connection_for_write() as connection, connection.SimpleQueue(queue) as letters:
        for text in texts:
            letters.put(text)
