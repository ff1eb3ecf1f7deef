"""Messages between the gateways or workers that share a Redis: small, encrypted, and lost by those that are not there."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from secrets import token_hex
from typing import Any, Final

import orjson

from lcp_gateway.accounts.shared.outage import REDIS_KEY_PREFIX, Outage, ShieldedCalls, connect, redis_errors
from lcp_gateway.encryption import DecryptionFailed, Encryption

_CHANNELS: Final = f"{REDIS_KEY_PREFIX}:events:"
_WAIT_S: Final = 5.0
_PAUSE_S: Final = 0.5
_NAME: Final = b"events"
_LEARNT: Final = b"learnt"
# Short: another worker should not pay a peer that has just failed.
_BATCH_S: Final = 0.005

OnEvent = Callable[[bytes], None]


class RedisEvents:
    """One channel. Messages are kept in the order in which one sender sent them; each goes to all listeners, the sender included.

    Raises:
        RedisNotInstalled: the extra is missing.
        ValueError: the URL is not one of Redis.
    """

    def __init__(self, url: str, channel: str, encryption: Encryption, outage: Outage) -> None:
        self._pool: Any = connect(url)
        from redis.asyncio import Redis  # noqa: PLC0415 - an optional extra, and connect() has it

        self._redis: Any = Redis(connection_pool=self._pool)
        self._errors = redis_errors()
        self._channel = _CHANNELS + encryption.keyed_name(b"channel", channel.encode()).hex()
        self._encryption = encryption
        self._outage = outage
        self._calls = ShieldedCalls()
        self._waiting: list[tuple[bytes, bytes]] = []
        self._sending: asyncio.Task[None] | None = None

    def publish(self, topic: bytes, content: bytes) -> None:
        """Send a message without waiting; while Redis is unreachable it is lost."""
        if self._outage.is_on:
            return
        self._waiting.append((topic, content))
        if self._sending is None or self._sending.done():
            # One at a time keeps the order.
            self._sending = self._calls.start(self._send())

    async def run(self, handlers: Mapping[bytes, OnEvent]) -> None:
        """Call the handlers, by topic, for each message until cancelled; it listens again after an outage."""
        while True:
            listening: Any = self._redis.pubsub(ignore_subscribe_messages=True)
            try:
                await listening.subscribe(self._channel)
                while True:
                    message = await listening.get_message(timeout=_WAIT_S)
                    if message is not None:
                        self._take(message["data"], handlers)
            except self._errors as error:
                self._outage.begin(error)
            finally:
                with suppress(*self._errors):
                    await listening.aclose()
            await asyncio.sleep(_PAUSE_S)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._calls.close()
        await self._pool.disconnect()

    def _take(self, data: bytes, handlers: Mapping[bytes, OnEvent]) -> None:
        try:
            topic, _, content = self._encryption.decrypt(_NAME, data, _NAME).partition(b"\n")
        except DecryptionFailed:
            return
        if (handler := handlers.get(topic)) is not None:
            handler(content)

    async def _send(self) -> None:
        while self._waiting:
            waiting, self._waiting = self._waiting, []
            try:
                for topic, content in waiting:
                    await self._redis.publish(
                        self._channel, self._encryption.encrypt(_NAME, topic + b"\n" + content, _NAME)
                    )
            except self._errors as error:
                self._outage.begin(error)


class BatchedEvents:
    """Sends the updates of this process to the others, those of one moment together, and hands theirs to handlers."""

    def __init__(self, events: RedisEvents, handlers: Mapping[str, Callable[[list[Any]], None]]) -> None:
        """``handlers`` take the values of a message of the others, by its kind."""
        self._events = events
        self._handlers = handlers
        self._sender = token_hex(8)
        self._batch: list[list[Any]] = []

    def tell(self, kind: str, values: Sequence[object] = ()) -> None:
        """Send plain values to the others."""
        if not self._batch:
            asyncio.get_running_loop().call_later(_BATCH_S, self._flush)
        self._batch.append([kind, *values])

    async def run(self) -> None:
        """Take what the others send, until cancelled."""
        await self._events.run({_LEARNT: self._take})

    def _flush(self) -> None:
        batch, self._batch = self._batch, []
        self._events.publish(_LEARNT, orjson.dumps([self._sender, batch]))

    def _take(self, content: bytes) -> None:
        sender, batch = orjson.loads(content)
        if sender == self._sender:
            return
        for kind, *values in batch:
            if (handler := self._handlers.get(kind)) is not None:
                handler(values)
