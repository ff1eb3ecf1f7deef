"""Reads the fees and preimages of settled purchases from lnd, in batches, beside the purchases.

The journal holds the missing ones: purchases that were paid and have no fee. So none is lost when the gateway restarts
or lnd is unreachable. lnd's list of payments is read on from its last position; a payment that was skipped there,
because it was in flight for long, is looked up by its hash.

No I/O of its own: it is given lnd and the journal.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Final, Protocol

from lcp_gateway.clock import utc_now
from lcp_gateway.lightning.lnd.records import LndError, LndInfo, PaymentPage, PaymentRecord, PaymentState
from lcp_gateway.purchase.journal import JournalUnavailable, PurchaseUpdate
from lcp_gateway.purchase.money import Msat

PAGE: Final = 200
"""Payments a page: few enough that reading them does not hold up the event loop."""

_MAX_PAGES = 50
_MAX_CATCH_UP_PAGES = 5_000
_CLOCK_MARGIN = timedelta(hours=1)
_LOOKED_AT = 200
_MAX_DOUBLINGS = 10
_LARGEST_FEE_MSAT = 1 << 53


@dataclass(frozen=True, slots=True)
class MissingDetails:
    """A paid purchase without fee and preimage; ``updated_at`` is when its row last changed, aware UTC."""

    job_id: bytes
    payment_hash: bytes
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class FoundDetails:
    """The fee and preimage of a purchase, to be recorded."""

    job_id: bytes
    update: PurchaseUpdate


class PaymentSource(Protocol):
    """lnd's payments. Each call raises ``LndError`` when there is no answer."""

    async def info(self) -> LndInfo:
        """Return lnd's identity."""
        ...

    async def payment(self, payment_hash: bytes) -> PaymentRecord:
        """Return one payment."""
        ...

    async def payments_after(self, index: int, limit: int) -> PaymentPage:
        """Return the payments with a larger index, oldest first."""
        ...

    async def payments_before(self, index: int, limit: int) -> PaymentPage:
        """Return the last payments with a smaller index, or of all for 0; oldest first."""
        ...


class PaymentDetailsStore(Protocol):
    """The journal, as far as fees and preimages go. Each call raises ``JournalUnavailable`` when it cannot be used."""

    async def any_missing(self) -> bool:
        """Return whether there is a paid purchase without a fee."""
        ...

    async def oldest_missing(self) -> datetime | None:
        """Return when the oldest of them was paid."""
        ...

    async def awaited(self, hashes: Sequence[bytes]) -> Mapping[bytes, Sequence[bytes]]:
        """Return the jobs of these payments that have no fee, or none yet; the job that made the payment comes first.

        Several jobs can share one payment: all but the first cost no fee. Where the first has its
        fee, an empty ``bytes`` takes its place.
        """
        ...

    async def missing(self, since: datetime, until: datetime, *, after: bytes, limit: int) -> Sequence[MissingDetails]:
        """Return paid purchases without a fee whose rows changed in that time, in order of time and job."""
        ...

    async def followed(self, node_id: str) -> int:
        """Return the index up to which a node's payments were read; 0 where none were."""
        ...

    async def learn(self, found: Sequence[FoundDetails], at: datetime, *, node_id: str, followed: int | None) -> None:
        """Record the details found, and with them the position in the node's list of payments."""
        ...

    async def restart_following(self, node_id: str) -> None:
        """Drop the position in the node's list of payments."""
        ...


@dataclass(frozen=True, slots=True)
class ReadTimes:
    """The times of passes and look-ups; all in seconds.

    A pass follows ``gather_s`` after a purchase was settled, so that those which settle meanwhile share it, and every
    ``idle_s`` in any case. A payment in flight holds the position in the list for ``in_flight_s``, and is skipped then;
    a purchase is looked up every ``again_s`` for ``recent_s``. All older ones are looked up once in ``round_s``.
    ``settling_s`` leaves time for the list.
    """

    gather_s: float = 2.0
    idle_s: float = 30.0
    settling_s: float = 5.0
    in_flight_s: float = 30.0
    recent_s: float = 600.0
    again_s: float = 30.0
    round_s: float = 600.0
    at_once: int = 20


@dataclass(slots=True)
class ReadSummary:
    """The outcome of one pass: ``recorded`` purchases, of which ``looked_up`` one by one; ``pages`` were read.

    ``is_waiting`` says that a recent purchase is still missing, ``missing`` how many the list should have held.
    """

    recorded: int = 0
    is_waiting: bool = False
    missing: int = 0
    looked_up: int = 0
    pages: int = 0


class PaymentDetailsReader:
    """Reads the fees and preimages of paid purchases. To be used on one event loop; ``run`` is a task of its own."""

    def __init__(
        self,
        lnd: PaymentSource,
        book: PaymentDetailsStore,
        *,
        on_pass: Callable[[ReadSummary], None] = lambda _summary: None,
        on_error: Callable[[Exception], None] = lambda _error: None,
        on_missing: Callable[[int], None] = lambda _count: None,
        times: ReadTimes = ReadTimes(),
        now: Callable[[], datetime] = utc_now,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``on_error`` gets the error of lnd or the journal that ended a pass; the next one follows anyway.

        ``on_missing`` gets the number of recent purchases without a fee, a few hundred at most.
        """
        self._lnd = lnd
        self._book = book
        self._on_pass = on_pass
        self._on_error = on_error
        self._on_missing = on_missing
        self._times = times
        self._now = now
        self._clock = clock
        self._settled = asyncio.Event()
        # Since when each payment in flight holds the position in the list, by its index.
        self._in_flight: dict[int, float] = {}
        self._looked_up: dict[bytes, float] = {}
        self._round: tuple[datetime, bytes] | None = None
        self._next_round = 0.0

    def settled(self) -> None:
        """Start a pass soon: a purchase was paid. Costs the purchase no time."""
        self._settled.set()

    async def run(self) -> None:
        """Make passes until cancelled."""
        failures = 0
        while True:
            self._settled.clear()
            try:
                summary = await self.once()
            except (LndError, JournalUnavailable) as error:
                self._on_error(error)
                # lnd is called again soon after a restart, and rarely during a long outage.
                pause_s = min(self._times.idle_s, self._times.settling_s * 2.0**failures)
                failures = min(failures + 1, _MAX_DOUBLINGS)
            else:
                self._on_pass(summary)
                failures = 0
                pause_s = self._times.settling_s if summary.is_waiting else self._times.idle_s
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._settled.wait()
            await asyncio.sleep(self._times.gather_s)

    async def once(self) -> ReadSummary:
        """Make one pass. lnd is not called where nothing is missing.

        Raises:
            LndError: lnd did not answer; details read before are recorded.
            JournalUnavailable: the journal cannot be read or written.
        """
        summary = ReadSummary()
        if not await self._book.any_missing():
            self._on_missing(0)
            return summary
        failed: LndError | None = None
        try:
            await self._follow(summary)
        except LndError as error:
            # A macaroon may allow looking up and not listing: that is tried, and fails as well where lnd is away.
            failed = error
        await self._look_up_missing(summary)
        if failed is not None:
            raise failed
        return summary

    # -- in batches -----------------------------------------------------------------------------------

    async def _follow(self, summary: ReadSummary) -> None:
        """Read lnd's list on from its position, and record the details in it."""
        node_id = (await self._lnd.info()).identity
        followed = await self._book.followed(node_id)
        if followed == 0:
            await self._catch_up(summary, node_id)
            return
        reading = _ListPosition(followed)
        seen: set[int] = set()
        for _ in range(_MAX_PAGES):
            page = await self._lnd.payments_after(reading.read_to, PAGE)
            summary.pages += 1
            if not page.count:
                break
            found = await self._read(page, reading, seen)
            await self._learn(summary, found, node_id, reading.done_to)
            reading.read_to = page.last_index
            if page.count < PAGE:
                break
        self._in_flight = {index: at for index, at in self._in_flight.items() if index in seen}
        if reading.read_to == followed and await self._is_shorter(followed):
            # lnd was restored and counts from the beginning: its list is read from there too.
            await self._book.restart_following(node_id)
            await self._catch_up(summary, node_id)

    async def _is_shorter(self, followed: int) -> bool:
        newest = await self._lnd.payments_before(0, 1)
        return newest.last_index < followed

    async def _catch_up(self, summary: ReadSummary, node_id: str) -> None:
        """Read the list of an lnd for the first time: from its end, back to before the oldest missing purchase."""
        oldest = await self._book.oldest_missing()
        if oldest is None:
            return
        before, newest, seen = 0, 0, set[int]()
        first_in_flight: int | None = None
        for _ in range(_MAX_CATCH_UP_PAGES):
            page = await self._lnd.payments_before(before, PAGE)
            summary.pages += 1
            if not page.count:
                break
            newest = newest or page.last_index
            reading = _ListPosition(page.first_index - 1)
            found = await self._read(page, reading, seen)
            if reading.is_held:
                first_in_flight = reading.done_to
            await self._learn(summary, found, node_id, None)
            before = page.first_index
            began = min((it.created_at for it in page.records() if it.created_at), default=None)
            if page.count < PAGE or (began is not None and began < oldest - _CLOCK_MARGIN):
                break
        followed = newest if first_in_flight is None else first_in_flight
        if followed > 0:
            await self._book.learn((), self._now(), node_id=node_id, followed=followed)

    async def _read(self, page: PaymentPage, reading: "_ListPosition", seen: set[int]) -> Sequence[FoundDetails]:
        """Return the details of missing purchases in a page; ``reading`` advances to the first that may settle soon."""
        open_or_paid = {PaymentState.SETTLED, PaymentState.IN_FLIGHT}
        hashes = {it.payment_hash for it in page.records() if it.state in open_or_paid}
        awaited = await self._book.awaited(sorted(hashes)) if hashes else {}
        found: list[FoundDetails] = []
        for index, record in page.payments:
            jobs = awaited.get(record.payment_hash, ())
            if jobs and record.state is PaymentState.IN_FLIGHT:
                seen.add(index)
                since = self._in_flight.setdefault(index, self._clock())
                if self._clock() - since < self._times.in_flight_s:
                    reading.is_held = True
            elif jobs:
                found += _details(record, jobs)
            if not reading.is_held:
                reading.done_to = index
        if not reading.is_held:
            reading.done_to = page.last_index
        return found

    async def _learn(
        self, summary: ReadSummary, found: Sequence[FoundDetails], node_id: str, followed: int | None
    ) -> None:
        await self._book.learn(found, self._now(), node_id=node_id, followed=followed)
        summary.recorded += len(found)

    # -- one by one -----------------------------------------------------------------------------------

    async def _look_up_missing(self, summary: ReadSummary) -> None:
        """Look up purchases that the list did not hold: few at once, the recent ones first."""
        now, times = self._now(), self._times
        recent_since = now - timedelta(seconds=times.recent_s)
        recent = await self._book.missing(
            recent_since, now - timedelta(seconds=times.settling_s), after=b"", limit=_LOOKED_AT
        )
        self._on_missing(len(recent))
        clock = self._clock()
        self._looked_up = {it.job_id: self._looked_up[it.job_id] for it in recent if it.job_id in self._looked_up}
        due = [it for it in recent if clock - self._looked_up.get(it.job_id, -times.again_s) >= times.again_s][
            : times.at_once
        ]
        for it in due:
            self._looked_up[it.job_id] = clock
        await self._look_up(summary, due)
        waiting = await self._book.missing(recent_since, now, after=b"", limit=_LOOKED_AT)
        settled_by = now - timedelta(seconds=times.settling_s)
        summary.is_waiting = bool(waiting)
        summary.missing = sum(it.updated_at < settled_by for it in waiting)
        self._on_missing(summary.missing)
        await self._look_up(summary, await self._next_of_round(recent_since, times.at_once))

    async def _next_of_round(self, until: datetime, limit: int) -> Sequence[MissingDetails]:
        """Return the next of the older ones, in rounds."""
        if self._round is None and self._clock() < self._next_round:
            return ()
        since, after = self._round or (datetime.fromtimestamp(0, UTC), b"")
        found = await self._book.missing(since, until, after=after, limit=limit)
        if len(found) < limit:
            self._round, self._next_round = None, self._clock() + self._times.round_s
        else:
            self._round = (found[-1].updated_at, found[-1].job_id)
        return found

    async def _look_up(self, summary: ReadSummary, missing: Iterable[MissingDetails]) -> None:
        for it in missing:
            record = await self._lnd.payment(it.payment_hash)
            if record.state is not PaymentState.SETTLED:
                continue
            jobs = (await self._book.awaited([it.payment_hash])).get(it.payment_hash, ())
            found = _details(record, jobs)
            if found:
                await self._book.learn(found, self._now(), node_id="", followed=None)
                summary.recorded += len(found)
                summary.looked_up += 1


@dataclass(slots=True)
class _ListPosition:
    """A position in the list: ``read_to`` in this pass, ``done_to`` for good, which payments in flight hold back."""

    read_to: int
    done_to: int = 0
    is_held: bool = False

    def __post_init__(self) -> None:
        self.done_to = self.read_to


def _details(record: PaymentRecord, jobs: Sequence[bytes]) -> list[FoundDetails]:
    """Return the details of a settled payment's jobs; none where its preimage or its fee is wrong."""
    fee_msat, preimage = record.fee_msat, record.preimage
    if (
        record.state is not PaymentState.SETTLED
        or fee_msat is None
        or not 0 <= fee_msat < _LARGEST_FEE_MSAT
        or preimage is None
        or sha256(preimage).digest() != record.payment_hash
    ):
        return []
    return [
        FoundDetails(job_id, PurchaseUpdate(fee_msat=Msat(0) if place else Msat(fee_msat), preimage=preimage))
        for place, job_id in enumerate(jobs)
        if job_id
    ]
