"""A row of purchases as a record."""

from functools import lru_cache
from typing import Any

from sqlalchemy import RowMapping

from lcp_gateway.purchase.money import Charge, Markup, Msat, Refund
from lcp_gateway.purchase.order import TaskKind
from lcp_gateway.purchase.outcome import EndedBy, Received
from lcp_gateway.purchase.records import PurchaseRecord
from lcp_gateway.purchase.states import State
from lcp_gateway.store.database.times import from_micros, from_micros_or_none

_NOT_SHOWN = ("intent_no", "repeat_key", "repeat_body", "repeat_until")
"""Columns that serve the journal itself."""
CHARGE_COLUMNS = ("account_id", "charge_msat", "markup_ppm", "markup_msat", "refund_undelivered")
"""The columns of a charge, in the order of the parameters of ``charge_of``."""


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
        unknown_at=from_micros_or_none(values["unknown_at"]),
        settled_at=from_micros_or_none(values["settled_at"]),
        charge=charge,
    )
    return PurchaseRecord(**values)
