"""When fees are read from lnd: soon after a purchase, periodically, and again after an error."""

import asyncio
from contextlib import asynccontextmanager, suppress

import pytest

from lcp_gateway.lightning.lnd.payment_details import PaymentDetailsReader, ReadTimes
from lcp_gateway.lightning.lnd.records import LndError
from lcp_gateway.purchase.journal import JournalUnavailable

NEVER_S = 3_600.0
AWAY = LndError("UNAVAILABLE", "away", retryable=True)


class NothingMissing:
    """A repository in which no details are missing, and which counts its calls."""

    def __init__(self, *answers):
        self.asked = 0
        self.answers = list(answers)
        self.changed = asyncio.Event()

    async def any_missing(self):
        self.asked += 1
        self.changed.set()
        if self.answers:
            raise self.answers.pop(0)
        return False

    async def until(self, times):
        async with asyncio.timeout(60):
            while self.asked < times:
                self.changed.clear()
                await self.changed.wait()


@asynccontextmanager
async def learning(book, *, idle_s=NEVER_S, gather_s=0.0, **told):
    times = ReadTimes(gather_s=gather_s, idle_s=idle_s)
    learner = PaymentDetailsReader(None, book, times=times, **told)
    task = asyncio.create_task(learner.run())
    try:
        yield learner
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_a_pass_is_made_at_the_start_and_after_each_settled_purchase():
    book = NothingMissing()
    async with learning(book) as learner:
        await book.until(1)
        learner.settled()
        await book.until(2)
        learner.settled()
        await book.until(3)


async def test_purchases_that_settle_together_share_a_pass():
    book = NothingMissing()
    async with learning(book, gather_s=0.05) as learner:
        await book.until(1)
        for _ in range(50):
            learner.settled()
            await asyncio.sleep(0)
        await book.until(2)
        assert book.asked == 2


async def test_passes_are_made_without_purchases_too():
    book = NothingMissing()
    async with learning(book, idle_s=0.001):
        await book.until(5)


@pytest.mark.parametrize("error", [AWAY, JournalUnavailable("locked")])
async def test_after_an_error_of_lnd_or_the_journal_it_goes_on(error):
    book, told = NothingMissing(error, error), []
    async with learning(book, idle_s=0.001, on_error=told.append):
        await book.until(4)
    assert told == [error, error]


async def test_any_other_error_ends_it_for_its_supervisor_to_see():
    book = NothingMissing(ValueError("a bug"))
    learner = PaymentDetailsReader(None, book)
    with pytest.raises(ValueError, match="a bug"):
        await learner.run()
