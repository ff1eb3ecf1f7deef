"""Calls of Redis by one process: those of one moment go together, in one pipeline, in the order in which they were made.

By itself a command costs redis-py 0.1 ms of CPU, several times that of one in a pipeline, most of it for the connection.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from lcp_gateway.accounts.shared.outage import Outage, connect, redis_errors

# More wait for the next pipeline: its replies come together, and the first waits for the last.
_MOST_TOGETHER: Final = 200
# Such a value would hold up the small ones behind it.
_ALONE_BYTES: Final = 32 * 1024


NOW: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""
"""A script's beginning: ``now`` by Redis's own clock, in ms."""


class RedisUnavailable(Exception):
    """Redis is unreachable; whether it executed a call that went out is not known."""


Script = Callable[[Sequence[str | bytes], Sequence[Any]], asyncio.Future[Any]]
"""Calls a Lua script in Redis with its keys and arguments: sent whether it is awaited or not, and whether that is cancelled."""


@dataclass(slots=True, eq=False)
class _Call:
    """A command and its reply; ``script`` is the script that it calls, as redis-py has registered it."""

    command: tuple[Any, ...]
    reply: asyncio.Future[Any]
    script: Any = None
    keys: Sequence[str | bytes] = ()
    values: Sequence[Any] = ()


class RedisCalls:
    """Sends the calls of a process. While a pipeline is under way, the calls that come meanwhile wait for the next.

    What waits is bounded by time: a pipeline that has no reply within its time-outs fails with all calls behind it.

    No call is tied to the task that made it: redis-py takes a cancellation for a lost connection, and would not know whether
    the command was executed. ``client`` is for commands beside these, on connections of their own; ``errors`` are those of a
    Redis that cannot be reached.

    Raises:
        RedisNotInstalled: the extra is missing.
        ValueError: the URL is not one of Redis.
    """

    def __init__(self, url: str) -> None:
        self._pool = connect(url)
        from redis.asyncio import Redis  # noqa: PLC0415 - an optional extra, and connect() has it
        from redis.exceptions import NoScriptError  # noqa: PLC0415 - as above

        self.client: Any = Redis(connection_pool=self._pool)
        self.errors = redis_errors()
        self._no_script = NoScriptError
        self._waiting: list[_Call] = []
        self._sending: asyncio.Task[None] | None = None
        self._alone: set[asyncio.Task[Any]] = set()

    def script(self, text: str, *, alone: bool = False) -> Script:
        """Register a script: it is called by its hash, and loaded where Redis does not have it.

        ``alone``: its calls take and return much, and go beside the others.
        """
        registered: Any = self.client.register_script(text)

        def call(keys: Sequence[str | bytes], values: Sequence[Any]) -> asyncio.Future[Any]:
            reply = asyncio.get_running_loop().create_future()
            command = ("EVALSHA", registered.sha, len(keys), *keys, *values)
            return self._add(_Call(command, reply, registered, keys, values), alone=alone)

        return call

    def command(self, *command: Any, alone: bool = False) -> asyncio.Future[Any]:
        """Call a command, in order with the scripts; with ``alone`` beside them."""
        return self._add(_Call(command, asyncio.get_running_loop().create_future()), alone=alone)

    async def reply(self, outage: Outage, call: Callable[..., asyncio.Future[Any]], *arguments: Any) -> Any:
        """Call a script or ``command``, and return its reply; an error begins an outage, in which nothing is called.

        Raises:
            RedisUnavailable: there is no reply.
        """
        if outage.is_on:
            raise RedisUnavailable
        try:
            return await call(*arguments)
        except self.errors as error:
            outage.begin(error)
            raise RedisUnavailable from error

    async def settled(self) -> None:
        """Wait until every call has its reply; each has a time-out."""
        while tasks := [*self._alone, *([] if self._sending is None else [self._sending])]:
            await asyncio.wait(tasks)

    async def aclose(self) -> None:
        """Wait for the calls under way, and close the connections."""
        await self.settled()
        await self._pool.disconnect()

    def _add(self, call: _Call, *, alone: bool) -> asyncio.Future[Any]:
        if alone or any(isinstance(part, bytes) and len(part) > _ALONE_BYTES for part in call.command):
            task = asyncio.create_task(self._send([call]))
            self._alone.add(task)
            task.add_done_callback(self._alone.discard)
        else:
            self._waiting.append(call)
            if self._sending is None:
                # It begins in the next turn of the event loop: what is called in this one goes with it.
                self._sending = asyncio.create_task(self._send_all())
        return call.reply

    async def _send_all(self) -> None:
        try:
            while self._waiting:
                calls, self._waiting = self._waiting[:_MOST_TOGETHER], self._waiting[_MOST_TOGETHER:]
                if (error := await self._send(calls)) is not None:
                    # They would wait as long to find out the same.
                    calls, self._waiting = self._waiting, []
                    _fail(calls, error)
        finally:
            self._sending = None

    async def _send(self, calls: Sequence[_Call]) -> Exception | None:
        """Send calls, and hand out their replies; return the error of a Redis that cannot be reached."""
        pipeline = self.client.pipeline(transaction=False)
        for call in calls:
            pipeline.execute_command(*call.command)
        try:
            replies = await pipeline.execute(raise_on_error=False)
        except Exception as error:  # noqa: BLE001 - each caller gets it
            _fail(calls, error)
            return error
        for call, reply in zip(calls, replies, strict=True):
            answer = await self._load(call) if isinstance(reply, self._no_script) else reply
            if call.reply.done():
                continue
            if isinstance(answer, Exception):
                call.reply.set_exception(answer)
            else:
                call.reply.set_result(answer)
        return None

    async def _load(self, call: _Call) -> Any:
        try:
            return await call.script(call.keys, call.values)
        except Exception as error:  # noqa: BLE001 - its caller gets it
            return error


def _fail(calls: Sequence[_Call], error: Exception) -> None:
    for call in calls:
        if not call.reply.done():
            call.reply.set_exception(error)


def unawaited(reply: asyncio.Future[Any], outage: Outage) -> None:
    """Let a call go without waiting for its reply; an error begins an outage."""

    def ended(ended: asyncio.Future[Any]) -> None:
        if not ended.cancelled() and isinstance(error := ended.exception(), Exception):
            outage.begin(error)

    reply.add_done_callback(ended)
