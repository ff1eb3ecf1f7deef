"""The pulse of the event loop: how late it runs what is due, the first sign of a gateway that is doing too much."""

import asyncio
from collections.abc import Callable


async def watch_loop(note_lag: Callable[[float], None], *, interval_s: float = 1.0) -> None:
    """Call ``note_lag`` with the lateness in seconds of a timer set every ``interval_s``, until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + interval_s
        await asyncio.sleep(interval_s)
        note_lag(max(0.0, loop.time() - due))
