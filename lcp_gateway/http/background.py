"""Work that outlives its request: telling a peer that nobody waits any more."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from lcp_gateway.purchase.errors import UpstreamError

_MAX_UNDER_WAY = 1_000


class Background:
    """Runs short tasks, bounded in number; each bounds its own time."""

    def __init__(
        self,
        on_error: Callable[[UpstreamError], None],
        on_unexpected: Callable[[Exception], None] = lambda _error: None,
    ) -> None:
        """``on_unexpected`` hears of every error that is not the provider's."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._on_error = on_error
        self._on_unexpected = on_unexpected

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Start it, unless too many are under way already."""
        if len(self._tasks) >= _MAX_UNDER_WAY:
            work.close()
            return
        task = asyncio.create_task(self._run(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Wait for what is under way."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _run(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except UpstreamError as error:
            self._on_error(error)
        except Exception as error:  # noqa: BLE001 - no caller waits for it: it must not be lost
            self._on_unexpected(error)
