"""A row of purchases in one transaction of the journal: locked, changed by later states, and written back."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import groupby
from operator import attrgetter

from sqlalchemy import Connection, bindparam, func, insert, select, update

from lcp_gateway.purchase.journal import NOTHING_NEW, Intent, PurchaseUpdate, RepeatIdentity
from lcp_gateway.purchase.money import Charge
from lcp_gateway.purchase.quote import Payee, ProviderSource
from lcp_gateway.purchase.states import TRANSITIONS, State
from lcp_gateway.store.database.schema import purchases
from lcp_gateway.store.database.statements import AnySelect, Parameters, execute_in, execute_many
from lcp_gateway.store.database.times import to_micros
from lcp_gateway.store.journal.purchases import CHARGE_COLUMNS, charge_of

_UPSTREAMS = {ProviderSource.LCP: "lcpd", ProviderSource.NODE: "openai_http"}
_PAYING = State.PAYING.value

_FACTS = (
    "price_msat",
    "fee_msat",
    "result_sha256",
    "result_bytes",
    "preimage",
    "unknown_at",
    "settled_at",
    "ended_at",
    "ended_by",
    "received",
    "refund",
    "earned_msat",
)
"""The columns beside those of state and charge that an update can change."""
_CHANGED = ("state", "charge_msat", "refund_undelivered", *_FACTS)
_STATES = {state.value: state for state in State}
_facts = attrgetter(*_FACTS)
_NEW_FACTS = tuple(f"new_{name}" for name in _FACTS)


@dataclass(slots=True)
class PurchaseRow:
    """A purchase as it was found, and as the updates of this transaction leave it."""

    charge: Charge | None
    found_state: str
    job_id: bytes
    owner: str
    intent_no: int
    peer_id: str
    key_id: str
    price_msat: int
    fee_cap_msat: int
    fee_msat: int | None
    result_sha256: bytes | None
    result_bytes: int | None
    preimage: bytes | None
    paying_at: int
    unknown_at: int | None
    settled_at: int | None
    ended_at: int | None
    ended_by: str | None
    received: str | None
    refund: str | None
    payee_id: str | None
    commission_ppm: int | None
    earned_msat: int | None
    state: State = field(init=False)
    updated_at: int | None = None

    def __post_init__(self) -> None:
        self.state = _STATES[self.found_state]

    @property
    def counted_msat(self) -> int:
        """The part of it that the counters of budgets hold."""
        if self.state is State.NOT_PAID:
            return 0
        return self.price_msat + (self.fee_cap_msat if self.fee_msat is None else self.fee_msat)

    @property
    def held_msat(self) -> int:
        """The amount held of the customer's balance."""
        return 0 if self.charge is None else self.charge.held_msat(self.state)

    @property
    def taken_msat(self) -> int:
        """The amount taken from the customer's balance."""
        return 0 if self.charge is None else self.charge.taken_msat(self.state)

    def enter(self, state: State, at: int) -> None:
        """Move on to a state, which no purchase enters twice."""
        self.state = state
        if state is State.SETTLED:
            self.settled_at = at
        elif state is State.UNKNOWN:
            self.unknown_at = at
        elif not TRANSITIONS[state]:
            self.ended_at = at

    def earn(self) -> int:
        """Return what the owner of the node earns by its delivery, and record it; 0 where the node is no account's."""
        if self.payee_id is None:
            return 0
        payee = Payee(self.peer_id, self.payee_id, self.commission_ppm or 0)
        self.earned_msat = payee.earned_msat(self.price_msat)
        return self.earned_msat

    def apply(self, update: PurchaseUpdate) -> bool:
        """Fill in values that were not known, and keep those that were; return whether anything was new."""
        if update is NOTHING_NEW:
            return False
        before = self._known
        # The charge never grows: a price can only turn out to be lower.
        if update.charged_msat is not None and update.charged_msat < self.price_msat:
            self.price_msat = update.charged_msat
            if self.charge is not None:
                self.charge = self.charge.lowered_to(update.charged_msat)
        if self.fee_msat is None:
            self.fee_msat = update.fee_msat
        if self.result_sha256 is None:
            self.result_sha256 = update.result_sha256
        if self.result_bytes is None:
            self.result_bytes = update.result_bytes
        if self.preimage is None:
            self.preimage = update.preimage
        if update.ending is not None and self.ended_by is None:
            self.ended_by, self.received = str(update.ending.ended_by), str(update.ending.received)
            if update.ending.ruling.keeps_charge and self.charge is not None:
                self.charge = replace(self.charge, refund_undelivered=False)
        return before != self._known

    @property
    def _known(self) -> tuple[object, ...]:
        return (
            self.price_msat,
            self.fee_msat,
            self.result_sha256,
            self.result_bytes,
            self.preimage,
            self.charge,
            self.ended_by,
        )

    def changes(self) -> dict[str, object]:
        """Return the parameters of the update."""
        charge = self.charge
        return {
            "of_job": self.job_id,
            "from_state": self.found_state,
            "now": self.updated_at,
            "new_state": str(self.state),
            "new_charge_msat": None if charge is None else charge.amount_msat,
            "new_refund_undelivered": None if charge is None else charge.refund_undelivered,
            **dict(zip(_NEW_FACTS, _facts(self), strict=True)),
        }


# The charge, which is the first field, has several columns; ``found_state`` is ``state``.
_LOCKED = tuple(field.name for field in fields(PurchaseRow) if field.init)[2:-1]


def _lock(parameters: Parameters) -> AnySelect:
    (job_ids,) = parameters
    return (
        select(*(purchases.c[name] for name in ("state", *_LOCKED, *CHARGE_COLUMNS)))
        .where(purchases.c.job_id.in_(job_ids))
        # Always in the same order, or two gateways would wait for each other.
        .order_by(purchases.c.job_id)
        .with_for_update()
    )


_INSERT = insert(purchases)
_UPDATE = (
    update(purchases)
    .where(
        purchases.c.job_id == bindparam("of_job"),
        # The row is locked and the move was checked against the table of states; the condition makes the update safe
        # even without that.
        purchases.c.state == bindparam("from_state"),
    )
    .values(
        {name: bindparam(f"new_{name}") for name in _CHANGED}
        | {"updated_at": func.coalesce(bindparam("now"), purchases.c.updated_at)}
    )
)


def lock_rows(connection: Connection, job_ids: Iterable[bytes]) -> dict[bytes, PurchaseRow]:
    """Find and lock the purchases of these jobs, of which there is one at least."""
    found = execute_in(connection, _lock, sorted(job_ids))
    own = 1 + len(_LOCKED)
    rows = [PurchaseRow(charge_of(*row[own:]), *row[:own]) for row in found]
    return {row.job_id: row for row in rows}


def _known(parameters: Parameters) -> AnySelect:
    (job_ids,) = parameters
    return select(purchases.c.job_id).where(purchases.c.job_id.in_(job_ids))


def known_jobs(connection: Connection, job_ids: Iterable[bytes]) -> frozenset[bytes]:
    """Return which of these jobs, of which there is one at least, have a purchase."""
    return frozenset(job_id for (job_id,) in execute_in(connection, _known, sorted(job_ids)))


def write_rows(connection: Connection, rows: Sequence[PurchaseRow]) -> None:
    """Write the changes of locked rows, of which there is one at least."""
    execute_many(connection, _UPDATE, [row.changes() for row in rows])


def insert_rows(connection: Connection, rows: Sequence[Mapping[str, object]]) -> None:
    """Insert purchases, each as ``values_of`` returned it."""
    for _, alike in groupby(rows, tuple):
        execute_many(connection, _INSERT, list(alike))


def values_of(intent: Intent, number: int, owner: str, at: int) -> dict[str, object]:
    """Return the row of an intent, without the columns of a charge, a payee or a repeat that it lacks; ``number`` is unique for its owner."""
    quote = intent.quote
    return {
        "job_id": quote.job_id,
        "payment_hash": intent.payment_hash,
        "state": _PAYING,
        "kind": str(quote.source),
        "task_kind": str(intent.kind),
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
        "response_content_type": quote.response_content_type,
        "response_content_encoding": quote.response_content_encoding,
        "request_sha256": intent.request_sha256,
        "request_bytes": intent.request_bytes,
        "stream": intent.stream,
        "expires_at": to_micros(quote.expires_at),
        "paying_at": at,
        "updated_at": at,
        "owner": owner,
        "intent_no": number,
        **_payee_values(quote.payee),
        **_charge_values(intent.charge),
        **_repeat_values(intent.repeat),
    }


def _payee_values(payee: Payee | None) -> dict[str, object]:
    return {} if payee is None else {"payee_id": payee.account_id, "commission_ppm": payee.commission_ppm}


def _charge_values(charge: Charge | None) -> dict[str, object]:
    if charge is None:
        return {}
    return {
        "account_id": charge.account_id,
        "charge_msat": charge.amount_msat,
        "markup_ppm": charge.markup.ppm,
        "markup_msat": charge.markup.fixed_msat,
        "refund_undelivered": charge.refund_undelivered,
    }


def _repeat_values(repeat: RepeatIdentity | None) -> dict[str, object]:
    if repeat is None:
        return {}
    if repeat.key is None:
        return {"repeat_body": repeat.body}
    return {
        "repeat_key": repeat.key,
        "repeat_body": repeat.body,
        "repeat_until": None if repeat.until is None else to_micros(repeat.until),
    }
