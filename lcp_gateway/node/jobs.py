"""The jobs of the simulated node's clients, with their faults: facts of a job that its messages do not carry."""

import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Final

from lcp_gateway.node.faults import Fault
from lcp_gateway.node.lcp.messages import QuoteResponse

MAX_JOBS: Final = 20_000
_ID_BYTES: Final = 32


@dataclass(slots=True, eq=False)
class Job:
    """A quoted job. ``preimage`` is that of its invoice, ``fault`` what happens at its execution.

    ``left`` says whether money has left the wallet, ``expired`` whether its client was told that its quote has.
    """

    id: bytes
    peer_id: str
    model: str
    price_msat: int
    payment_hash: bytes
    preimage: bytes = field(repr=False)
    fault: Fault | None = None
    payment_request: str = ""
    fee_msat: int = 0
    left: bool = False
    expired: bool = False


@dataclass(slots=True, eq=False)
class _Asking:
    fault: Fault
    ids: list[bytes] = field(default_factory=list)
    over: bool = False


_asking: ContextVar[_Asking | None] = ContextVar("asking", default=None)


class Jobs:
    """Jobs by id and by payment hash; the oldest are dropped first."""

    def __init__(self, max_jobs: int = MAX_JOBS) -> None:
        self._max_jobs = max_jobs
        self._jobs: OrderedDict[bytes, Job] = OrderedDict()
        self._by_hash: dict[bytes, Job] = {}
        # By terms hash: the payment hash and the preimage of an invoice whose quote is on its way.
        self._invoices: OrderedDict[bytes, tuple[bytes, bytes]] = OrderedDict()
        self._asked: dict[bytes, _Asking] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def new_id(self) -> bytes:
        """Return 32 random bytes for the buyer; the fault that is being asked for belongs to them."""
        made = os.urandom(_ID_BYTES)
        asking = _asking.get()
        if asking is not None and not asking.over:
            asking.ids.append(made)
            self._asked[made] = asking
        return made

    @contextmanager
    def asking(self, fault: Fault | None) -> Iterator[None]:
        """Have the quote that is asked for in the block show a fault at its seller."""
        if fault is None:
            yield
            return
        asking = _Asking(fault)
        token = _asking.set(asking)
        try:
            yield
        finally:
            _asking.reset(token)
            asking.over = True
            for made in asking.ids:
                self._asked.pop(made, None)

    @property
    def has_quote_faults(self) -> bool:
        """Whether a quote that is being asked for has a fault."""
        return bool(self._asked)

    def quote_fault(self, job_id: bytes) -> Fault | None:
        """Return the fault of a quote that is being asked for."""
        asking = self._asked.get(job_id)
        return asking.fault if asking is not None else None

    def invoice_made(self, terms_hash: bytes, payment_hash: bytes, preimage: bytes) -> None:
        """Remember the invoice of a quote."""
        self._invoices[terms_hash] = payment_hash, preimage
        if len(self._invoices) > self._max_jobs:
            self._invoices.popitem(last=False)

    def add(self, peer_id: str, model: str, quote: QuoteResponse) -> Job:
        """Add a job that was quoted, and drop the oldest above the bound."""
        payment_hash, preimage = self._invoices.pop(quote.terms_hash, (b"", b""))
        job = self._jobs[quote.job_id] = Job(
            quote.job_id,
            peer_id,
            model,
            quote.price_msat,
            payment_hash,
            preimage,
            payment_request=quote.payment_request,
        )
        self._by_hash[payment_hash] = job
        if len(self._jobs) > self._max_jobs:
            _, oldest = self._jobs.popitem(last=False)
            if self._by_hash.get(oldest.payment_hash) is oldest:
                del self._by_hash[oldest.payment_hash]
        return job

    def find(self, peer_id: str, job_id: bytes) -> Job | None:
        """Return a job of a peer."""
        job = self._jobs.get(job_id)
        return job if job is not None and job.peer_id == peer_id else None

    def get(self, job_id: bytes) -> Job | None:
        """Return a job of any peer."""
        return self._jobs.get(job_id)

    def paid_by(self, payment_hash: bytes) -> Job | None:
        """Return the job whose invoice has that payment hash."""
        return self._by_hash.get(payment_hash)
