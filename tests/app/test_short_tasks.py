"""Short work after a request: bounded in number, and none of its errors is lost."""

import asyncio

from lcp_gateway.app.background_tasks import ShortTasks
from lcp_gateway.purchase.errors import UpstreamError


async def failing(error: Exception) -> None:
    raise error


async def test_an_error_of_a_provider_and_one_that_was_not_foreseen_are_both_told():
    """A2: what no caller waits for ended without a trace where it was not the one error that was thought of."""
    of_providers, unexpected = [], []
    background = ShortTasks(of_providers.append, unexpected.append)
    gone, bug = UpstreamError("UNAVAILABLE", "away"), OverflowError("a date that is none")
    for error in (gone, bug):
        background.start(failing(error))
    await background.close()
    await asyncio.sleep(0)
    assert (of_providers, unexpected) == ([gone], [bug])
