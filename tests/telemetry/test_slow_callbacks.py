"""What holds the event loop up is found, with where it was at the time."""

import asyncio
import time

from lcp_gateway.telemetry.slow_callbacks import SlowCallbacks


def hold_up(seconds):
    time.sleep(seconds)


async def test_a_callback_that_takes_too_long_is_told_with_where_it_was():
    """B9: a list of 300,000 models held everything up for half a minute, and nothing said so."""
    told = []
    with SlowCallbacks(0.05, lambda held_s, frames: told.append((held_s, frames))):
        await asyncio.sleep(0.2)
        assert not told
        hold_up(0.4)
        await asyncio.sleep(0.2)
    ((held_s, frames),) = told
    assert 0.2 < held_s < 2
    assert frames[0].endswith("hold_up")
    assert __file__ in frames[0]


async def test_many_short_ones_are_none():
    told = []
    with SlowCallbacks(0.2, lambda *slow: told.append(slow)):
        for _ in range(200):
            hold_up(0.002)
            await asyncio.sleep(0)
    assert not told
