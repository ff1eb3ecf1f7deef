"""One test for both of the SDK's clients: what the async one gives is awaited, what the sync one gives is there."""

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import Any

# What runs in the background is asked after so often.
_POLL_S = 0.05


async def done(given: Any) -> Any:
    """Return what a call came to."""
    return await given if inspect.isawaitable(given) else given


async def every(given: Any) -> list:
    """Return all that a stream has, or all items of a list over all its pages."""
    # The async client's lists are awaitable too, and would then give one page.
    found = given if hasattr(given, "__aiter__") else await done(given)
    if hasattr(found, "__aiter__"):
        return [one async for one in found]
    return list(found)


async def polled(
    client: Any, response_id: str, is_there: Callable[[Any], bool], timeout_s: float = 60.0
) -> Any:
    """Retrieve a response until it is as wanted; return it."""
    deadline = time.monotonic() + timeout_s
    while not is_there(found := await done(client.responses.retrieve(response_id))):
        assert time.monotonic() < deadline, f"still {found.status}"
        await asyncio.sleep(_POLL_S)
    return found


async def completed(client: Any, response_id: str) -> Any:
    """Wait for a response in the background to come to an end, which has to be a good one."""
    found = await polled(client, response_id, lambda it: it.status not in {"queued", "in_progress"})
    assert found.status == "completed", found
    return found
