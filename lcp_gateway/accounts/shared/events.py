"""Messages between the gateways or workers that share a Redis: small, encrypted, and lost by those that are not there."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from secrets import token_bytes
from typing import Any, Final

import orjson

from lcp_gateway.accounts.shared.calls import RedisCalls, unawaited
from lcp_gateway.accounts.shared.outage import REDIS_KEY_PREFIX, Outage
from lcp_gateway.encryption import DecryptionFailed, Encryption

_CHANNELS: Final = f"{REDIS_KEY_PREFIX}:events:"
_WAIT_S: Final = 5.0
_PAUSE_S: Final = 0.5
_NAME: Final = b"events"
_SENDER_BYTES: Final = 8
_UPDATES: Final = b"learnt"
# Short: another worker should not pay a peer that has just failed.
_BATCH_S: Final = 0.005

OnEvent = Callable[[bytes], None]


class RedisEvents:
    """One channel. Messages are kept in the order in which one sender sent them; each goes to all listeners but its sender."""

    def __init__(self, calls: RedisCalls, channel: str, encryption: Encryption, outage: Outage) -> None:
        self._calls = calls
        self._channel = _CHANNELS + encryption.keyed_name(b"channel", channel.encode()).hex()
        # Begins each message, so that its sender need not decrypt it, and is authenticated with it.
        self._sender = token_bytes(_SENDER_BYTES)
        self._encryption = encryption
        self._outage = outage

    def publish(self, topic: bytes, content: bytes) -> None:
        """Send a message without waiting; while Redis is unreachable it is lost."""
        if self._outage.is_on:
            return
        message = self._sender + self._encryption.encrypt(_NAME, topic + b"\n" + content, self._sender)
        unawaited(self._calls.command("PUBLISH", self._channel, message), self._outage)

    async def run(self, handlers: Mapping[bytes, OnEvent]) -> None:
        """Call the handlers, by topic, for each message until cancelled; it listens again after an outage."""
        while True:
            listening: Any = self._calls.client.pubsub(ignore_subscribe_messages=True)
            try:
                await listening.subscribe(self._channel)
                while True:
                    message = await listening.get_message(timeout=_WAIT_S)
                    if message is not None:
                        self._take(message["data"], handlers)
            except self._calls.errors as error:
                self._outage.begin(error)
            finally:
                with suppress(*self._calls.errors):
                    await listening.aclose()
            await asyncio.sleep(_PAUSE_S)

    def _take(self, data: bytes, handlers: Mapping[bytes, OnEvent]) -> None:
        sender, encrypted = data[:_SENDER_BYTES], data[_SENDER_BYTES:]
        if sender == self._sender:
            return
        try:
            topic, _, content = self._encryption.decrypt(_NAME, encrypted, sender).partition(b"\n")
        except DecryptionFailed:
            return
        if (handler := handlers.get(topic)) is not None:
            handler(content)


class BatchedEvents:
    """Sends the updates of this process to the others, those of one moment together, and hands theirs to handlers."""

    def __init__(self, events: RedisEvents, handlers: Mapping[str, Callable[[list[Any]], None]]) -> None:
        """``handlers`` take the values of a message of the others, by its kind."""
        self._events = events
        self._handlers = handlers
        self._batch: list[list[Any]] = []

    def tell(self, kind: str, values: Sequence[object] = ()) -> None:
        """Send plain values to the others."""
        if not self._batch:
            asyncio.get_running_loop().call_later(_BATCH_S, self._flush)
        self._batch.append([kind, *values])

    async def run(self) -> None:
        """Take what the others send, until cancelled."""
        await self._events.run({_UPDATES: self._take})

    def _flush(self) -> None:
        batch, self._batch = self._batch, []
        self._events.publish(_UPDATES, orjson.dumps(batch))

    def _take(self, content: bytes) -> None:
        for kind, *values in orjson.loads(content):
            if (handler := self._handlers.get(kind)) is not None:
                handler(values)
