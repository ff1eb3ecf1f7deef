"""Short tasks after a request: limited in number, and every error is logged."""

import asyncio

from lcp_gateway.app.background_tasks import ShortTasks
from lcp_gateway.purchase.errors import UpstreamError


async def failing(error: Exception) -> None:
    raise error


async def test_provider_errors_and_unexpected_errors_are_both_logged():
    """Regression: a task that no caller awaits lost every error other than the one expected."""
    of_providers, unexpected = [], []
    background = ShortTasks(of_providers.append, unexpected.append)
    gone, bug = UpstreamError("UNAVAILABLE", "away"), OverflowError("a date that is none")
    for error in (gone, bug):
        background.start(failing(error))
    await background.close()
    await asyncio.sleep(0)
    assert (of_providers, unexpected) == ([gone], [bug])
