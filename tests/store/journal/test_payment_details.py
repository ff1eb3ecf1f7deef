"""Fees and preimages are read from lnd's list of payments, and none is lost when lnd or the gateway fails."""

import asyncio
from datetime import UTC, datetime, timedelta

import grpc
import pytest

from lcp_gateway.lightning.lnd import payment_details
from lcp_gateway.lightning.lnd.client import LndClient
from lcp_gateway.lightning.lnd.payment_details import PaymentDetailsReader, ReadTimes
from lcp_gateway.lightning.lnd.records import LndError
from lcp_gateway.purchase.journal import JournalUnavailable
from lcp_gateway.purchase.quote import ProviderSource
from lcp_gateway.purchase.records import PurchaseFilter
from lcp_gateway.purchase.states import State
from lcp_gateway.store.database import cursors
from lcp_gateway.store.database.engines import open_database
from lcp_gateway.store.database.schema import HAS_NO_FEE
from lcp_gateway.store.journal.payment_details import PaymentDetails
from lcp_gateway.store.journal.recovery import resolve
from tests.store.journals import HOUR, charged, intent, job, spent, written
from tests.support.lnd_standin import LndStandin, Trouble, settled, unfinished

START = datetime.now(UTC) - timedelta(minutes=1)


class Clock:
    """A monotonic clock that the test sets."""

    def __init__(self):
        self.s = 1_000.0

    def __call__(self):
        return self.s


@pytest.fixture
async def node(tmp_path):
    standin = LndStandin(tmp_path)
    await standin.start()
    yield standin
    await standin.stop()


@pytest.fixture
async def lnd(node):
    async with LndClient(node.address, timeout_s=60) as client:
        yield client


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def learner(lnd, database, clock):
    """A learner that looks up a purchase missing from the list immediately, so that no test waits."""
    times = ReadTimes(settling_s=0, round_s=600)
    return PaymentDetailsReader(lnd, PaymentDetails(database), times=times, clock=clock)


async def pay(journal, *numbers, state=State.DELIVERED, at=START, **changes):
    """Buy: intend, settle, and go on to a state."""
    await asyncio.gather(*(journal.intend(intent(number, at=at, **changes)) for number in numbers))
    for number in numbers:
        if state is not State.PAYING:
            journal.record(job(number), State.SETTLED, datetime.now(UTC))
            if state is not State.SETTLED:
                journal.record(job(number), state, datetime.now(UTC))
    await written(journal)


async def fees(books, *numbers):
    page = await books.page(PurchaseFilter(), limit=1_000)
    records = {record.job_id: record for record in page.purchases}
    found = [records[job(number)] for number in numbers]
    assert all((it.fee_msat is None) is (it.preimage is None) for it in found)
    assert all(it.preimage in {None, job(number)} for it, number in zip(found, numbers, strict=True))
    return [it.fee_msat for it in found]


@pytest.mark.parametrize("state", [State.SETTLED, State.DELIVERED, State.UNDELIVERED])
async def test_a_paid_purchase_gets_its_fee_and_preimage(journal, books, node, learner, state):
    await pay(journal, 1, 2, state=state)
    node.knows(settled(job(1), fee_msat=7))
    node.knows(settled(job(2), fee_msat=0))
    assert (await learner.once()).recorded == 2
    assert await fees(books, 1, 2) == [7, 0]
    assert await spent(books, HOUR, START) == 2_007
    assert "TrackPaymentV2" not in node.calls


async def test_many_purchases_are_a_few_questions_and_not_one_each(journal, books, node, learner):
    """Regression: a look-up per purchase slowed purchases down."""
    numbers = range(250)
    for number in numbers:
        node.knows(settled(job(number), fee_msat=number))
    await pay(journal, *numbers)
    assert (await learner.once()).recorded == 250
    assert await fees(books, *numbers) == list(numbers)
    assert len(node.calls) <= 5 and "TrackPaymentV2" not in node.calls


async def test_lnd_is_not_asked_while_nothing_is_missing(journal, node, learner):
    assert (await learner.once()).recorded == 0
    await pay(journal, 1, state=State.PAYING)
    await pay(journal, "node", source=ProviderSource.NODE, payment_hash=None)
    await learner.once()
    assert node.calls == []


async def test_details_that_could_not_be_read_while_lnd_was_away_are_recorded_later(journal, books, node, learner):
    """Regression: a purchase left the queue before lnd was asked, and was never asked for again."""
    node.knows(settled(job(1), fee_msat=7))
    await pay(journal, 1)
    node.trouble = Trouble(grpc.StatusCode.UNAVAILABLE, "away")
    with pytest.raises(LndError):
        await learner.once()
    node.trouble = Trouble()
    await learner.once()
    assert await fees(books, 1) == [7]


async def test_another_gateway_after_a_restart_goes_on_from_where_the_last_one_was(
    journal, books, node, lnd, database, learner
):
    for number in range(5):
        node.knows(settled(job(number), fee_msat=number))
    await pay(journal, *range(5))
    await learner.once()
    node.knows(settled(job(5), fee_msat=5))
    await pay(journal, 5)
    asked = []

    class Listening(LndClient):
        async def payments_after(self, index, limit):
            asked.append(index)
            return await super().payments_after(index, limit)

    async with Listening(node.address, timeout_s=60) as again:
        await PaymentDetailsReader(again, PaymentDetails(database)).once()
    assert await fees(books, 5) == [5]
    assert asked == [5]


async def test_a_payment_that_settles_after_a_later_one_is_not_passed_over(journal, books, node, learner):
    held, later = job("held"), job("later")
    hash_of_held = intent("held").payment_hash
    node.knows(settled(job("first"), fee_msat=1))
    node.knows(unfinished(hash_of_held))
    node.knows(settled(later, fee_msat=2))
    await pay(journal, "first", "later")
    await pay(journal, "held", state=State.PAYING)
    await learner.once()
    assert await fees(books, "first", "later", "held") == [1, 2, None]
    node.payments[hash_of_held] = settled(held, fee_msat=3)
    journal.record(held, State.SETTLED, datetime.now(UTC))
    await written(journal)
    node.calls.clear()
    await learner.once()
    assert await fees(books, "held") == [3]
    assert "TrackPaymentV2" not in node.calls


async def test_a_payment_held_for_long_is_looked_up_by_its_hash_without_reading_the_list_again(
    journal, books, node, database, learner, clock
):
    hash_of_held = intent("held").payment_hash
    node.knows(unfinished(hash_of_held))
    await pay(journal, "held", state=State.PAYING)
    for number in range(3):
        node.knows(settled(job(number), fee_msat=number))
        await pay(journal, number)
        await learner.once()
        clock.s += 31
    at = await database.read(lambda connection: cursors.get(connection, cursors.payments_of(node.identity)))
    assert at == 4
    node.payments[hash_of_held] = settled(job("held"), fee_msat=9)
    journal.record(job("held"), State.SETTLED, datetime.now(UTC))
    await written(journal)
    summary = await learner.once()
    assert (summary.recorded, summary.looked_up) == (1, 1)
    assert await fees(books, "held") == [9]


async def test_payments_of_others_are_none_of_the_gateways(journal, books, node, learner):
    odd = settled(b"\x77" * 32)
    odd.payment_preimage = "short"
    for number in range(3):
        node.knows(settled(bytes([number]) * 32, fee_msat=1))
        node.knows(unfinished(bytes([100 + number]) * 32))
    node.knows(odd)
    node.knows(settled(job(1), fee_msat=7))
    await pay(journal, 1)
    assert (await learner.once()).recorded == 1
    assert await fees(books, 1) == [7]


async def test_a_list_of_many_pages_is_read_to_its_end(journal, books, node, learner, monkeypatch):
    monkeypatch.setattr(payment_details, "PAGE", 3)
    node.knows(settled(job(0), fee_msat=0))
    await pay(journal, 0)
    await learner.once()
    for number in range(1, 20):
        node.knows(settled(job(number), fee_msat=number))
    await pay(journal, *range(1, 20))
    assert (await learner.once()).pages == 7
    assert await fees(books, *range(20)) == list(range(20))


async def test_an_lnd_that_was_never_followed_is_read_back_to_the_oldest_missing_purchase_only(
    journal, books, node, learner, monkeypatch
):
    monkeypatch.setattr(payment_details, "PAGE", 4)
    old_ns = int((START - timedelta(days=3)).timestamp()) * 10**9
    for number in range(40):
        payment = settled(bytes([200, number]) + b"\x00" * 30)
        payment.creation_time_ns = old_ns
        node.knows(payment)
    for number in range(6):
        node.knows(settled(job(number), fee_msat=number))
    await pay(journal, *range(6))
    summary = await learner.once()
    assert (summary.recorded, summary.pages) == (6, 2)
    assert await fees(books, *range(6)) == list(range(6))


async def test_the_list_of_a_restored_lnd_is_read_from_its_beginning(journal, books, node, learner):
    for number in range(8):
        node.knows(settled(job(number), fee_msat=number))
    await pay(journal, *range(8))
    await learner.once()
    node.payments.clear()
    node.knows(settled(job("new"), fee_msat=5))
    await pay(journal, "new")
    node.calls.clear()
    await learner.once()
    assert await fees(books, "new") == [5]
    assert "TrackPaymentV2" not in node.calls


async def test_two_jobs_of_one_payment_are_one_fee(journal, books, node, learner):
    of_first = intent("first").payment_hash
    await pay(journal, "first", at=START)
    await pay(journal, "second", at=START + timedelta(seconds=1), payment_hash=of_first)
    node.knows(settled(job("first"), fee_msat=7))
    await learner.once()
    found = [await books.purchase(job(it)) for it in ("first", "second")]
    assert [it.fee_msat for it in found] == [7, 0]
    assert (await learner.once()).is_waiting is False


async def test_a_preimage_that_does_not_fit_proves_nothing(journal, books, node, learner):
    lie = settled(job(1), fee_msat=7)
    lie.payment_preimage = "ab" * 32
    node.knows(lie)
    await pay(journal, 1)
    assert (await learner.once()).recorded == 0
    assert await fees(books, 1) == [None]


async def test_a_macaroon_that_may_not_list_learns_one_by_one(journal, books, node, lnd, database, clock):
    class MayNotList(LndClient):
        async def payments_before(self, index, limit):
            raise LndError("UNKNOWN", "permission denied", retryable=False)

    node.knows(settled(job(1), fee_msat=7))
    await pay(journal, 1)
    async with MayNotList(node.address, timeout_s=60) as limited:
        learner = PaymentDetailsReader(limited, PaymentDetails(database), times=ReadTimes(settling_s=0), clock=clock)
        with pytest.raises(LndError, match="permission denied"):
            await learner.once()
    assert await fees(books, 1) == [7]


async def test_purchases_without_a_fee_although_lnd_was_asked_are_counted(journal, books, node, lnd, database, clock):
    told = []
    learner = PaymentDetailsReader(
        lnd, PaymentDetails(database), on_missing=told.append, times=ReadTimes(settling_s=0), clock=clock
    )
    await learner.once()
    await pay(journal, 1, 2, 3)
    node.knows(settled(job(1)))
    await learner.once()
    assert (told[0], told[-1]) == (0, 2)
    clock.s += 60
    for number in (2, 3):
        node.knows(settled(job(number)))
    await learner.once()
    assert told[-1] == 0


async def test_payments_unknown_to_lnd_are_looked_up_seldom_and_block_no_other(journal, books, node, learner, clock):
    """Purchases of another lnd, or payments that were deleted there."""
    await pay(journal, *range(30))
    for _ in range(5):
        await learner.once()
        clock.s += 2
    assert node.calls.count("TrackPaymentV2") == 30
    node.knows(settled(job("ours"), fee_msat=7))
    await pay(journal, "ours")
    await learner.once()
    assert await fees(books, "ours") == [7]
    clock.s += 60
    await learner.once()
    assert node.calls.count("TrackPaymentV2") == 50


async def test_old_purchases_without_a_fee_are_gone_through_in_rounds(journal, books, node, lnd, database, clock):
    await pay(journal, *range(45))
    node.knows(settled(bytes(32)))
    later = datetime.now(UTC) + timedelta(days=1)
    learner = PaymentDetailsReader(lnd, PaymentDetails(database), now=lambda: later, clock=clock)
    tracked = []
    for _ in range(5):
        await learner.once()
        tracked.append(node.calls.count("TrackPaymentV2"))
    assert tracked == [20, 40, 45, 45, 45]
    # Recorded after the list was read past it: looked up by its hash in the next round.
    known_late = {intent(44).payment_hash: settled(job(44), fee_msat=4)}
    node.payments = known_late
    clock.s += 600
    for _ in range(3):
        await learner.once()
    assert await fees(books, 44) == [4]


async def test_an_unknown_purchase_is_the_reconcilers_and_gets_its_fee_once_it_is_resolved_by_hand(
    journal, books, database, node, learner
):
    node.knows(settled(job(1), fee_msat=7))
    await journal.intend(intent(1, at=START))
    journal.record(job(1), State.UNKNOWN, datetime.now(UTC))
    await pay(journal, 2)
    node.knows(settled(job(2), fee_msat=8))
    await learner.once()
    assert await fees(books, 1, 2) == [None, 8]
    await resolve(database, job(1), State.SETTLED, datetime.now(UTC))
    await learner.once()
    assert await fees(books, 1) == [7]


async def test_customers_are_charged_as_before(journal, books, node, learner, customer, ledger):
    account = await customer(10_000)
    await journal.intend(charged(1, account, at=START))
    journal.record(job(1), State.SETTLED, datetime.now(UTC))
    await written(journal)
    node.knows(settled(job(1), fee_msat=7))
    await learner.once()
    assert await fees(books, 1) == [7]
    assert (await ledger.balance(account)).balance_msat == 8_950
    assert (await ledger.audit()).ok


async def test_two_gateways_that_learn_at_once_learn_each_fee_once(journal, books, database, node, clock):
    for number in range(100):
        node.knows(settled(job(number), fee_msat=5))
    await pay(journal, *range(100))
    async with LndClient(node.address, timeout_s=60) as one, LndClient(node.address, timeout_s=60) as other:
        await asyncio.gather(*(PaymentDetailsReader(it, PaymentDetails(database)).once() for it in (one, other)))
    assert await spent(books, HOUR, START) == 100 * 1_005


async def test_where_the_journal_cannot_be_written_nothing_is_passed_over(journal, books, node, lnd, database, clock):
    class Unwritable(PaymentDetails):
        async def learn(self, *args, **kwargs):
            raise JournalUnavailable("locked")

    node.knows(settled(job(1), fee_msat=7))
    await pay(journal, 1)
    with pytest.raises(JournalUnavailable):
        await PaymentDetailsReader(lnd, Unwritable(database)).once()
    await PaymentDetailsReader(lnd, PaymentDetails(database)).once()
    assert await fees(books, 1) == [7]


async def test_missing_details_are_found_by_an_index(sqlite_where):
    """The query runs every few seconds, and the journal may be large."""
    # PostgreSQL describes plans differently, and uses no index for an empty table.
    database = await open_database(sqlite_where)
    query = "EXPLAIN QUERY PLAN SELECT job_id FROM purchases WHERE {} ORDER BY updated_at LIMIT 1"
    plan = await database.read(lambda connection: str(connection.exec_driver_sql(query.format(HAS_NO_FEE.text)).all()))
    assert "ix_purchases_no_fee" in plan and "SCAN purchases USING" in plan
    assert "TEMP B-TREE" not in plan
    await database.close()
