"""Runs `lcp-gateway node` whose answers wait after their first token until the file named by ``GATE`` exists."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Sequence
from functools import cache
from pathlib import Path

from lcp_gateway.cli import main
from lcp_gateway.node.compute import echo, echo_reply

GATE = "TEST_NODE_GATE"
_LOOK_EVERY_S = 0.05


@cache
def _opening() -> asyncio.Task[None]:
    """Return the shared task that waits for the file."""

    gate = Path(os.environ[GATE])

    async def look() -> None:
        while not await asyncio.to_thread(gate.exists):
            await asyncio.sleep(_LOOK_EVERY_S)

    return asyncio.create_task(look())


async def _gated(tokens: Sequence[str], tokens_per_second: float) -> AsyncIterator[str]:
    if tokens:
        yield tokens[0]
        await asyncio.shield(_opening())
    async for token in echo_reply.paced(tokens[1:], tokens_per_second):
        yield token


if __name__ == "__main__":
    echo.paced = _gated
    sys.exit(main())
