"""The event loop monitor reports what blocks the loop."""

import asyncio
import contextlib
import time

from lcp_gateway.telemetry.event_loop import SlowCallbacks, watch_loop


async def test_a_loop_that_is_blocked_is_noticed():
    lags = []
    watch = asyncio.create_task(watch_loop(lags.append, interval_s=0.01))
    await asyncio.sleep(0.05)
    time.sleep(0.2)  # noqa: ASYNC251 - blocking the loop is the point
    async with asyncio.timeout(60):
        while max(lags, default=0.0) <= 0.1 or len(lags) < 3:
            await asyncio.sleep(0.01)
    watch.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watch
    assert min(lags) >= 0


def hold_up(seconds):
    time.sleep(seconds)


async def test_a_callback_that_takes_too_long_is_reported_with_its_place():
    """Regression: a list of 300,000 models blocked the loop for half a minute without a log line."""
    told = []
    with SlowCallbacks(0.3, lambda held_s, frames: told.append((held_s, frames))):
        await asyncio.sleep(0.2)
        hold_up(0.8)
        await asyncio.sleep(0.2)
    # A machine that gives this process no time holds up other callbacks too.
    ((held_s, frames),) = [(held_s, frames) for held_s, frames in told if frames[0].endswith("hold_up")]
    assert held_s >= 0.3
    assert __file__ in frames[0]


async def test_many_short_ones_are_none():
    told = []
    with SlowCallbacks(1.0, lambda *slow: told.append(slow)):
        for _ in range(600):
            hold_up(0.002)
            await asyncio.sleep(0)
    assert not told
