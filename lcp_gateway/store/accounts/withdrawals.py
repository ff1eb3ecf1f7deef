"""Withdrawals: one row each, which moves with the balance in one transaction, and is paid at most once.

The transaction that begins a payment also checks that the node covers what all customers are owed. Those transactions
wait for each other, on any number of gateways, so that none counts on money that another one is about to pay out.
"""

import secrets
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, RowMapping, and_, bindparam, func, insert, or_, select, update

from lcp_gateway.accounts.models import AccountNotFound, Cause, Listing, TopupPurpose, TopupState, check_text
from lcp_gateway.accounts.withdrawal_states import OPEN_STATES, TRANSITIONS, WithdrawalEvent, step
from lcp_gateway.accounts.withdrawal_states import WithdrawalState as State
from lcp_gateway.accounts.withdrawals import (
    FailedBecause,
    InsufficientFunds,
    InvalidInvoice,
    InvoiceUsed,
    Liquidity,
    NewWithdrawal,
    OpenWithdrawals,
    Withdrawal,
    WithdrawalNotFound,
    WithdrawalRules,
    WrongWithdrawalState,
)
from lcp_gateway.purchase.money import Msat
from lcp_gateway.store.accounts.accounts import check_lives
from lcp_gateway.store.accounts.admin_log import write_admin_action
from lcp_gateway.store.accounts.balances import Balances
from lcp_gateway.store.accounts.withdrawal_checks import (
    OPEN,
    check_frozen,
    check_key,
    check_limits,
    check_solvency,
    is_frozen,
)
from lcp_gateway.store.database import cursors
from lcp_gateway.store.database.engines import Database
from lcp_gateway.store.database.schema import accounts, topups, withdrawals
from lcp_gateway.store.database.statements import MAX_ROWS, fetch, fetch_one, fetch_page, newest_first
from lcp_gateway.store.database.times import from_micros, from_micros_or_none, to_micros

_ONE = select(withdrawals).where(withdrawals.c.id == bindparam("of_withdrawal"))
_LOCKED = _ONE.with_for_update()
_BY_HASH = select(withdrawals).where(withdrawals.c.payment_hash == bindparam("of_hash"))
_TOPUP_BY_HASH = select(topups).where(topups.c.payment_hash == bindparam("of_hash")).with_for_update()
_PAYING = select(withdrawals).where(withdrawals.c.state == State.PAYING.value).order_by(withdrawals.c.id)
_OUTSTANDING = (
    select(
        withdrawals.c.state,
        func.count(),
        func.sum(withdrawals.c.amount_msat + withdrawals.c.fee_limit_msat),
        func.min(withdrawals.c.paying_at),
    )
    .where(withdrawals.c.state.in_(OPEN))
    .group_by(withdrawals.c.state)
)


class Withdrawals:
    """The repository of withdrawals. Every method raises ``DatabaseUnavailable``; ``actor`` is named in the admin log."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @property
    def owner(self) -> str:
        """The name of this process in its rows."""
        return self._database.owner

    async def create(
        self, new: NewWithdrawal, rules: WithdrawalRules, liquidity: Liquidity | None, at: datetime
    ) -> tuple[Withdrawal, bool]:
        """Hold the amount and the fee limit, and write the withdrawal; return it, and whether it is new.

        It is ``paying`` afterwards, and this process has to pay it; or it waits for an approval; or it is settled, where
        it pays a top-up of this gateway. The same invoice again returns the first withdrawal. Without ``liquidity``
        nothing can be paid over the network.

        Raises:
            AccountNotFound: there is no such account.
            InvoiceUsed: another account or another amount came with this invoice before.
            InvalidInvoice: it is of the paying node, and no open top-up of another account.
            KeyMayNotWithdraw: the key was revoked meanwhile, or lost its scope.
            WithdrawalsFrozen, TooManyOpenWithdrawals, DayLimitReached, InsufficientFunds: by the rules.
            NodeCannotCover: the node holds less than all customers are owed.
        """
        micros = to_micros(at)

        def work(connection: Connection) -> tuple[Withdrawal, bool]:
            cursors.take_next(connection, cursors.WITHDRAWALS)
            if (known := _find(connection, new)) is not None:
                return known, False
            check_lives(connection, new.account_id)
            check_key(connection, new)
            check_frozen(connection, new.account_id, rules, at)
            topup_id, receiver = _topup_of(connection, new, micros) if new.is_internal else (None, "")
            check_limits(connection, new, rules, at)
            moved = Balances()
            moved.lock(connection, [it for it in (new.account_id, receiver) if it])
            needed_msat, available_msat = new.amount_msat + new.fee_limit_msat, moved.available_msat(new.account_id)
            if needed_msat > available_msat:
                raise InsufficientFunds(needed_msat, available_msat)
            event = _first_event(new, rules)
            if event is WithdrawalEvent.PAY:
                check_solvency(connection, rules, liquidity)
            row = {
                "id": f"wd_{secrets.token_hex(12)}",
                "account_id": new.account_id,
                "key_id": new.key_id,
                "payment_hash": new.payment_hash,
                "payment_request": new.payment_request,
                "amount_msat": new.amount_msat,
                "fee_limit_msat": new.fee_limit_msat,
                "names_amount": new.names_amount,
                "state": step(State.REQUESTED, event).value,
                "topup_id": topup_id,
                "node_id": new.node_id,
                "created_at": micros,
                "expires_at": to_micros(new.expires_at),
            }
            moved.hold(new.account_id, needed_msat)
            if event is WithdrawalEvent.PAY:
                row |= {"owner": self._database.owner, "paying_at": micros}
            connection.execute(insert(withdrawals).values(row))
            withdrawal = _read(connection, str(row["id"]))
            if event is WithdrawalEvent.TRANSFER:
                withdrawal = _transfer(connection, moved, withdrawal, receiver, micros)
            moved.write(connection)
            return withdrawal, True

        return await self._database.write(work)

    async def begin(
        self, withdrawal_id: str, rules: WithdrawalRules, liquidity: Liquidity | None, at: datetime
    ) -> Withdrawal | None:
        """Begin to pay an approved withdrawal, which this process then has to; return None where it is not to be paid now.

        It is not while its account is frozen, after it has expired, and when another process has begun it. One that pays
        a top-up of this gateway is settled at once.

        Raises:
            NodeCannotCover: the node holds less than all customers are owed.
        """
        micros = to_micros(at)

        def work(connection: Connection) -> Withdrawal | None:
            cursors.take_next(connection, cursors.WITHDRAWALS)
            account_id, topup_id = _account_of(connection, withdrawal_id)
            frozen = is_frozen(connection, account_id)
            receiver = ""
            if topup_id is not None:
                receiver = _receiver_of(connection, topup_id, micros)
            withdrawal = _lock(connection, withdrawal_id)
            if withdrawal.state is not State.APPROVED or frozen or withdrawal.expires_at <= at:
                return None
            moved = Balances()
            moved.lock(connection, [it for it in (account_id, receiver) if it])
            if topup_id is None:
                check_solvency(connection, rules, liquidity)
                values = {"owner": self._database.owner, "paying_at": micros}
                withdrawal = _move(connection, withdrawal, WithdrawalEvent.PAY, values)
            elif receiver:
                withdrawal = _transfer(connection, moved, withdrawal, receiver, micros)
            else:
                reason = {"ended_at": micros, "reason": FailedBecause.INCORRECT_PAYMENT_DETAILS.value}
                moved.hold(account_id, -withdrawal.held_msat)
                withdrawal = _move(connection, withdrawal, WithdrawalEvent.FAIL, reason)
            moved.write(connection)
            return withdrawal

        return await self._database.write(work)

    async def record(
        self,
        withdrawal_id: str,
        event: WithdrawalEvent,
        at: datetime,
        *,
        fee_msat: int = 0,
        preimage: bytes | None = None,
        reason: FailedBecause | None = None,
    ) -> Withdrawal | None:
        """Write what became of a withdrawal; return None where its state has no such event any more.

        A settled one takes the amount and the real fee, at most the fee limit, and gives the rest back; a failed one
        gives back everything.
        """

        def work(connection: Connection) -> Withdrawal | None:
            withdrawal = _lock(connection, withdrawal_id)
            if event not in TRANSITIONS[withdrawal.state]:
                return None
            return _end(connection, withdrawal, event, to_micros(at), fee_msat, preimage, reason)

        return await self._database.write(work)

    async def cancel(self, account_id: str, withdrawal_id: str, at: datetime) -> Withdrawal:
        """Take a withdrawal back that was not paid yet, and release what it holds.

        Raises:
            WithdrawalNotFound: the account has none of this id.
            WrongWithdrawalState: it is being paid, or has ended otherwise.
        """

        def work(connection: Connection) -> Withdrawal:
            withdrawal = _lock(connection, withdrawal_id)
            if withdrawal.account_id != account_id:
                raise WithdrawalNotFound
            if withdrawal.state is State.CANCELED:
                return withdrawal
            if WithdrawalEvent.CANCEL not in TRANSITIONS[withdrawal.state]:
                raise WrongWithdrawalState(withdrawal.state)
            return _end(connection, withdrawal, WithdrawalEvent.CANCEL, to_micros(at), reason=FailedBecause.CUSTOMER)

        return await self._database.write(work)

    async def decide(
        self, withdrawal_id: str, *, approve: bool, reason: str, actor: str, at: datetime
    ) -> tuple[Withdrawal, bool]:
        """Approve a withdrawal that waits for it, or deny it; return it, and whether this changed anything.

        Raises:
            WithdrawalNotFound: there is none.
            WrongWithdrawalState: it waits for no decision.
            InvalidText: the reason cannot be one.
        """
        reason = check_text(reason, "reason")
        event = WithdrawalEvent.APPROVE if approve else WithdrawalEvent.DENY

        def work(connection: Connection) -> tuple[Withdrawal, bool]:
            withdrawal = _lock(connection, withdrawal_id)
            if event not in TRANSITIONS[withdrawal.state]:
                if withdrawal.state is (State.APPROVED if approve else State.DENIED):
                    return withdrawal, False
                raise WrongWithdrawalState(withdrawal.state)
            why = None if approve else FailedBecause.OPERATOR
            decided = _end(connection, withdrawal, event, to_micros(at), reason=why)
            _log(connection, decided, f"withdrawal.{event}", reason, actor, at)
            return decided, True

        return await self._database.write(work)

    async def resolve(
        self, withdrawal_id: str, *, settled: bool, fee_msat: int, reason: str, actor: str, at: datetime
    ) -> tuple[Withdrawal, bool]:
        """End a withdrawal by hand whose payment is unknown; return it, and whether this changed anything.

        Raises:
            WithdrawalNotFound: there is none.
            WrongWithdrawalState: it is not unknown, nor being paid by a process that has ended.
            InvalidText: the reason cannot be one.
        """
        reason = check_text(reason, "reason")
        event = WithdrawalEvent.SETTLE if settled else WithdrawalEvent.FAIL

        def work(connection: Connection) -> tuple[Withdrawal, bool]:
            withdrawal = _lock(connection, withdrawal_id)
            is_lost = withdrawal.state is State.PAYING and self._is_gone(connection, withdrawal)
            if withdrawal.state is not State.UNKNOWN and not is_lost:
                if withdrawal.state is (State.SETTLED if settled else State.FAILED):
                    return withdrawal, False
                raise WrongWithdrawalState(withdrawal.state)
            why = None if settled else FailedBecause.OPERATOR
            ended = _end(connection, withdrawal, event, to_micros(at), fee_msat, reason=why)
            _log(connection, ended, f"withdrawal.{ended.state}", reason, actor, at)
            return ended, True

        return await self._database.write(work)

    async def take_over(self, running: Sequence[str], at: datetime) -> Sequence[Withdrawal]:
        """Make those unknown whose process has ended while they were being paid; return them.

        ``running`` are the ids of those that this process is paying: others of its own are lost as well.
        """

        def work(connection: Connection) -> Sequence[Withdrawal]:
            lost = []
            for row in connection.execute(_PAYING.limit(MAX_ROWS)).mappings().all():
                found = _withdrawal(row)
                own = found.owner == self._database.owner and found.id not in running
                if own or self._is_gone(connection, found):
                    locked = _lock(connection, found.id)
                    if locked.state is State.PAYING:
                        lost.append(_end(connection, locked, WithdrawalEvent.LOSE_SIGHT, to_micros(at)))
            return lost

        return await self._database.write(work)

    async def mark_absent(self, withdrawal_id: str, at: datetime | None) -> None:
        """Record since when the node is known to have no payment of an unknown withdrawal; None for no longer."""
        statement = (
            update(withdrawals)
            .where(withdrawals.c.id == withdrawal_id, withdrawals.c.state == State.UNKNOWN.value)
            .values(absent_at=None if at is None else to_micros(at))
        )
        await self._database.write(lambda connection: connection.execute(statement))

    async def get(self, withdrawal_id: str) -> Withdrawal | None:
        """Return a withdrawal, or None."""
        return await fetch_one(
            self._database, select(withdrawals).where(withdrawals.c.id == withdrawal_id), _withdrawal
        )

    async def by_payment_hash(self, payment_hash: bytes) -> Withdrawal | None:
        """Return the withdrawal of an invoice, or None."""
        query = select(withdrawals).where(withdrawals.c.payment_hash == payment_hash)
        return await fetch_one(self._database, query, _withdrawal)

    async def open_ones(self, *, after: Withdrawal | None = None, limit: int = MAX_ROWS) -> Sequence[Withdrawal]:
        """Return those that are open, the oldest first, from behind ``after`` on."""
        query = (
            select(withdrawals)
            .where(withdrawals.c.state.in_(OPEN))
            .order_by(withdrawals.c.created_at, withdrawals.c.id)
            .limit(limit)
        )
        if after is not None:
            at = to_micros(after.created_at)
            is_newer = and_(withdrawals.c.created_at == at, withdrawals.c.id > after.id)
            query = query.where(or_(withdrawals.c.created_at > at, is_newer))
        return await fetch(self._database, query, _withdrawal)

    async def page(
        self, *, account_id: str | None = None, state: State | None = None, limit: int = 100, after: str | None = None
    ) -> Listing[Withdrawal]:
        """Return withdrawals of an account or of all, the newest first. ``after`` is a withdrawal's id."""
        query = newest_first(select(withdrawals), withdrawals.c.created_at, withdrawals.c.id, after)
        if account_id is not None:
            query = query.where(withdrawals.c.account_id == account_id)
        if state is not None:
            query = query.where(withdrawals.c.state == state.value)
        return await fetch_page(self._database, query, _withdrawal, limit, lambda last: last.id)

    async def outstanding(self) -> OpenWithdrawals:
        """Return the sums of the open withdrawals."""

        def work(connection: Connection) -> OpenWithdrawals:
            counts, oldest = {}, None
            for state, count, held_msat, paying_at in connection.execute(_OUTSTANDING):
                counts[State(state)] = (count, int(held_msat))
                if state == State.UNKNOWN.value:
                    oldest = from_micros_or_none(paying_at)
            return OpenWithdrawals(counts, oldest)

        return await self._database.read(work)

    async def freeze(self, account_id: str, *, frozen: bool, reason: str, actor: str, at: datetime) -> bool:
        """Keep an account from withdrawing, or let it again; return whether this changed anything.

        Raises:
            AccountNotFound: there is none.
            InvalidText: the reason cannot be one.
        """
        reason = check_text(reason, "reason")

        def work(connection: Connection) -> bool:
            found = connection.execute(
                select(accounts.c.withdrawals_frozen_at).where(accounts.c.id == account_id).with_for_update()
            ).one_or_none()
            if found is None:
                raise AccountNotFound
            if (found[0] is not None) is frozen:
                return False
            at_micros = to_micros(at) if frozen else None
            connection.execute(
                update(accounts).where(accounts.c.id == account_id).values(withdrawals_frozen_at=at_micros)
            )
            action = "withdrawals.freeze" if frozen else "withdrawals.unfreeze"
            write_admin_action(connection, at, actor, action, account_id, reason=reason)
            return True

        return await self._database.write(work)

    def _is_gone(self, connection: Connection, withdrawal: Withdrawal) -> bool:
        owner = withdrawal.owner
        return owner is not None and owner != self._database.owner and self._database.is_gone(connection, owner)


def _first_event(new: NewWithdrawal, rules: WithdrawalRules) -> WithdrawalEvent:
    if rules.approval_msat and new.amount_msat > rules.approval_msat:
        return WithdrawalEvent.HOLD
    return WithdrawalEvent.TRANSFER if new.is_internal else WithdrawalEvent.PAY


def _find(connection: Connection, new: NewWithdrawal) -> Withdrawal | None:
    row = connection.execute(_BY_HASH, {"of_hash": new.payment_hash}).mappings().one_or_none()
    if row is None:
        return None
    if row["account_id"] != new.account_id or row["amount_msat"] != new.amount_msat:
        raise InvoiceUsed
    return _withdrawal(row)


def _topup_of(connection: Connection, new: NewWithdrawal, micros: int) -> tuple[str, str]:
    """Return the top-up that the invoice belongs to, and its account."""
    row = connection.execute(_TOPUP_BY_HASH, {"of_hash": new.payment_hash}).mappings().one_or_none()
    if row is None or row["purpose"] != TopupPurpose.TOPUP or not _can_receive(row, micros):
        raise InvalidInvoice("this invoice is of the gateway's own node and no top-up that can be paid")
    if row["account_id"] == new.account_id:
        raise InvalidInvoice("this invoice tops up the account that would pay it")
    return row["id"], row["account_id"]


def _receiver_of(connection: Connection, topup_id: str, micros: int) -> str:
    """Return the account of a top-up that can still be paid; empty where it cannot."""
    row = connection.execute(select(topups).where(topups.c.id == topup_id).with_for_update()).mappings().one_or_none()
    return "" if row is None or not _can_receive(row, micros) else row["account_id"]


def _can_receive(row: RowMapping, micros: int) -> bool:
    return bool(row["state"] == TopupState.OPEN.value and row["expires_at"] > micros)


def _transfer(
    connection: Connection, moved: Balances, withdrawal: Withdrawal, receiver: str, micros: int
) -> Withdrawal:
    """Move the amount to the receiver, and mark the top-up as settled: its invoice was paid without a payment.

    ``received_msat`` stays empty: if the invoice is paid over the network all the same, that money is credited as well.
    """
    moved.hold(withdrawal.account_id, -(withdrawal.amount_msat + withdrawal.fee_limit_msat))
    moved.transfer(withdrawal.account_id, receiver, withdrawal.amount_msat, Cause.TRANSFER, withdrawal.id, micros)
    connection.execute(
        update(topups)
        .where(topups.c.id == withdrawal.topup_id)
        .values(state=TopupState.SETTLED.value, settled_at=micros)
    )
    # The first event wrote the state already.
    values = {"ended_at": micros, "fee_msat": 0, "state": State.SETTLED.value}
    connection.execute(update(withdrawals).where(withdrawals.c.id == withdrawal.id).values(values))
    return _read(connection, withdrawal.id)


def _end(
    connection: Connection,
    withdrawal: Withdrawal,
    event: WithdrawalEvent,
    micros: int,
    fee_msat: int = 0,
    preimage: bytes | None = None,
    reason: FailedBecause | None = None,
) -> Withdrawal:
    """Move a locked withdrawal on, and its balance with it."""
    following = step(withdrawal.state, event)
    values: dict[str, object] = {}
    if following not in OPEN_STATES:
        moved = Balances()
        moved.lock(connection, [withdrawal.account_id])
        moved.hold(withdrawal.account_id, -withdrawal.held_msat)
        values |= {"ended_at": micros, "reason": None if reason is None else reason.value}
        if following is State.SETTLED:
            # The node keeps to the limit; if it ever does not, the rest is the operator's.
            fee_msat = min(fee_msat, withdrawal.fee_limit_msat)
            moved.move(
                withdrawal.account_id, -(withdrawal.amount_msat + fee_msat), Cause.WITHDRAWAL, withdrawal.id, micros
            )
            values |= {"fee_msat": fee_msat, "preimage": preimage}
        moved.write(connection)
    return _move(connection, withdrawal, event, values)


def _move(
    connection: Connection, withdrawal: Withdrawal, event: WithdrawalEvent, values: dict[str, object]
) -> Withdrawal:
    following = step(withdrawal.state, event)
    connection.execute(
        update(withdrawals)
        # The row is locked and the move was checked; the condition makes the update safe even without that.
        .where(withdrawals.c.id == withdrawal.id, withdrawals.c.state == withdrawal.state.value)
        .values(state=following.value, **values)
    )
    return _read(connection, withdrawal.id)


def _account_of(connection: Connection, withdrawal_id: str) -> tuple[str, str | None]:
    found = _read(connection, withdrawal_id)
    return found.account_id, found.topup_id


def _read(connection: Connection, withdrawal_id: str) -> Withdrawal:
    return _one(connection.execute(_ONE, {"of_withdrawal": withdrawal_id}).mappings().one_or_none())


def _lock(connection: Connection, withdrawal_id: str) -> Withdrawal:
    return _one(connection.execute(_LOCKED, {"of_withdrawal": withdrawal_id}).mappings().one_or_none())


def _one(row: RowMapping | None) -> Withdrawal:
    if row is None:
        raise WithdrawalNotFound
    return _withdrawal(row)


def _log(connection: Connection, withdrawal: Withdrawal, action: str, reason: str, actor: str, at: datetime) -> None:
    write_admin_action(
        connection,
        at,
        actor,
        action,
        withdrawal.id,
        account_id=withdrawal.account_id,
        amount_msat=withdrawal.amount_msat,
        fee_msat=withdrawal.fee_msat,
        reason=reason,
    )


def _withdrawal(row: RowMapping) -> Withdrawal:
    values = dict(row)
    for name in ("created_at", "expires_at"):
        values[name] = from_micros(values[name])
    for name in ("paying_at", "absent_at", "ended_at"):
        values[name] = from_micros_or_none(values[name])
    for name in ("amount_msat", "fee_limit_msat"):
        values[name] = Msat(values[name])
    fee_msat, reason = values["fee_msat"], values["reason"]
    values["fee_msat"] = None if fee_msat is None else Msat(fee_msat)
    values["reason"] = None if reason is None else FailedBecause(reason)
    values["state"] = State(values["state"])
    return Withdrawal(**values)
