"""The connection to the Redis that several gateways or workers share."""

import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from lcp_gateway.accounts.shared.outage import RedisNotInstalled
from lcp_gateway.app.wiring import WiringError

if TYPE_CHECKING:
    from lcp_gateway.accounts.shared.calls import RedisCalls


@contextlib.asynccontextmanager
async def open_redis(url: str) -> "AsyncIterator[RedisCalls | None]":
    """Make the calls of this process for the block; None without a URL. No connection is opened before the first call.

    Raises:
        WiringError: Redis cannot be used as the settings say.
    """
    if not url:
        yield None
        return
    # Imported where it is used: few gateways share a Redis.
    from lcp_gateway.accounts.shared.calls import RedisCalls  # noqa: PLC0415 - see above

    try:
        calls = RedisCalls(url)
    except (RedisNotInstalled, ValueError) as error:
        raise WiringError(f"Redis cannot be used: {error}") from error
    async with contextlib.aclosing(calls):
        yield calls
