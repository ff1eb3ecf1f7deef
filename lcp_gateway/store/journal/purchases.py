"""A purchase in the journal, and filters and pages of purchases."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

from sqlalchemy import RowMapping

from lcp_gateway.purchase.money import Charge, Markup, Msat, Refund
from lcp_gateway.purchase.order import TaskKind
from lcp_gateway.purchase.outcome import RULINGS, EndedBy, Received
from lcp_gateway.purchase.states import State
from lcp_gateway.store.database.times import from_micros, from_micros_or_none

_NOT_SHOWN = ("intent_no", "repeat_key", "repeat_body", "repeat_until")
"""Columns that serve the journal itself."""
CHARGE_COLUMNS = ("account_id", "charge_msat", "markup_ppm", "markup_msat", "refund_undelivered")
"""The columns of a charge, in the order of the parameters of ``charge_of``."""


@dataclass(frozen=True, slots=True)
class PurchaseRecord:
    """One purchase. Hashes are 32 bytes, times aware UTC; None means not known, or not yet.

    ``kind`` is a value of ``ProviderSource``: ``lcp`` of a Lightning peer, ``node`` of a virtual node, which sends no
    invoice. ``paying_at`` is the time of the intent. ``charge`` is None where no customer was charged; its amount is held
    while the purchase is open, and taken once it is settled. ``ended_by`` and ``received`` say how a paid purchase ended
    without a whole result, ``refund`` is the refund of its charge.
    """

    job_id: bytes
    payment_hash: bytes | None
    state: State
    kind: str
    task_kind: TaskKind
    model: str
    peer_id: str
    upstream: str
    key_id: str
    request_id: str
    price_msat: Msat
    fee_cap_msat: Msat
    fee_msat: Msat | None
    runner_up_msat: Msat | None
    terms_hash: bytes
    payment_request: str
    protocol_version: int
    request_sha256: bytes
    request_bytes: int
    stream: bool
    result_sha256: bytes | None
    result_bytes: int | None
    preimage: bytes | None
    expires_at: datetime
    paying_at: datetime
    ended_at: datetime | None
    updated_at: datetime
    owner: str
    charge: Charge | None = None
    ended_by: EndedBy | None = None
    received: Received | None = None
    refund: Refund | None = None

    @property
    def blames_provider(self) -> bool:
        """Whether the provider is to blame for the loss; also where it is not known how the purchase ended."""
        if self.state is not State.UNDELIVERED:
            return False
        if self.ended_by is None or self.received is None:
            return True
        return RULINGS[self.received][self.ended_by].blames_provider

    @property
    def charged_msat(self) -> Msat:
        """The amount taken from the customer: 0 while it is open, and where it was not paid or was refunded."""
        return Msat(0) if self.charge is None else self.charge.taken_msat(self.state)

    @property
    def cost_msat(self) -> Msat:
        """Price and fee: the real one where it is known, else the estimated one. Also where nothing was paid."""
        fee_msat = self.fee_cap_msat if self.fee_msat is None else self.fee_msat
        return Msat(self.price_msat + fee_msat)


@dataclass(frozen=True, slots=True)
class StateChange:
    """A state and when it was entered."""

    state: State
    at: datetime


@dataclass(frozen=True, slots=True)
class PurchaseCursor:
    """A place in the list of purchases: behind this one."""

    paying_at: datetime
    job_id: bytes


@dataclass(frozen=True, slots=True)
class PurchaseFilter:
    """Restrictions of a list of purchases. ``since`` is included, ``until`` is not; both refer to ``paying_at``."""

    states: Sequence[State] | None = None
    model: str | None = None
    peer_id: str | None = None
    key_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    refunds: Sequence[Refund] | None = None


@dataclass(frozen=True, slots=True)
class PurchasePage:
    """Some purchases, the newest first; ``after`` is the cursor of the next page, None at the end."""

    purchases: Sequence[PurchaseRecord]
    after: PurchaseCursor | None


def charge_of(
    account_id: str | None,
    charge_msat: int | None,
    markup_ppm: int | None,
    markup_msat: int | None,
    refund_undelivered: bool | int | None,
) -> Charge | None:
    """Return the charge of a row; None where no customer is charged."""
    if account_id is None:
        return None
    markup = _markup(markup_ppm or 0, markup_msat or 0)
    return Charge(account_id, Msat(charge_msat or 0), markup, bool(refund_undelivered))


# Many purchases have the same few mark-ups.
@lru_cache(maxsize=256)
def _markup(ppm: int, fixed_msat: int) -> Markup:
    return Markup(ppm, Msat(fixed_msat))


def record_of(row: RowMapping) -> PurchaseRecord:
    """Return a row of the table as a record."""
    values: dict[str, Any] = dict(row)
    for name in _NOT_SHOWN:
        del values[name]
    charge = charge_of(*map(values.pop, CHARGE_COLUMNS))
    for name, kind in (("ended_by", EndedBy), ("received", Received), ("refund", Refund)):
        values[name] = None if values[name] is None else kind(values[name])
    values.update(
        state=State(values["state"]),
        task_kind=TaskKind(values["task_kind"]),
        expires_at=from_micros(values["expires_at"]),
        paying_at=from_micros(values["paying_at"]),
        ended_at=from_micros_or_none(values["ended_at"]),
        updated_at=from_micros(values["updated_at"]),
        charge=charge,
    )
    return PurchaseRecord(**values)
