"""Pays withdrawals: each by one call, followed until there is evidence of its end; after a crash by another process.

A withdrawal is ``paying`` on disk before the call goes out. What the call ends with is written by the process that made
it; whatever that process cannot tell, the gateway that leads finds out by asking the node about the payment hash.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Final

from lcp_gateway.accounts.models import AccountError
from lcp_gateway.accounts.withdrawal_states import WithdrawalEvent, WithdrawalState
from lcp_gateway.accounts.withdrawals import (
    AmountRefused,
    FailedBecause,
    InvalidInvoice,
    InvoiceUsed,
    Liquidity,
    NewWithdrawal,
    PayableInvoice,
    Payout,
    PayoutService,
    PayoutState,
    PayoutsUnavailable,
    Withdrawal,
    WithdrawalRepository,
    WithdrawalRules,
    WithdrawalsDisabled,
)
from lcp_gateway.clock import utc_now
from lcp_gateway.purchase.money import LARGEST_MSAT, Msat
from lcp_gateway.purchase.ports import StartTask

FOLLOW_UP_S: Final = 5.0
"""The pause between two passes of the gateway that leads."""

_LEAST_LEFT = timedelta(seconds=10)
# A process that was stopped between the commit and the call may have been taken for dead meanwhile.
_SEND_WITHIN_S: Final = 5.0
# A call that had reached the node before its sender ended is known there long before.
_ABSENT_FOR = timedelta(minutes=1)
_RETRY_S: Final = 0.5
_MAX_RETRY_S: Final = 15.0


class Payouts:
    """Takes withdrawals, pays them, and finds out what became of those whose outcome is unknown.

    ``start_task`` starts the task of one payment, which outlives its request. ``on_end`` gets each withdrawal that ended
    here, ``on_trouble`` problems in words, without a secret. ``unavailable`` are the errors of a database that cannot be
    reached.
    """

    def __init__(
        self,
        withdrawals: WithdrawalRepository,
        payer: PayoutService | None,
        rules: WithdrawalRules,
        *,
        start_task: StartTask,
        unavailable: tuple[type[Exception], ...] = (),
        on_end: Callable[[Withdrawal], None] = lambda _withdrawal: None,
        on_trouble: Callable[[str], None] = lambda _problem: None,
        now: Callable[[], datetime] = utc_now,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._withdrawals = withdrawals
        self._payer = payer
        self._start_task = start_task
        self._unavailable = unavailable
        self._on_end = on_end
        self._on_trouble = on_trouble
        self._now = now
        self._clock = clock
        self._running: set[str] = set()
        self._suspected: frozenset[str] = frozenset()
        self.rules = rules
        """The rules in force; another configuration replaces them."""

    async def request(
        self,
        account_id: str,
        key_id: str,
        payment_request: str,
        *,
        amount_msat: int | None = None,
        max_fee_msat: int | None = None,
    ) -> tuple[Withdrawal, bool]:
        """Withdraw to an invoice; return the withdrawal, and whether it is new: the same invoice again is not.

        ``amount_msat`` is for an invoice that names none. ``max_fee_msat`` lowers the fee limit.

        Raises:
            WithdrawalsDisabled: the switch is off, or nothing can pay.
            InvalidInvoice, InvoiceUsed, AmountRefused: this invoice or amount cannot be paid.
            PayoutsUnavailable: the node cannot be asked now.
            The errors of ``WithdrawalRepository.create``.
        """
        payer = self._enabled_payer()
        invoice = payer.read(payment_request)
        amount_msat = _amount_msat(invoice, amount_msat)
        if (known := await self._first_for(invoice, account_id, amount_msat)) is not None:
            return known, False
        node = await payer.node()
        at = self._now()
        if node.network is not None and invoice.network != node.network:
            raise InvalidInvoice(f"this invoice is of another network ({invoice.network}) than {node.network}")
        if invoice.expires_at < at + _LEAST_LEFT:
            raise InvalidInvoice("this invoice has expired, or is about to")
        rules = self.rules
        if not rules.min_msat <= amount_msat <= (rules.max_msat or LARGEST_MSAT - 1):
            most = f" to {rules.max_msat}" if rules.max_msat else ""
            raise AmountRefused(f"an amount must be from {rules.min_msat}{most} msat")
        is_internal = invoice.payee == node.node_id
        fee_limit_msat = Msat(0) if is_internal else rules.fee_limit_msat(amount_msat)
        if max_fee_msat is not None:
            fee_limit_msat = min(fee_limit_msat, Msat(max_fee_msat))
        liquidity = None
        if not is_internal:
            # Whatever the node shows of this hash from now on must be the payment that is made here: the failure of an earlier
            # one would release the hold while the call of this one is still on its way.
            found = await payer.track(invoice.payment_hash)
            if found.state is not PayoutState.ABSENT:
                # Another request for this invoice may have begun to pay since the look above; its row is durable before its call.
                if (known := await self._first_for(invoice, account_id, amount_msat)) is not None:
                    return known, False
                raise InvoiceUsed("the node has paid this invoice, or has tried to: withdraw to a new one")
            liquidity = await self._liquidity(payer)
        begun = self._clock()
        withdrawal, is_new = await self._withdrawals.create(
            NewWithdrawal(
                account_id=account_id,
                key_id=key_id,
                payment_hash=invoice.payment_hash,
                payment_request=payment_request,
                amount_msat=Msat(amount_msat),
                fee_limit_msat=fee_limit_msat,
                names_amount=invoice.amount_msat is not None,
                expires_at=invoice.expires_at,
                node_id=node.node_id,
                is_internal=is_internal,
            ),
            rules,
            liquidity,
            at,
        )
        if is_new:
            self._go_on(payer, withdrawal, begun)
        return withdrawal, is_new

    async def resolve(self, withdrawal_id: str, *, settled: bool, fee_msat: int, reason: str, actor: str) -> Withdrawal:
        """End a withdrawal by hand whose outcome is unknown; see ``WithdrawalRepository.resolve``."""
        resolved, is_new = await self._withdrawals.resolve(
            withdrawal_id, settled=settled, fee_msat=fee_msat, reason=reason, actor=actor, at=self._now()
        )
        if is_new:
            self._on_end(resolved)
        return resolved

    async def catch_up(self) -> None:
        """Pay the approved withdrawals, end the expired ones, and ask the node about those whose outcome is unknown.

        For one gateway at a time: the one that leads.
        """
        open_ones = await self._open_ones()
        if any(it.state is WithdrawalState.PAYING and it.id not in self._running for it in open_ones):
            for lost in await self._withdrawals.take_over(list(self._running), self._now()):
                self._on_trouble(f"the gateway that paid withdrawal {lost.id} ended: its outcome is unknown")
            open_ones = await self._open_ones()
        failed: Exception | None = None
        for withdrawal in open_ones:
            try:
                await self._follow_up(withdrawal)
            except self._unavailable:
                raise
            except (PayoutsUnavailable, AccountError) as error:
                failed = failed or error
        if isinstance(failed, PayoutsUnavailable):
            raise failed
        if failed is not None:
            self._on_trouble(str(failed))

    async def let_go(self) -> None:
        """Make those unknown that this process has begun and does not pay: the gateway that leads finds out about them.

        For every process, each few seconds: while this one lives, no other can tell. A client may have left, or contact with
        the database been lost, at the moment of the commit. One that is seen twice is too old to be sent.
        """
        own = self._withdrawals.owner
        left = frozenset(
            it.id
            for it in await self._open_ones()
            if it.state is WithdrawalState.PAYING and it.owner == own and it.id not in self._running
        )
        lost, self._suspected = left & self._suspected, left
        if lost:
            for it in await self._withdrawals.take_over([*self._running, *(left - lost)], self._now()):
                self._on_trouble(f"withdrawal {it.id} was begun and not followed: its outcome is unknown")

    async def _first_for(self, invoice: PayableInvoice, account_id: str, amount_msat: int) -> Withdrawal | None:
        """Return the withdrawal that an invoice was used for before; raise ``InvoiceUsed`` for another account or amount."""
        known = await self._withdrawals.by_payment_hash(invoice.payment_hash)
        if known is not None and (known.account_id, known.amount_msat) != (account_id, amount_msat):
            raise InvoiceUsed
        return known

    async def _open_ones(self) -> Sequence[Withdrawal]:
        """Return all that are open: those that a payee leaves in flight for days must not hide the others."""
        found: list[Withdrawal] = []
        while page := await self._withdrawals.open_ones(after=found[-1] if found else None):
            found += page
        return found

    def _enabled_payer(self) -> PayoutService:
        if not self.rules.enabled:
            raise WithdrawalsDisabled("withdrawals are disabled (withdrawals)")
        if self._payer is None:
            raise WithdrawalsDisabled("withdrawals are disabled: no lnd may pay (lnd_withdrawal_macaroon_file)")
        return self._payer

    async def _liquidity(self, payer: PayoutService) -> Liquidity:
        # The time before the call: what settles during it is taken off once more.
        read_at = self._now()
        return Liquidity(await payer.spendable_msat(), read_at)

    def _go_on(self, payer: PayoutService, withdrawal: Withdrawal, begun: float) -> None:
        """Start to pay a withdrawal that this process began at ``begun``, a time before the commit."""
        if withdrawal.state is WithdrawalState.SETTLED:
            self._on_end(withdrawal)
        if withdrawal.state is WithdrawalState.PAYING:
            self._running.add(withdrawal.id)
            self._start_task(lambda: self._pay(payer, withdrawal, begun), may_return=lambda: True)

    async def _pay(self, payer: PayoutService, withdrawal: Withdrawal, begun: float) -> None:
        """Make the call and write its outcome. Never called twice for one withdrawal, nor started again."""
        try:
            if self._clock() - begun > _SEND_WITHIN_S:
                payout = Payout(PayoutState.UNCLEAR)
            else:
                payout = await payer.pay(
                    withdrawal.payment_request,
                    amount_msat=None if withdrawal.names_amount else withdrawal.amount_msat,
                    fee_limit_msat=withdrawal.fee_limit_msat,
                    timeout_s=self.rules.timeout_s,
                )
            if payout.state is PayoutState.REFUSED:
                payout = await self._after_refusal(payer, withdrawal, payout)
            await self._write_outcome(withdrawal, payout)
        except Exception as error:  # noqa: BLE001 - a supervisor would start it again, and the call goes out once
            # The row stays as it is; once this task has ended ``let_go`` finds it.
            self._on_trouble(f"withdrawal {withdrawal.id} was not followed to its end: {type(error).__name__}")
        finally:
            self._running.discard(withdrawal.id)

    async def _after_refusal(self, payer: PayoutService, withdrawal: Withdrawal, refused: Payout) -> Payout:
        with suppress(PayoutsUnavailable):
            found = await payer.track(withdrawal.payment_hash)
            if found.state is PayoutState.ABSENT:
                # The node writes a payment down before it begins, and had answered the call by then.
                return Payout(PayoutState.FAILED, reason=refused.reason or FailedBecause.REFUSED)
            return found
        return Payout(PayoutState.UNCLEAR)

    async def _write_outcome(self, withdrawal: Withdrawal, payout: Payout) -> None:
        pause_s = _RETRY_S
        while True:
            try:
                await self._record(withdrawal, payout)
            except self._unavailable as error:
                self._on_trouble(f"the outcome of withdrawal {withdrawal.id} cannot be written: {error}")
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, _MAX_RETRY_S)
            else:
                return

    async def _record(self, withdrawal: Withdrawal, payout: Payout) -> None:
        event = {PayoutState.SETTLED: WithdrawalEvent.SETTLE, PayoutState.FAILED: WithdrawalEvent.FAIL}.get(
            payout.state, WithdrawalEvent.LOSE_SIGHT
        )
        written = await self._withdrawals.record(
            withdrawal.id, event, self._now(), fee_msat=payout.fee_msat, preimage=payout.preimage, reason=payout.reason
        )
        if payout.fee_msat > withdrawal.fee_limit_msat:
            self._on_trouble(f"the fee of withdrawal {withdrawal.id} is above its limit: the rest is the operator's")
        if written is not None and event is not WithdrawalEvent.LOSE_SIGHT:
            self._on_end(written)

    async def _follow_up(self, withdrawal: Withdrawal) -> None:
        match withdrawal.state:
            case WithdrawalState.UNKNOWN if self._payer is not None:
                await self._look_up(self._payer, withdrawal)
            case WithdrawalState.AWAITING_APPROVAL | WithdrawalState.APPROVED if withdrawal.expires_at <= self._now():
                await self._record(withdrawal, Payout(PayoutState.FAILED, reason=FailedBecause.EXPIRED))
            case WithdrawalState.APPROVED if self.rules.enabled and self._payer is not None:
                payer = self._payer
                liquidity = None if withdrawal.topup_id else await self._liquidity(payer)
                begun = self._clock()
                paying = await self._withdrawals.begin(withdrawal.id, self.rules, liquidity, self._now())
                if paying is not None:
                    self._go_on(payer, paying, begun)
            case _:
                # It is being paid, or waits.
                pass

    async def _look_up(self, payer: PayoutService, withdrawal: Withdrawal) -> None:
        if withdrawal.node_id != (await payer.node()).node_id:
            self._on_trouble(f"withdrawal {withdrawal.id} was paid by another node, which alone knows its outcome")
            return
        payout = await payer.track(withdrawal.payment_hash)
        if payout.state in {PayoutState.SETTLED, PayoutState.FAILED}:
            await self._record(withdrawal, payout)
        elif payout.state is not PayoutState.ABSENT:
            if withdrawal.absent_at is not None:
                await self._withdrawals.mark_absent(withdrawal.id, None)
        elif withdrawal.absent_at is None:
            await self._withdrawals.mark_absent(withdrawal.id, self._now())
        elif self._now() - withdrawal.absent_at >= _ABSENT_FOR:
            # Two looks with a minute between them, both after the sender had ended: the call never arrived.
            await self._record(withdrawal, Payout(PayoutState.FAILED, reason=FailedBecause.NEVER_SENT))


def _amount_msat(invoice: PayableInvoice, amount_msat: int | None) -> int:
    if invoice.amount_msat is None:
        if not amount_msat:
            raise AmountRefused("this invoice names no amount: amount_msat is needed")
        return amount_msat
    if amount_msat is not None and amount_msat != invoice.amount_msat:
        raise AmountRefused(f"this invoice is for {invoice.amount_msat} msat")
    return invoice.amount_msat
