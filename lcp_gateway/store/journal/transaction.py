"""One transaction of the journal: updates and intents of many purchases, written together."""

import enum
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import Connection, delete, insert, select

from lcp_gateway.accounts.callers import L402_KEY_PREFIX
from lcp_gateway.accounts.models import Cause
from lcp_gateway.purchase.errors import Refused
from lcp_gateway.purchase.journal import (
    NOTHING_NEW,
    BudgetExceeded,
    DuplicateIntent,
    InsufficientBalance,
    Intent,
    KeyRevoked,
    PurchaseUpdate,
    RequestRepeated,
)
from lcp_gateway.purchase.money import NO_REFUND_LIMITS, Budget, Charge, Msat, Refund, RefundDecision, RefundLimits
from lcp_gateway.purchase.outcome import LOST_BY_CRASH
from lcp_gateway.purchase.quote import Earning, Quote
from lcp_gateway.purchase.states import TRANSITIONS, State
from lcp_gateway.store.accounts.balances import Balances
from lcp_gateway.store.database.schema import accounts, budget_spend, keys
from lcp_gateway.store.database.statements import AnySelect, Parameters, execute_in
from lcp_gateway.store.database.times import to_micros
from lcp_gateway.store.journal.budgets import Counter, Counters, DayOfRefunds, counter_of, counters_of
from lcp_gateway.store.journal.repeats import Repeats, release_keys
from lcp_gateway.store.journal.rows import PurchaseRow, insert_rows, known_jobs, lock_rows, values_of, write_rows
from lcp_gateway.values import value


@value
class IntentEntry:
    """An intent to write. ``number`` is unique within the process."""

    number: int
    intent: Intent
    budgets: Sequence[Budget]


@value
class UpdateEntry:
    """A later state to write; ``state`` is None where it stays and only facts are added.

    ``withdraws`` is the number of an intent whose caller did not learn that it was written: the update is for that
    intent alone, and is dropped where it was never written. ``on_refund`` is called with the decision on a refund.
    """

    job_id: bytes
    state: State | None
    at: datetime
    update: PurchaseUpdate = NOTHING_NEW
    withdraws: int | None = None
    on_refund: Callable[[Refund], None] | None = None


class JournalProblemKind(enum.StrEnum):
    """Problems that no caller waits for."""

    LATE_NOTE = "late_note"
    """The state table has no such move from the purchase's state, or it is in that state: left as it is."""
    SWEPT = "swept"
    """A result of this process was delivered after another process had mistaken this one for dead.

    Its purchase stays ``undelivered``: a refund is not reversed.
    """
    UNKNOWN_JOB = "unknown_job"
    """An update of a purchase that the journal does not have."""
    NOTE_REFUSED = "note_refused"
    """The database refused the values of an update: it is lost."""
    NOTE_LOST = "note_lost"
    """The journal was closed, or its queue full, before an update could be written: it is lost."""
    UNAVAILABLE = "unavailable"
    """The database cannot be written. Reported once, until it can be again."""
    AVAILABLE = "available"
    """The database can be written again."""

    @property
    def is_grave(self) -> bool:
        """Whether it is an error; the rest are informational, such as one about an intent that was withdrawn."""
        return self in {self.NOTE_LOST, self.NOTE_REFUSED, self.SWEPT, self.UNAVAILABLE}


@dataclass(frozen=True, slots=True)
class JournalProblem:
    """A problem for the operator's log. ``detail`` holds no secret."""

    kind: JournalProblemKind
    detail: str
    job_id: bytes | None = None
    state: State | None = None


@dataclass(frozen=True, slots=True)
class TransactionResult:
    """For each intent, its refusal or None; the problems with updates; the decisions on refunds, and what nodes earned."""

    refusals: Sequence[Refused | None]
    problems: Sequence[JournalProblem]
    refunds: Sequence[RefundDecision] = ()
    earnings: Sequence[Earning] = ()


def _revoked(parameters: Parameters) -> AnySelect:
    (key_ids,) = parameters
    return select(keys.c.id).where(keys.c.id.in_(key_ids), keys.c.revoked_at.is_not(None))


def revoked_of(connection: Connection, key_ids: Collection[str]) -> frozenset[str]:
    """Return the revoked ones of these keys, as this very transaction sees them: no revocation can come between."""
    if not key_ids:
        return frozenset()
    return frozenset(key_id for (key_id,) in execute_in(connection, _revoked, sorted(key_ids)))


def _deleted(parameters: Parameters) -> AnySelect:
    (account_ids,) = parameters
    return select(accounts.c.id).where(accounts.c.id.in_(account_ids), accounts.c.deleted_at.is_not(None))


def deleted_of(connection: Connection, account_ids: Collection[str]) -> frozenset[str]:
    """Return the deleted ones of these accounts, in the same way."""
    if not account_ids:
        return frozenset()
    found = execute_in(connection, _deleted, sorted(account_ids))
    return frozenset(account_id for (account_id,) in found)


class JournalTransaction:
    """Writes updates first, then intents, so that amounts which updates release are available to intents.

    Where a customer is charged, the balance changes in the same transaction, so that no crash can come between the two.
    Where none is, the database gets no more statements for it.

    No intent's job is looked up before it is written: the primary key refuses one that is known, and with it the whole
    transaction. The caller tries that again with ``looks_up``. An intent that is refused for another reason is looked up,
    since a job that is known counts as taken, whatever else may be wrong with its intent.

    The caller does not put an update into one transaction with the intent of its own job.
    """

    def __init__(
        self,
        owner: str,
        updates: Sequence[UpdateEntry],
        intents: Sequence[IntentEntry],
        refunds: RefundLimits = NO_REFUND_LIMITS,
        *,
        looks_up: bool = False,
    ) -> None:
        """``refunds`` limits refunds; a charge over a limit is withheld. ``looks_up`` finds the jobs that are known."""
        self._owner = owner
        self._refunds = DayOfRefunds(refunds)
        self._updates = updates
        self._intents = intents
        self._counters = Counters()
        self._balances = Balances()
        self._repeats = Repeats(owner)
        self._looks_up = looks_up
        self._revoked_keys: frozenset[str] = frozenset()
        self._deleted_accounts: frozenset[str] = frozenset()
        self._problems: list[JournalProblem] = []
        self._decisions: list[RefundDecision] = []
        self._earnings: list[Earning] = []

    def write(self, connection: Connection) -> TransactionResult:
        """Write everything in the caller's transaction.

        Raises:
            IntegrityError: a job or a repeat key is known, or a last guard of the balances or the ledger holds.
        """
        rows = self._find(connection)
        counted = {job_id: row.counted_msat for job_id, row in rows.items()}
        self._refunds.lock(connection, self._to_refund(rows))
        moved = self._apply_updates(rows)
        changes = {
            row.job_id: (counters_of(row.key_id, row.paying_at), change)
            for row in moved
            if (change := row.counted_msat - counted[row.job_id])
        }
        times = [to_micros(entry.intent.at) for entry in self._intents]
        reserved = [counters_of(entry.intent.key_id, at) for entry, at in zip(self._intents, times, strict=True)]
        self._counters.lock(
            connection,
            [counter for counters in reserved for counter in counters],
            (counter for counters, _ in changes.values() for counter in counters),
        )
        for counters, change in changes.values():
            self._counters.add(counters, change)
        self._balances.lock(
            connection, (charge.account_id for entry in self._intents if (charge := entry.intent.charge))
        )
        if moved:
            write_rows(connection, moved)
            # Before the intents are written: one of them may be the next try of an unpaid purchase.
            if unpaid := sorted(row.job_id for row in moved if row.state is State.NOT_PAID):
                release_keys(connection, unpaid)
        self._repeats.look_up(connection, [repeat for entry in self._intents if (repeat := entry.intent.repeat)])
        # The operator's static keys have no account and no charge.
        charged = {entry.intent.key_id for entry in self._intents if entry.intent.charge}
        self._revoked_keys = revoked_of(connection, charged)
        # Deleting an account revokes its keys. An L402 token is no key, and ends with its account.
        self._deleted_accounts = deleted_of(
            connection,
            {
                charge.account_id
                for entry in self._intents
                if (charge := entry.intent.charge) and entry.intent.key_id.startswith(L402_KEY_PREFIX)
            },
        )
        refusals = self._take_intents(connection, rows, times, reserved)
        self._counters.write(connection)
        self._refunds.write(connection)
        self._balances.write(connection)
        return TransactionResult(refusals, self._problems, self._decisions, self._earnings)

    def _find(self, connection: Connection) -> dict[bytes, PurchaseRow]:
        job_ids = {entry.job_id for entry in self._updates}
        return lock_rows(connection, job_ids) if job_ids else {}

    def _to_refund(self, rows: Mapping[bytes, PurchaseRow]) -> Iterator[tuple[str, int]]:
        """Yield the accounts and times of the charges that these updates may refund."""
        for entry in self._updates:
            if entry.state is State.UNDELIVERED and (row := rows.get(entry.job_id)) is not None:
                kept = entry.update.ending is not None and entry.update.ending.ruling.keeps_charge
                if row.charge is not None and row.charge.refund_undelivered and not kept and row.payee_id is None:
                    yield row.charge.account_id, to_micros(entry.at)

    def _apply_updates(self, rows: Mapping[bytes, PurchaseRow]) -> list[PurchaseRow]:
        touched: dict[bytes, PurchaseRow] = {}
        for entry in self._updates:
            row = rows.get(entry.job_id)
            if row is None:
                if entry.withdraws is None:
                    self._report(entry, JournalProblemKind.UNKNOWN_JOB, "the journal has no such purchase")
            elif entry.withdraws in {None, row.intent_no} and self._apply(entry, row):
                touched[row.job_id] = row
        return list(touched.values())

    def _apply(self, entry: UpdateEntry, row: PurchaseRow) -> bool:
        if entry.withdraws is not None and row.owner != self._owner:
            return False
        at = to_micros(entry.at)
        stays = entry.state is None or entry.state is row.state
        if not stays and entry.state not in TRANSITIONS[row.state].values():
            if self._was_swept(entry, row):
                self._report(entry, JournalProblemKind.SWEPT, _taken_for_dead(row))
            else:
                self._report(entry, JournalProblemKind.LATE_NOTE, f"the purchase is {row.state} already")
            return False
        charged_before = (0, 0) if row.charge is None else (row.held_msat, row.taken_msat)
        news = row.apply(entry.update)
        if stays and not news:
            self._report(entry, JournalProblemKind.LATE_NOTE, f"nothing new: the purchase is {row.state}")
            return False
        if not stays and entry.state is not None:
            row.enter(entry.state, at)
        row.updated_at = at
        if row.charge is not None:
            if row.state is State.UNDELIVERED and not stays:
                row.charge = self._decide_refund(row, row.charge, at)
            self._charge(row, row.charge, *charged_before, at)
        if row.state is State.DELIVERED and not stays:
            self._earn(row, at)
        return True

    def _was_swept(self, entry: UpdateEntry, row: PurchaseRow) -> bool:
        ending = (row.ended_by, row.received)
        return entry.state is State.DELIVERED and row.owner == self._owner and ending == LOST_BY_CRASH

    def _decide_refund(self, row: PurchaseRow, charge: Charge, at: int) -> Charge:
        """Refund the charge of an undelivered purchase, or withhold it where a limit is reached."""
        account_id, amount_msat = charge.account_id, charge.amount_msat
        if not charge.refund_undelivered or not amount_msat:
            return charge
        if row.payee_id is not None:
            # Nothing was paid for it: the refund is no loss that a limit would have to bound.
            refund = Refund.GIVEN
        else:
            refund = self._refunds.decide(account_id, max(amount_msat, row.counted_msat), at)
        row.refund = refund.value
        self._decisions.append(RefundDecision(row.job_id, account_id, amount_msat, refund))
        return replace(charge, refund_undelivered=refund is Refund.GIVEN)

    def _earn(self, row: PurchaseRow, at: int) -> None:
        """Credit the owner of the node that delivered, out of what the customer, or the operator's own key, pays for it."""
        earned_msat = row.earn()
        if row.payee_id is not None:
            self._balances.move(row.payee_id, earned_msat, Cause.EARNING, row.job_id.hex(), at)
            self._earnings.append(Earning(row.peer_id, earned_msat, row.price_msat - earned_msat))

    def _charge(self, row: PurchaseRow, charge: Charge, held_msat: int, taken_msat: int, at: int) -> None:
        """Change the balance from the amounts held and taken before to those of the new state."""
        account_id = charge.account_id
        self._balances.hold(account_id, row.held_msat - held_msat)
        job_id = row.job_id.hex()
        if held_msat and row.refund == Refund.GIVEN and not taken_msat:
            # Found to be paid and undelivered at once: taken and refunded, so that the account's statement shows it.
            taken_msat = charge.amount_msat
            self._balances.move(account_id, -taken_msat, Cause.PURCHASE, job_id, at)
        if row.taken_msat > taken_msat:
            self._balances.move(account_id, -row.taken_msat, Cause.PURCHASE, job_id, at)
        else:
            # A charge can be lowered more than once, each time to less than before: the rest of it in the name makes
            # each refund's name unique.
            self._balances.move(account_id, taken_msat - row.taken_msat, Cause.REFUND, f"{job_id}:{row.taken_msat}", at)

    def _take_intents(
        self,
        connection: Connection,
        rows: Mapping[bytes, PurchaseRow],
        times: Sequence[int],
        reserved: Sequence[Sequence[Counter]],
    ) -> list[Refused | None]:
        taken: set[bytes] = set(rows)
        if self._looks_up and self._intents:
            taken |= known_jobs(connection, {entry.intent.quote.job_id for entry in self._intents})
        refusals: list[Refused | None] = []
        written: list[dict[str, object]] = []
        for entry, at, counters in zip(self._intents, times, reserved, strict=True):
            quote = entry.intent.quote
            refusal: Refused | None
            if quote.job_id in taken:
                refusal = _duplicate(quote)
            else:
                refusal = (
                    self._repeated(entry, at)
                    or self._of_revoked_key(entry)
                    or self._over_budget(entry, at)
                    or self._over_balance(entry)
                )
            refusals.append(refusal)
            if refusal is None:
                taken.add(quote.job_id)
                self._repeats.take(entry.intent)
                self._counters.add(counters, entry.intent.amount_msat)
                if charge := entry.intent.charge:
                    self._balances.hold(charge.account_id, charge.amount_msat)
                written.append(values_of(entry.intent, entry.number, self._owner, at))
        self._find_duplicates(connection, refusals)
        if written:
            self._repeats.release(connection)
            insert_rows(connection, written)
        return refusals

    def _find_duplicates(self, connection: Connection, refusals: list[Refused | None]) -> None:
        """Refuse the intents that are refused for another reason as duplicates where their jobs are known."""
        refused = {
            number: self._intents[number].intent.quote
            for number, refusal in enumerate(refusals)
            if refusal is not None and not isinstance(refusal, DuplicateIntent)
        }
        if refused:
            known = known_jobs(connection, {quote.job_id for quote in refused.values()})
            for number, quote in refused.items():
                if quote.job_id in known:
                    refusals[number] = _duplicate(quote)

    def _repeated(self, entry: IntentEntry, at: int) -> RequestRepeated | None:
        repeat = entry.intent.repeat
        earlier = None if repeat is None else self._repeats.earlier(repeat, at)
        return None if earlier is None else RequestRepeated(entry.intent.quote, earlier)

    def _of_revoked_key(self, entry: IntentEntry) -> KeyRevoked | None:
        charge = entry.intent.charge
        is_deleted = charge is not None and charge.account_id in self._deleted_accounts
        if entry.intent.key_id not in self._revoked_keys and not is_deleted:
            return None
        return KeyRevoked(
            "this key was revoked while its request was worked on; nothing was paid", quote=entry.intent.quote
        )

    def _over_budget(self, entry: IntentEntry, at: int) -> BudgetExceeded | None:
        for budget in entry.budgets:
            spent_msat = self._counters.spent_msat(counter_of(budget, at))
            if spent_msat + entry.intent.amount_msat > budget.limit_msat:
                return BudgetExceeded(entry.intent.quote, budget, Msat(spent_msat))
        return None

    def _over_balance(self, entry: IntentEntry) -> InsufficientBalance | None:
        charge = entry.intent.charge
        if charge is None:
            return None
        available_msat = self._balances.available_msat(charge.account_id)
        if charge.amount_msat <= available_msat:
            return None
        return InsufficientBalance(entry.intent.quote, charge.amount_msat, available_msat)

    def _report(self, entry: UpdateEntry, kind: JournalProblemKind, detail: str) -> None:
        # A withdrawn intent was not paid, so there is nothing to report.
        if entry.withdraws is None:
            self._problems.append(JournalProblem(kind, detail, entry.job_id, entry.state))


def _duplicate(quote: Quote) -> DuplicateIntent:
    return DuplicateIntent("this quote was taken before; nothing more was paid", quote=quote)


def _taken_for_dead(row: PurchaseRow) -> str:
    became = {
        Refund.GIVEN.value: "its charge stays refunded",
        Refund.WITHHELD.value: "its refund is withheld until an operator decides",
    }
    refund = became.get(row.refund or "", "its charge did not change")
    return (
        "the answer was delivered after another gateway had found the lock of this one free and had ended the "
        f"purchase: it stays undelivered, {refund}"
    )


def write_probe(connection: Connection) -> None:
    """Write a row and delete it again: only a real write shows that a disk is full."""
    row = {"scope": "probe", "period": "probe", "starts_at": 0}
    connection.execute(insert(budget_spend).values(**row, spent_msat=0))
    connection.execute(delete(budget_spend).where(*(budget_spend.c[name] == value for name, value in row.items())))
