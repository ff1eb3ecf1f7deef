"""Invented purchases, with valid terms and invoices, written into a real journal."""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

from coincurve import PrivateKey

from lcp_gateway.lightning import bolt11
from lcp_gateway.lightning.terms import terms_hash
from lcp_gateway.purchase.journal import Intent, PurchaseUpdate
from lcp_gateway.purchase.money import Msat
from lcp_gateway.purchase.order import TaskKind
from lcp_gateway.purchase.quote import Quote
from lcp_gateway.purchase.states import State
from lcp_gateway.store.database.engines import open_database
from lcp_gateway.store.journal.writer import JournalWriter

KEY = PrivateKey(b"\x01" * 32)
PEER = KEY.public_key.format().hex()
NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
RESULT = b'{"choices":[]}'


@dataclass(frozen=True)
class Bought:
    """One purchase; its amount is ``price_msat`` and an estimated fee of 10 msat, unless ``fee_msat`` is known."""

    number: int
    state: State = State.DELIVERED
    price_msat: int = 1_000
    model: str = "m"
    key_id: str = ""
    at: datetime = NOW
    fee_msat: int | None = None

    @property
    def job_id(self) -> bytes:
        return sha256(f"job {self.number}".encode()).digest()

    @property
    def preimage(self) -> bytes:
        return sha256(f"preimage {self.number}".encode()).digest()

    @property
    def request(self) -> bytes:
        return b'{"model":"%s","messages":[%d]}' % (self.model.encode(), self.number)

    @property
    def quote(self) -> Quote:
        expires_at = self.at + timedelta(seconds=300)
        terms = terms_hash(
            protocol_version=2,
            job_id=self.job_id,
            price_msat=self.price_msat,
            quote_expiry=int(expires_at.timestamp()),
            task_kind=TaskKind.CHAT_COMPLETIONS,
            request=self.request,
            model=self.model,
        )
        payment_request = bolt11.encode(
            KEY,
            network="bcrt",
            timestamp=int(self.at.timestamp()),
            payment_hash=sha256(self.preimage).digest(),
            payment_secret=b"\x44" * 32,
            amount_msat=Msat(self.price_msat),
            description_hash=terms,
            expiry_s=300,
        )
        return Quote(PEER, self.job_id, Msat(self.price_msat), expires_at, terms, payment_request, 2)

    @property
    def intent(self) -> Intent:
        return Intent(
            quote=self.quote,
            kind=TaskKind.CHAT_COMPLETIONS,
            model=self.model,
            stream=False,
            request_id=f"req-{self.number}",
            key_id=self.key_id,
            request_sha256=sha256(self.request).digest(),
            request_bytes=len(self.request),
            payment_hash=sha256(self.preimage).digest(),
            fee_cap_msat=Msat(10),
            runner_up_msat=None,
            at=self.at,
        )


_STEPS = {
    State.PAYING: (),
    State.UNKNOWN: (State.UNKNOWN,),
    State.NOT_PAID: (State.NOT_PAID,),
    State.SETTLED: (State.SETTLED,),
    State.DELIVERED: (State.SETTLED, State.DELIVERED),
    State.UNDELIVERED: (State.SETTLED, State.UNDELIVERED),
}


async def write(where: Path | str, *bought: Bought) -> None:
    """Write purchases as a gateway does, and close the journal."""
    problems = []
    database = await open_database(where)
    journal = JournalWriter(database, on_problem=problems.append)
    journal.start()
    for one in bought:
        await journal.intend(one.intent)
        for step in _STEPS[one.state]:
            journal.record(one.job_id, step, one.at + timedelta(seconds=1), _update_of(one, step))
    await journal.close()
    await database.close()
    assert problems == []


def written(where: Path | str, *bought: Bought) -> None:
    """Write purchases where no event loop runs."""
    asyncio.run(write(where, *bought))


def _update_of(one: Bought, step: State) -> PurchaseUpdate:
    if step is State.DELIVERED:
        return PurchaseUpdate(sha256(RESULT).digest(), len(RESULT))
    if step is State.SETTLED and one.fee_msat is not None:
        return PurchaseUpdate(fee_msat=Msat(one.fee_msat), preimage=one.preimage)
    return PurchaseUpdate()
