"""What happened on the node: counted in memory, and written to a file that survives a kill."""

import enum
import os
import time
from collections import Counter, deque
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson

KEPT_EVENTS: Final = 10_000
"""How many events stay in memory; the counters go on."""


class EventKind(enum.StrEnum):
    """The moments of a job that a test or a person may want to count.

    ``PAID`` is money leaving the wallet, ``SETTLED`` the preimage coming back, ``UNPAID`` an attempt that failed.
    ``INVOICE`` and ``INVOICE_PAID`` belong to no job: the node asks for money, and gets it.
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


@dataclass(frozen=True, slots=True)
class Event:
    """One moment of a job; ids and hashes are hex, ``at`` is Unix seconds, ``detail`` says how it ended.

    Where there is no job, its id and model are empty, ``peer_id`` is the node's own, and ``price_msat`` what is asked
    for or what was paid.
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
    """Keeps the last events and counts all of them; with a path, appends each as a line of JSON at once."""

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
        """Note an event now. One write of one line, so that lines never mix and none is lost to a buffer."""
        event = Event(
            kind,
            job_id.hex(),
            payment_hash.hex(),
            peer_id,
            model,
            price_msat,
            fee_msat,
            time.time(),
            detail,
        )
        self.kept.append(event)
        self.counts[kind] += 1
        if self._file >= 0:
            os.write(self._file, orjson.dumps(event, option=orjson.OPT_APPEND_NEWLINE))

    def of(self, kind: EventKind) -> list[Event]:
        """Give the kept events of one kind, oldest first."""
        return [event for event in self.kept if event.kind is kind]

    def close(self) -> None:
        """Close the file. What is recorded afterwards is only counted."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
