"""The one Redis that several gateways share: connections to it, and the policy while it is unreachable."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, TypeVar

from lcp_gateway.purchase.errors import Refused

if TYPE_CHECKING:
    from redis.asyncio import BlockingConnectionPool

T = TypeVar("T")

_MAX_CONNECTIONS = 64
# Redis answers within a millisecond; after this long it counts as unreachable.
_ANSWER_S = 0.5
_PAUSE_S = 1.0
# Waiting for a free connection is load, not an outage: a flood of requests must not disable the limits.
_FREE_CONNECTION_S = 10.0

REDIS_KEY_PREFIX: Final = "lcp-gateway"
"""Begins every key in Redis."""


class RedisNotInstalled(Exception):
    """Redis is configured, and its client, the extra ``redis``, is not installed."""


class LimitsUnavailable(Refused):
    """The limits cannot be checked, and no request may pass without."""

    code = "limits_unavailable"

    def __init__(self, retry_after_s: float) -> None:
        super().__init__("the rate limits cannot be checked right now; nothing was paid")
        self.retry_after_s = retry_after_s


def connect(url: str) -> "BlockingConnectionPool":
    """Return a pool for ``redis[s]://[[user]:password@]host[:port][/db]``; no connection is opened yet.

    Raises:
        RedisNotInstalled: the extra is missing.
        ValueError: the URL is not one of Redis.
    """
    try:
        from redis.asyncio import BlockingConnectionPool  # noqa: PLC0415 - an optional extra
        from redis.asyncio.retry import Retry  # noqa: PLC0415 - an optional extra
        from redis.backoff import NoBackoff  # noqa: PLC0415 - an optional extra
    except ImportError:
        raise RedisNotInstalled("Redis needs the extra: pip install 'lcp-gateway[redis]'") from None
    try:
        return BlockingConnectionPool.from_url(
            url,
            max_connections=_MAX_CONNECTIONS,
            timeout=_FREE_CONNECTION_S,
            socket_timeout=_ANSWER_S,
            socket_connect_timeout=_ANSWER_S,
            # Once more, and at once: a stale connection is replaced, an unreachable Redis is not waited for.
            retry=Retry(NoBackoff(), 1),
        )
    except ValueError:
        # The library's message may quote the password.
        raise ValueError("not a URL of Redis") from None


def redis_errors() -> tuple[type[Exception], ...]:
    """Return the errors of an unreachable Redis; its client is known to be installed."""
    from redis.exceptions import RedisError  # noqa: PLC0415 - an optional extra

    return (RedisError, OSError)


class Outage:
    """Remembers for a second that Redis is unreachable, so that not every request waits to find out.

    ``report`` is called with the name of the error, at most once a second: no message of Redis, and with it no address and
    no password, leaves here. ``allows`` decides meanwhile: requests pass without limits, or are refused.
    """

    def __init__(
        self,
        *,
        allows: bool = True,
        report: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._allows = allows
        self._report = report
        self._clock = clock
        self._until = -float("inf")

    @property
    def is_on(self) -> bool:
        """Whether Redis was unreachable a moment ago, and must not be tried yet."""
        return self._clock() < self._until

    def begin(self, error: Exception) -> None:
        """Record that Redis is unreachable."""
        if not self.is_on:
            self._until = self._clock() + _PAUSE_S
            self._report(type(error).__name__)

    def admit_or_refuse(self) -> None:
        """Decide on a request whose limits cannot be checked.

        Raises:
            LimitsUnavailable: it may not pass.
        """
        if not self._allows:
            raise LimitsUnavailable(_PAUSE_S)


class ShieldedCalls:
    """Calls of Redis that run to their end when the task that awaits them is cancelled.

    The client of Redis takes a cancellation for a lost connection: it could swallow it, and the command may have been
    executed. So each call is a task of its own, and ``undo`` reverts what it took for a cancelled caller.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self, call: Coroutine[Any, Any, T], undo: Callable[[T], Awaitable[None]] | None = None) -> T:
        """Await a call. If the caller is cancelled meanwhile, ``undo`` gets the result as soon as it is known."""
        task = self.start(call)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if undo is not None:
                self.start(_undo(task, undo))
            raise

    def start(self, call: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Begin a call, which ``close`` waits for."""
        task = asyncio.create_task(call)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """Wait for the calls under way; each has a time-out of its own."""
        while self._tasks:
            await asyncio.wait(self._tasks)


async def _undo(task: asyncio.Task[T], undo: Callable[[T], Awaitable[None]]) -> None:
    await asyncio.wait([task])
    # A call that failed took nothing.
    if not task.cancelled() and task.exception() is None:
        await undo(task.result())
