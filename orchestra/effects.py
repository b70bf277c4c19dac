"""Effects in the fleet's own Redis that happen once, however often the task that has them is run."""

import json
from collections.abc import Callable
from typing import Any, TypeAlias

from redis.exceptions import WatchError

from orchestra.exceptions import FencedError, ValidationError
from orchestra.store import Store, text_of
from orchestra.types import JSONValue

__all__ = ["Effect", "once"]

Effect: TypeAlias = Callable[[Any], JSONValue]  # of redis-py's pipeline, whose types are generic


def once(store: Store, task_id: str, name: str, effect: Effect, *, ttl_seconds: float) -> JSONValue:
    """
    Carry out an effect of a task, unless a run of that task has done so before; return its value.

    `effect` puts commands on a pipeline, and returns the value. They are carried out in one transaction with a note
    that they were; whatever comes to it later returns the value that is noted. Who comes while another run is about it
    takes over: the other one finds so when it wants to commit.

    Raises:
        FencedError: a later run of the task has taken over.
        ValidationError: the value is no JSON.
        BrokerUnavailableError: Redis can't be reached; whether it happened, the next run knows.

    """
    key, ttl_ms = store.keys.effect(task_id, name), int(ttl_seconds * 1000)
    verdict, word = store.run("claim_effect", [key], [ttl_ms])
    if text_of(verdict) == "done":
        return _read(word)
    return store.act(lambda client: _commit(client, key, text_of(word), effect, ttl_ms))


def _commit(client: Any, key: str, token: str, effect: Effect, ttl_ms: int) -> JSONValue:  # redis-py's client
    with client.pipeline(transaction=True) as pipe:
        while True:
            pipe.watch(key)
            value, claimed = pipe.hmget(key, "value", "token")
            if value is not None:
                return _read(value)
            if claimed is None or text_of(claimed) != token:
                message = f"A later run of this task has taken the effect over: {key}"
                raise FencedError(message)
            pipe.multi()
            made = effect(pipe)
            pipe.hset(key, "value", _written(key, made))
            pipe.pexpire(key, ttl_ms)
            try:
                replies = pipe.execute(raise_on_error=False)
            except WatchError:  # somebody has claimed it meanwhile
                continue
            _raise_refusal(client, key, replies[:-2])
            return made


def _raise_refusal(client: Any, key: str, replies: list[Any]) -> None:
    """Raise what Redis refused; where that is all, nothing has happened, and a further run may try it again."""
    refused = [reply for reply in replies if isinstance(reply, Exception)]
    if refused:
        if len(refused) == len(replies):
            client.hdel(key, "value")
        raise refused[0]


def _read(value: Any) -> JSONValue:  # bytes or a text
    read: JSONValue = json.loads(value)
    return read


def _written(key: str, value: JSONValue) -> str:
    try:
        return json.dumps(value)
    except (TypeError, ValueError) as error:
        message = f"The effect {key} returned what is no JSON: {error}. Nothing of it was carried out."
        raise ValidationError(message) from error
