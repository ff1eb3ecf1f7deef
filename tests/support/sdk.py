"""One test for both of the SDK's clients: results of the async one are awaited."""

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import Any

# The interval of polling a background job.
_POLL_S = 0.05


async def done(given: Any) -> Any:
    """Return the result of a call."""
    return await given if inspect.isawaitable(given) else given


async def every(given: Any) -> list:
    """Return all that a stream has, or all items of a list over all its pages."""
    # The async client's lists are awaitable too, and would then give one page.
    found = given if hasattr(given, "__aiter__") else await done(given)
    if hasattr(found, "__aiter__"):
        return [one async for one in found]
    return list(found)


async def polled(client: Any, response_id: str, is_there: Callable[[Any], bool], timeout_s: float = 60.0) -> Any:
    """Poll a response until the condition holds; return it."""
    deadline = time.monotonic() + timeout_s
    while not is_there(found := await done(client.responses.retrieve(response_id))):
        assert time.monotonic() < deadline, f"still {found.status}"
        await asyncio.sleep(_POLL_S)
    return found


async def completed(client: Any, response_id: str) -> Any:
    """Wait until a background response has completed."""
    found = await polled(client, response_id, lambda it: it.status not in {"queued", "in_progress"})
    assert found.status == "completed", found
    return found
