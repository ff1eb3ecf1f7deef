"""The pulse of the event loop shows what blocks it."""

import asyncio
import contextlib
import time

from lcp_gateway.telemetry.loop import watch_loop


async def test_a_loop_that_is_blocked_is_noticed():
    lags = []
    watch = asyncio.create_task(watch_loop(lags.append, interval_s=0.01))
    await asyncio.sleep(0.05)
    time.sleep(0.2)  # noqa: ASYNC251 - blocking the loop is the point
    await asyncio.sleep(0.05)
    watch.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watch
    assert max(lags) > 0.1
    assert min(lags) >= 0
    assert len(lags) >= 3
