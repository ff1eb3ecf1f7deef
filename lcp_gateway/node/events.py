"""The node's events: counted in memory, and appended to a file that survives a kill."""

import enum
import os
import time
from collections import Counter, deque
from pathlib import Path
from typing import Final

import orjson

from lcp_gateway.node.jobs import Job
from lcp_gateway.values import value

KEPT_EVENTS: Final = 10_000
"""Events held in memory; the counters go on."""


class EventKind(enum.StrEnum):
    """The moments of a job.

    ``PAID`` is money leaving the wallet, ``SETTLED`` the preimage coming back, ``UNPAID`` an attempt that failed.
    ``INVOICE`` and ``INVOICE_PAID`` belong to no job: an invoice of the node was added, or paid.
    """

    QUOTE = "quote"
    ACCEPT = "accept"
    PAID = "paid"
    SETTLED = "settled"
    UNPAID = "unpaid"
    CANCEL = "cancel"
    RESULT = "result"
    INVOICE = "invoice"
    INVOICE_PAID = "invoice_paid"


@value
class Event:
    """One event; ids and hashes are hex, ``at`` is Unix seconds, ``detail`` says how a job ended.

    Without a job, its id and model are empty, ``peer_id`` is the node's own, and ``price_msat`` the invoice's amount.
    """

    kind: EventKind
    job_id: str
    payment_hash: str
    peer_id: str
    model: str
    price_msat: int
    fee_msat: int
    at: float
    detail: str = ""


class EventLog:
    """Holds the last events and counts all of them; with a path, appends each as a line of JSON at once."""

    def __init__(self, path: Path | None = None) -> None:
        self.kept: deque[Event] = deque(maxlen=KEPT_EVENTS)
        self.counts: Counter[EventKind] = Counter()
        self._file = -1
        if path is not None:
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def record(
        self,
        kind: EventKind,
        *,
        job_id: bytes,
        payment_hash: bytes,
        peer_id: str,
        model: str,
        price_msat: int,
        fee_msat: int = 0,
        detail: str = "",
    ) -> None:
        """Record an event now, in one write of one line, so that lines never mix and none is lost in a buffer."""
        event = Event(kind, job_id.hex(), payment_hash.hex(), peer_id, model, price_msat, fee_msat, time.time(), detail)
        self.kept.append(event)
        self.counts[kind] += 1
        if self._file >= 0:
            os.write(self._file, orjson.dumps(event, option=orjson.OPT_APPEND_NEWLINE))

    def record_job(self, kind: EventKind, job: Job, detail: str = "") -> None:
        """Record an event of a job, now."""
        self.record(
            kind,
            job_id=job.id,
            payment_hash=job.payment_hash,
            peer_id=job.peer_id,
            model=job.model,
            price_msat=job.price_msat,
            fee_msat=job.fee_msat,
            detail=detail,
        )

    def of(self, kind: EventKind) -> list[Event]:
        """Return the held events of one kind, oldest first."""
        return [event for event in self.kept if event.kind is kind]

    def close(self) -> None:
        """Close the file. Later events are only counted."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
