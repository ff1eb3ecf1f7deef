"""A row of purchases in one transaction of the journal: found and locked, changed by what became known, and written back."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import BindParameter, Connection, Select, bindparam, func, insert, select, update

from lcp_gateway.purchase.journal import Intent, PurchaseUpdate, RepeatIdentity
from lcp_gateway.purchase.money import Charge, Markup, Msat
from lcp_gateway.purchase.quote import ProviderSource
from lcp_gateway.purchase.states import State
from lcp_gateway.store.database.schema import OPEN_STATES, purchases
from lcp_gateway.store.database.statements import execute_in, execute_many
from lcp_gateway.store.database.times import to_micros

_NOTHING_TAKEN = frozenset({*OPEN_STATES, State.NOT_PAID})
_UPSTREAMS = {ProviderSource.LCP: "lcpd", ProviderSource.NODE: "openai_http"}


_NO_CHARGE: dict[str, object] = dict.fromkeys(
    ("account_id", "charge_msat", "markup_ppm", "markup_msat", "refund_undelivered")
)
_NO_REPEAT: dict[str, object] = dict.fromkeys(("repeat_key", "repeat_body", "repeat_until"))


def _lock(parameters: Sequence[Sequence[BindParameter[Any]]]) -> Select[*tuple[Any, ...]]:
    (job_ids,) = parameters
    return (
        select(
            purchases.c.job_id,
            purchases.c.state,
            purchases.c.owner,
            purchases.c.intent_no,
            purchases.c.key_id,
            purchases.c.price_msat,
            purchases.c.fee_cap_msat,
            purchases.c.fee_msat,
            purchases.c.result_sha256,
            purchases.c.result_bytes,
            purchases.c.preimage,
            purchases.c.paying_at,
            purchases.c.ended_at,
            purchases.c.account_id,
            purchases.c.charge_msat,
            purchases.c.markup_ppm,
            purchases.c.markup_msat,
            purchases.c.refund_undelivered,
            purchases.c.ended_by,
            purchases.c.received,
            purchases.c.refund,
        )
        .where(purchases.c.job_id.in_(job_ids))
        # Always in the same order, or two gateways would wait for each other.
        .order_by(purchases.c.job_id)
        .with_for_update()
    )


_INSERT = insert(purchases)
_MOVE = (
    update(purchases)
    .where(
        purchases.c.job_id == bindparam("of_job"),
        # The row is locked and the move was checked against the table of states; this holds even if neither did.
        purchases.c.state == bindparam("from_state"),
    )
    .values(
        state=bindparam("to_state"),
        price_msat=bindparam("new_price_msat"),
        fee_msat=bindparam("new_fee_msat"),
        result_sha256=bindparam("new_result_sha256"),
        result_bytes=bindparam("new_result_bytes"),
        preimage=bindparam("new_preimage"),
        ended_at=bindparam("new_ended_at"),
        charge_msat=bindparam("new_charge_msat"),
        refund_undelivered=bindparam("new_refund_undelivered"),
        ended_by=bindparam("new_ended_by"),
        received=bindparam("new_received"),
        refund=bindparam("new_refund"),
        updated_at=func.coalesce(bindparam("now"), purchases.c.updated_at),
    )
)


@dataclass(slots=True)
class PurchaseRow:
    """A purchase as it was found, and as the notes of this transaction leave it."""

    job_id: bytes
    found: str
    owner: str
    intent_no: int
    key_id: str
    price_msat: int
    fee_cap_msat: int
    fee_msat: int | None
    result_sha256: bytes | None
    result_bytes: int | None
    preimage: bytes | None
    paying_at: int
    ended_at: int | None
    account_id: str | None
    charge_msat: int | None
    markup_ppm: int | None
    markup_msat: int | None
    refund_undelivered: bool | None
    ended_by: str | None
    received: str | None
    refund: str | None
    state: State = field(init=False)
    updated_at: int | None = None

    def __post_init__(self) -> None:
        self.state = State(self.found)

    @property
    def counted_msat(self) -> int:
        """What the counters hold of it."""
        if self.state is State.NOT_PAID:
            return 0
        return self.price_msat + (self.fee_cap_msat if self.fee_msat is None else self.fee_msat)

    def learn(self, learnt: PurchaseUpdate) -> bool:
        """Fill in what was not known; what was known stays. Tells whether anything was new."""
        before = self._known
        if learnt.charged_msat is not None:
            # Of what may have been charged nothing is added here: a price can only turn out to be lower.
            self._lower_price(learnt.charged_msat)
        if self.fee_msat is None:
            self.fee_msat = learnt.fee_msat
        if self.result_sha256 is None:
            self.result_sha256 = learnt.result_sha256
        if self.result_bytes is None:
            self.result_bytes = learnt.result_bytes
        if self.preimage is None:
            self.preimage = learnt.preimage
        if learnt.ending is not None and self.ended_by is None:
            self.ended_by, self.received = learnt.ending.ended_by, learnt.ending.received
            if learnt.ending.ruling.keeps_charge and self.refund_undelivered:
                self.refund_undelivered = False
        return before != self._known

    @property
    def held_msat(self) -> int:
        """What is held of the customer's balance for it."""
        return (self.charge_msat or 0) if self.state in OPEN_STATES else 0

    @property
    def taken_msat(self) -> int:
        """What the customer has paid for it in the end."""
        if self.state in _NOTHING_TAKEN:
            return 0
        if self.state is State.UNDELIVERED and self.refund_undelivered:
            return 0
        return self.charge_msat or 0

    def _lower_price(self, charged_msat: int) -> None:
        if charged_msat >= self.price_msat:
            return
        self.price_msat = charged_msat
        if self.charge_msat is not None:
            markup = Markup(self.markup_ppm or 0, Msat(self.markup_msat or 0))
            self.charge_msat = min(self.charge_msat, markup.charge_msat(charged_msat))

    @property
    def _known(self) -> tuple[object, ...]:
        return (
            self.price_msat,
            self.fee_msat,
            self.result_sha256,
            self.result_bytes,
            self.preimage,
            self.refund_undelivered,
            self.ended_by,
        )

    def values(self) -> dict[str, object]:
        """Give the parameters of the update."""
        return {
            "of_job": self.job_id,
            "from_state": self.found,
            "to_state": self.state.value,
            "new_price_msat": self.price_msat,
            "new_fee_msat": self.fee_msat,
            "new_result_sha256": self.result_sha256,
            "new_result_bytes": self.result_bytes,
            "new_preimage": self.preimage,
            "new_ended_at": self.ended_at,
            "new_charge_msat": self.charge_msat,
            "new_refund_undelivered": self.refund_undelivered,
            "new_ended_by": self.ended_by,
            "new_received": self.received,
            "new_refund": self.refund,
            "now": self.updated_at,
        }


def lock_rows(connection: Connection, job_ids: Iterable[bytes]) -> dict[bytes, PurchaseRow]:
    """Find and lock the purchases of these jobs, of which there is one at least."""
    return {row[0]: PurchaseRow(*row) for row in execute_in(connection, _lock, sorted(job_ids))}


def write_rows(connection: Connection, rows: Sequence[PurchaseRow]) -> None:
    """Write what was changed of locked rows, of which there is one at least."""
    execute_many(connection, _MOVE, [row.values() for row in rows])


def insert_rows(connection: Connection, rows: Sequence[Mapping[str, object]]) -> None:
    """Insert purchases, each as ``values_of`` returned it."""
    execute_many(connection, _INSERT, rows)


def values_of(intent: Intent, number: int, owner: str, at: int) -> dict[str, object]:
    """Return the row of an intent; ``number`` tells it from every other of its owner."""
    quote = intent.quote
    return {
        "job_id": quote.job_id,
        "payment_hash": intent.payment_hash,
        "state": State.PAYING.value,
        "kind": quote.source.value,
        "task_kind": intent.kind.value,
        "model": intent.model,
        "peer_id": quote.peer_id,
        "upstream": _UPSTREAMS[quote.source],
        "key_id": intent.key_id,
        "request_id": intent.request_id,
        "price_msat": quote.price_msat,
        "fee_cap_msat": intent.fee_cap_msat,
        "runner_up_msat": intent.runner_up_msat,
        "terms_hash": quote.terms_hash,
        "payment_request": quote.payment_request,
        "protocol_version": quote.protocol_version,
        "request_sha256": intent.request_sha256,
        "request_bytes": intent.request_bytes,
        "stream": intent.stream,
        "expires_at": to_micros(quote.expires_at),
        "paying_at": at,
        "updated_at": at,
        "owner": owner,
        "intent_no": number,
        **_charge_values(intent.charge),
        **_repeat_values(intent.repeat),
    }


def _charge_values(charge: Charge | None) -> dict[str, object]:
    if charge is None:
        return _NO_CHARGE
    return {
        "account_id": charge.account_id,
        "charge_msat": charge.amount_msat,
        "markup_ppm": charge.markup.ppm,
        "markup_msat": charge.markup.fixed_msat,
        "refund_undelivered": charge.refund_undelivered,
    }


def _repeat_values(repeat: RepeatIdentity | None) -> dict[str, object]:
    if repeat is None:
        return _NO_REPEAT
    return {
        "repeat_key": repeat.key,
        "repeat_body": repeat.body,
        "repeat_until": None if repeat.until is None else to_micros(repeat.until),
    }
